//! Drains take one replica at a time, once there are two. A pod that is not ready never blocks a drain.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{OwnedKind, Resolved};

pub(super) fn disruption_budget(resolved: &Resolved) -> Option<PodDisruptionBudget> {
    if resolved.replicas < 2 {
        return None;
    }
    Some(PodDisruptionBudget {
        metadata: super::metadata(resolved, OwnedKind::PodDisruptionBudget),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(super::label_selector(resolved)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
