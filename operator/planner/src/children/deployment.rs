//! The pods' Deployment, and how a change reaches them.

use candela_crds::{IntOrPercent, RolloutStrategy};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{OwnedKind, Resolved};

/// Old ReplicaSets that stay for `kubectl rollout history`.
const REVISION_HISTORY: i32 = 3;

pub(super) fn deployment(resolved: &Resolved) -> Deployment {
    Deployment {
        metadata: super::metadata(resolved, OwnedKind::Deployment),
        spec: Some(DeploymentSpec {
            replicas: Some(resolved.replicas),
            selector: super::label_selector(resolved),
            strategy: Some(strategy(resolved)),
            progress_deadline_seconds: Some(resolved.progress_deadline_secs),
            revision_history_limit: Some(REVISION_HISTORY),
            template: super::pod::template(resolved),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// Unless told otherwise, a new replica serves before an old one stops: one more, none fewer.
fn strategy(resolved: &Resolved) -> DeploymentStrategy {
    let rollout = resolved.spec.rollout.clone().unwrap_or_default();
    match rollout.strategy.unwrap_or_default() {
        RolloutStrategy::Recreate => {
            DeploymentStrategy { type_: Some("Recreate".to_owned()), rolling_update: None }
        }
        RolloutStrategy::RollingUpdate => DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(rollout.max_surge.map_or(IntOrString::Int(1), int_or_string)),
                max_unavailable: Some(rollout.max_unavailable.map_or(IntOrString::Int(0), int_or_string)),
            }),
        },
    }
}

fn int_or_string(value: IntOrPercent) -> IntOrString {
    match value {
        IntOrPercent::Int(number) => IntOrString::Int(number),
        IntOrPercent::Percent(text) => IntOrString::String(text),
    }
}
