//! `spec.rollout`, `spec.routing` and `spec.access`.

use std::borrow::Cow;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How a change reaches the replicas.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.strategy) || self.strategy != 'Recreate' || (!has(self.maxSurge) && !has(self.maxUnavailable))")
        .message("strategy Recreate stops every old replica first: remove maxSurge and maxUnavailable"),
    validation = Rule::new("!(has(self.maxSurge) && has(self.maxUnavailable) && string(self.maxSurge) in ['0', '0%'] && string(self.maxUnavailable) in ['0', '0%'])")
        .message("maxSurge and maxUnavailable must not both be 0, or nothing could ever change: set one of them to 1"),
    validation = Rule::new("!(has(self.maxSurge) && !has(self.maxUnavailable) && string(self.maxSurge) in ['0', '0%'])")
        .message("maxSurge 0 needs maxUnavailable of at least 1 (it is 0 unless set): write maxUnavailable: 1")
)]
pub struct Rollout {
    /// RollingUpdate (when absent) starts a new replica before it stops an old one. Recreate stops all old replicas
    /// first: for pools whose accelerators are all in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<RolloutStrategy>,
    /// Replicas above the wanted number during a change; absent = 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<IntOrPercent>,
    /// Replicas that may be missing during a change; absent = 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrPercent>,
    /// How long a replica may take to start, and a change may take without progress; absent = 30m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('10s') && self <= duration('168h')").message("rollout.progressDeadline must be from 10s to 168h"))]
    pub progress_deadline: Option<Duration>,
}

/// How a change reaches the replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    #[default]
    RollingUpdate,
    Recreate,
}

/// A number of replicas, or a percentage of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    Int(i32),
    Percent(String),
}

impl JsonSchema for IntOrPercent {
    fn schema_name() -> Cow<'static, str> {
        "IntOrPercent".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 0,
            "maximum": 1000,
            "pattern": "^(100|[1-9]?[0-9])%$",
            "maxLength": 4,
        })
    }
}

/// How requests are treated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Limits in time; absent = the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<RoutingTimeouts>,
}

/// Limits in time.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.request) || !has(self.firstToken) || self.firstToken <= self.request")
        .message("routing.timeouts.firstToken must not be longer than routing.timeouts.request")
)]
pub struct RoutingTimeouts {
    /// For a whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('100ms') && self <= duration('24h')").message("routing.timeouts.request must be from 100ms to 24h"))]
    pub request: Option<Duration>,
    /// From the arrival of a request to its first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('100ms') && self <= duration('24h')").message("routing.timeouts.firstToken must be from 100ms to 24h"))]
    pub first_token: Option<Duration>,
}

/// Who may reach the replicas.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Access {
    /// Managed (when absent) writes a NetworkPolicy: the API is open to the same namespace, to the operator's
    /// namespace and to namespaces labelled `candela.dev/access: "true"`. None writes none. Enforcement is the
    /// cluster's network plugin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyMode>,
}

/// Whether Candela writes a NetworkPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkPolicyMode {
    #[default]
    Managed,
    None,
}
