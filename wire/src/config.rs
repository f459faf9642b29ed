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
/// The keys of additional models' `credentialsRef` are mounted here: one folder per model, named by [`folder_name`],
/// with one file, `token`.
pub const ADDITIONAL_CREDENTIALS_DIR: &str = "/var/run/candela/additional-credentials";
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
    /// Models to serve, at least one: `spec.model` first, then `spec.additionalModels`. Served names are unique.
    pub models: Vec<ModelConfig>,
    /// Limits of the engine of each model; absent = the server's own.
    #[serde(default, skip_serializing_if = "Batching::is_default")]
    pub batching: Batching,
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
    /// `builtin://demo`, `hf://org/name`, `http(s)://…`, `pvc://claim/path`; outside a cluster also `file:///path`.
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
    /// What 16- and 32-bit weights become when they are loaded; absent = they stay what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// What the model is for; empty = what its architecture is for. A server refuses what that cannot do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Task>,
}

impl ModelConfig {
    /// A model with nothing said beyond its name and where it is.
    pub fn new(served_name: impl Into<String>, uri: impl Into<String>) -> Self {
        Self {
            served_name: served_name.into(),
            uri: uri.into(),
            revision: None,
            format: None,
            context_length: None,
            sha256: None,
            credentials_file: None,
            quantization: None,
            tasks: Vec::new(),
        }
    }

    /// Name of the folder under [`MODELS_DIR`] that the init step fills: see [`folder_name`].
    pub fn folder_name(&self) -> String {
        folder_name(&self.served_name)
    }
}

/// Name of a model's folder under [`MODELS_DIR`], one plain path element. No two served names share a folder: `/` is
/// written as `+`, `:` as `=`, and what else a path could not bear (a leading `.`, `+` and `=` themselves) as `%XX`.
pub fn folder_name(served_name: &str) -> String {
    let mut name = String::with_capacity(served_name.len());
    for (at, byte) in served_name.bytes().enumerate() {
        match byte {
            b'.' if at == 0 => name.push_str("%2E"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(byte.into()),
            b'/' => name.push('+'),
            b':' => name.push('='),
            other => name.push_str(&format!("%{other:02X}")),
        }
    }
    name
}

/// What weights are quantised to when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantization {
    /// 8 bits per weight, a scale for every 32.
    Q8,
    /// 4 bits per weight, a scale for every 32.
    Q4,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Task {
    /// Chat and completions.
    Generate,
    /// Texts to vectors.
    Embed,
    /// Scores of documents for a query.
    Rerank,
    /// Labels of the words of a text, such as names of people.
    TokenClassify,
}

impl Task {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "Generate",
            Self::Embed => "Embed",
            Self::Rerank => "Rerank",
            Self::TokenClassify => "TokenClassify",
        }
    }
}

/// How an engine batches requests; what is absent is the server's own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Batching {
    /// Tokens computed in one step, prompt pieces included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batch_tokens: Option<u32>,
    /// Requests that generate at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<u32>,
    /// Requests that may wait; one more is answered 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<u32>,
    /// Longest that a request may have to wait, as estimated; one that would wait longer is answered 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait_ms: Option<u64>,
}

impl Batching {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn served_names_have_folders_of_their_own() {
        let names =
            ["org/chat", "org_chat", "org+chat", "org:chat", "org=chat", ".", "..", ".a", "a.b", "é", "a b"];
        let folders: BTreeSet<String> = names.iter().map(|name| folder_name(name)).collect();
        assert_eq!(folders.len(), names.len(), "{folders:?}");
        assert_eq!(folder_name("org/chat-small_1:v1.5"), "org+chat-small_1=v1.5");
        assert_eq!(folder_name(".."), "%2E.");
        assert!(
            folders.iter().all(|folder| !folder.contains('/') && !folder.starts_with('.')),
            "{folders:?}"
        );
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        let text = r#"{"version":1,"models":[{"servedName":"a","uri":"builtin://demo"}],"timeouts":{},"terminationGraceSeconds":1,"startupStallSeconds":1}"#;
        let config: ServerConfig = serde_json::from_str(text).expect("a configuration of an older operator");
        assert_eq!(serde_json::to_string(&config).expect("plain data"), text);
    }
}
