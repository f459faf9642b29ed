//! `LlmDeployment`: one model, served.

#![expect(unreachable_pub, reason = "KubeSchema derives a private `pub struct …Validated` beside each type")]

mod batching;
mod compute;
mod engine;
mod model;
mod pod_template;
mod rollout;
mod status;

pub use batching::Batching;
pub use compute::{Accelerator, Device, Placement, Resources, TopologySpread, WhenUnsatisfiable};
pub use engine::{Engine, EngineName, EnvValue, EnvVar};
pub use model::{KeyRef, Model, Quantization, Task, Verification, WeightsFormat};
pub use pod_template::{
    ClaimVolume, ConfigMapVolume, EmptyDirVolume, PodTemplate, SecretVolume, Volume, VolumeMount,
};
pub use rollout::{
    Access, IntOrPercent, NetworkPolicyMode, Rollout, RolloutStrategy, Routing, RoutingTimeouts,
};
pub use status::{
    Address, Failure, LlmDeploymentStatus, ModelFacts, PlacementStatus, Revision, StartupSeconds,
};

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What should be served, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "candela.dev",
    version = "v1alpha1",
    kind = "LlmDeployment",
    plural = "llmdeployments",
    shortname = "llm",
    category = "candela",
    namespaced,
    status = "LlmDeploymentStatus",
    derive = "PartialEq",
    doc = "LlmDeployment serves one large language model behind an OpenAI-compatible API.",
    annotation("argocd.argoproj.io/sync-options", "Prune=false"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.uri"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".status.engine"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')")
        .message("metadata.name also names a Service: write at most 50 lower-case letters, digits and '-', starting with a letter and ending with a letter or digit"),
    validation = Rule::new("!has(self.spec.additionalModels) || self.spec.additionalModels.all(m, m.servedName != (has(self.spec.model.servedName) ? self.spec.model.servedName : self.metadata.name))")
        .message("each model needs a servedName of its own: rename the one of additionalModels that has the name of spec.model (model.servedName, or else metadata.name)")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.engine) && self.engine.name == 'Custom') || has(self.model.uri)")
        .message("model.uri is required: write builtin://demo, hf://ORG/NAME, https://HOST/PATH or pvc://CLAIM/PATH (only engine Custom may leave it out)"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.uri) || !self.model.uri.startsWith('builtin://')")
        .message("builtin:// models are part of Candela's own server image: with engine Custom write hf://, http(s):// or pvc://, or leave model.uri out if the image brings its weights"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.contextLength)")
        .message("model.contextLength has no effect with engine Custom: remove it and set the limit in engine.args"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.routing) || !has(self.routing.timeouts)")
        .message("routing.timeouts are enforced by Candela's own server only: remove them with engine Custom, and set the limits in engine.args"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.quantization)")
        .message("model.quantization is done by Candela's own server only: remove it with engine Custom, and say it in engine.args"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.tasks) || self.model.tasks.all(t, t == 'Generate')")
        .message("model.tasks chooses what Candela's own server does with a model: remove it with engine Custom, whose image decides"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.batching)")
        .message("batching is done by Candela's own server only: remove it with engine Custom, and set the limits in engine.args"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.additionalModels) || self.additionalModels.size() == 0")
        .message("additionalModels are loaded by Candela's own server only: with engine Custom give each model an LlmDeployment of its own"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.format) || (has(self.model.uri) && !self.model.uri.startsWith('pvc://'))")
        .message("with engine Custom, model.format only chooses which files are fetched: remove it unless model.uri is hf:// or http(s)://"),
    validation = Rule::new("!(has(self.engine) && self.engine.name == 'Custom') || !has(self.model.verification) || (has(self.model.uri) && !self.model.uri.startsWith('pvc://'))")
        .message("with engine Custom, only what Candela fetches can be verified: remove model.verification unless model.uri is hf:// or http(s)://")
)]
pub struct LlmDeploymentSpec {
    /// The model to serve.
    pub model: Model,
    /// More models in the same pods, beside `model`: each with a `uri` and a `servedName` of its own. All of them share
    /// `resources`, and a change to one of them rolls the pods of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["servedName"]))]
    pub additional_models: Vec<Model>,
    /// What runs the model; absent = Candle, Candela's own engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// How many requests each replica works on at a time; what is absent is the server's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// CPU and memory of each replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Accelerators of each replica; absent = CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Where replicas may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How many replicas should run.
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000").message("replicas must be a number from 0 to 1000"))]
    pub replicas: i32,
    /// How a change reaches the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// How requests are treated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Who may reach the replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// Additions to the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
    /// True = no replicas, everything else stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

impl LlmDeploymentSpec {
    pub fn engine_name(&self) -> EngineName {
        self.engine.as_ref().map_or(EngineName::Candle, |engine| engine.name)
    }
}
