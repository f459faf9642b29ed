//! The identity of the pods, which has no rights and whose token is not mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::{OwnedKind, Resolved};

pub(super) fn service_account(resolved: &Resolved) -> ServiceAccount {
    ServiceAccount {
        metadata: super::metadata(resolved, OwnedKind::ServiceAccount),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
