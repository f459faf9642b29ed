//! `status`: only what was seen, written by the operator alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Condition, ConditionStatus, ConditionType, Reason};

/// What the operator saw last: conditions, pods, addresses, and the facts that the server reports of its models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LlmDeploymentStatus {
    /// Generation of the spec that this status speaks of; -1 = none yet.
    pub observed_generation: i64,
    /// What is the case, one entry per type.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "only_known")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Base URL of the OpenAI-compatible API, inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub url: Option<String>,
    /// Every address of the API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub addresses: Vec<Address>,
    /// Engine in effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub engine: Option<String>,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that answer.
    pub ready_replicas: i32,
    /// Pods of the present revision.
    pub updated_replicas: i32,
    /// Label selector of the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// Revision that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub current_revision: Option<String>,
    /// Revision that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub target_revision: Option<String>,
    /// Revisions that have pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub revisions: Vec<Revision>,
    /// Facts about the loaded models, as the server read them from the weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["servedName"]))]
    pub models: Vec<ModelFacts>,
    /// Seconds of the phases of the last start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<StartupSeconds>,
    /// Where pods run, or could run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementStatus>,
    /// What goes wrong in pods now; the gravest first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "only_known")]
    #[schemars(length(max = 5), extend("x-kubernetes-list-type" = "atomic"))]
    pub failures: Vec<Failure>,
}

impl LlmDeploymentStatus {
    pub fn condition(&self, type_: ConditionType) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// True if the condition is there and True.
    pub fn is(&self, type_: ConditionType) -> bool {
        self.condition(type_).is_some_and(|condition| condition.status == ConditionStatus::True)
    }
}

/// Reads the entries that this build knows. A newer operator may have written others; they are written anew anyway,
/// and must not make the whole object unreadable after a downgrade.
fn only_known<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let raw = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(raw.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect())
}

/// One address of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// `Service`: inside the cluster.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub type_: String,
    /// Base URL.
    #[schemars(length(max = 256))]
    pub url: String,
}

/// One revision of the pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Name of its ReplicaSet.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Pods of it that answer.
    pub ready: i32,
    /// Digest of the model that they loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub model_digest: Option<String>,
    /// Image that they run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
}

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelFacts {
    /// Name that clients send as `model`.
    #[schemars(length(max = 128))]
    pub served_name: String,
    /// `sha256:` and 64 hex digits.
    #[schemars(length(max = 128))]
    pub digest: String,
    /// Such as `LlamaForCausalLM`.
    #[schemars(length(max = 128))]
    pub architecture: String,
    /// Number of parameters.
    pub parameters: i64,
    /// Bytes of the weight files.
    pub size_bytes: i64,
    /// Bytes of memory that weights, KV cache and activations need.
    pub estimated_memory: i64,
    /// Type of most weights in memory, such as `F16` or `Q4_0`.
    #[schemars(length(max = 64))]
    pub quantization: String,
    /// Upper bound on prompt plus output, in tokens.
    pub context_length: i64,
    /// What it serves, such as `Generate`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)), extend("x-kubernetes-list-type" = "atomic"))]
    pub tasks: Vec<String>,
    /// Commit that the revision resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub revision: Option<String>,
}

/// Seconds of the phases of the last start; a phase that has not ended is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartupSeconds {
    /// From the pod's creation until it had a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<f64>,
    /// From the node until the first container ran: sandbox, volumes and images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull: Option<f64>,
    /// Fetching the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<f64>,
    /// Loading the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<f64>,
    /// Warming up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// From the start of the server to its first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<f64>,
}

/// Where pods run, or could run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// What each replica asks for, such as `nvidia.com/gpu: 4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub resource: Option<String>,
    /// The most that one node offers, when that is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub nearest_fit: Option<String>,
}

/// What goes wrong in a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Why, as one word from the closed list.
    pub reason: Reason,
    /// What happened, and what to do next.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// One pod that shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// The container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub container: Option<String>,
    /// In how many pods, now.
    pub count: i32,
    /// When the newest of them was seen by the kubelet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Time>,
}
