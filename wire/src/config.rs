//! `server.json`: what the operator tells a server pod, in one ConfigMap key. The planner writes it, the server
//! reads it; both sides use these types, so a field that one side does not know fails loudly.

use serde::{Deserialize, Serialize};

/// Where the ConfigMap is mounted in the pod.
pub const SERVER_CONFIG_PATH: &str = "/etc/candela/server.json";
/// Key of the ConfigMap.
pub const SERVER_CONFIG_KEY: &str = "server.json";
/// Folder (an emptyDir) that the init step fills: one subfolder per served name.
pub const MODELS_DIR: &str = "/models";
/// A `pvc://CLAIM/path` model is read from `/pvc/CLAIM/path`, mounted read-only.
pub const PVC_DIR: &str = "/pvc";
/// The key of `credentialsRef` is mounted here as one file, `token`.
pub const CREDENTIALS_DIR: &str = "/var/run/candela/credentials";
/// Port of the public API of a server.
pub const HTTP_PORT: u16 = 8080;
/// Port of `/metrics`, `/livez`, `/readyz`, `/startupz` and `/internal/v1/status`, in every process.
pub const INTERNAL_PORT: u16 = 9090;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfig {
    /// Version of this file's schema: 1.
    pub version: u32,
    /// Models to serve; exactly one until `additionalModels` exists.
    pub models: Vec<ModelConfig>,
    /// Accelerators that the pod was given; absent on CPU. A server built without support for them refuses to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Limits in time; absent = the server's own defaults.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Seconds between SIGTERM and the end of the pod, from `terminationGracePeriodSeconds`.
    pub termination_grace_seconds: u32,
    /// Seconds without any load or fetch progress after which the process gives up with `StartupStalled`.
    pub startup_stall_seconds: u32,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelConfig {
    /// The name that clients send as `model`.
    pub served_name: String,
    /// `builtin://demo`, `hf://org/name`, `http(s)://…`, `pvc://claim/path`.
    pub uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Upper bound on prompt plus output, in tokens; absent = what the model's config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Lower-case hex SHA-256: of the file for one-file models, of the sorted `SHA256  NAME` list for a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// File that holds a bearer token for the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<String>,
}

/// Format of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Safetensors,
    Gguf,
}

/// What the pod was given by a device plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Accelerator {
    /// Extended resource, such as `nvidia.com/gpu`.
    pub resource_name: String,
    pub count: u32,
}

/// Limits in time, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// Whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_ms: Option<u64>,
    /// From admission to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
}
