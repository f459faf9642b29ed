//! `spec.engine`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KeyRef;

/// What runs the model.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.name != 'Custom' || has(self.image)")
        .message("engine Custom needs engine.image: any image that serves the OpenAI API on $PORT and answers GET /v1/models when it is ready"),
    validation = Rule::new("self.name == 'Custom' || !has(self.image)")
        .message("engine.image is only for engine Custom: the image of engine Candle is chosen in the operator's configuration"),
    validation = Rule::new("self.name == 'Custom' || !has(self.args)")
        .message("engine.args are only for engine Custom: remove them, engine Candle is configured by the fields of spec"),
    validation = Rule::new("self.name == 'Custom' || !has(self.env)")
        .message("engine.env is only for engine Custom: remove it, engine Candle is configured by the fields of spec")
)]
pub struct Engine {
    /// Candle is Candela's own server. Custom is any image that serves the OpenAI API on `$PORT`.
    pub name: EngineName,
    /// Image of engine Custom. It runs as user 65532 with a read-only root; `/tmp` is writable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\S+$"))]
    pub image: Option<String>,
    /// Arguments of engine Custom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// Environment of engine Custom, beside `PORT`, `MODEL_NAME` and `MODEL_PATH`, which Candela sets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvVar>,
}

/// Name of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EngineName {
    Candle,
    Custom,
}

impl EngineName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candle => "Candle",
            Self::Custom => "Custom",
        }
    }
}

/// One environment variable.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.valueFrom)")
        .message("each variable needs exactly one of value and valueFrom"),
    validation = Rule::new("!(self.name in ['PORT', 'MODEL_NAME', 'MODEL_PATH'])")
        .message("PORT, MODEL_NAME and MODEL_PATH are set by Candela: remove them from engine.env")
)]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._a-zA-Z][-._a-zA-Z0-9]*$"))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    /// Where its value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvValue>,
}

/// Where the value of a variable is: exactly one member.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)")
        .message("valueFrom needs exactly one of secretKeyRef and configMapKeyRef")
)]
pub struct EnvValue {
    /// Key of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// Key of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
}
