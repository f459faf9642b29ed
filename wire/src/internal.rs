//! `GET /internal/v1/status`: the only way in which the control plane hears from the data plane. Versioned;
//! readers ignore fields they do not know, writers never remove one within a version.

use serde::{Deserialize, Serialize};

/// Path on the internal listener.
pub const STATUS_PATH: &str = "/internal/v1/status";
/// Version that this build writes.
pub const STATUS_VERSION: &str = "internal.candela.dev/v1";

/// What a process says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// [`STATUS_VERSION`].
    pub api_version: String,
    /// `server`, `operator`, or `fetch` for the init step.
    pub component: String,
    /// Version of the binary.
    pub build: String,
    pub state: State,
    #[serde(default)]
    pub models: Vec<ModelStatus>,
    /// Every model with its state, those of the server's repository included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registry: Vec<RepositoryModel>,
    #[serde(default)]
    pub startup: Startup,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default)]
    pub requests: Requests,
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Loading,
    Ready,
    Draining,
    Failed,
}

/// Facts about a loaded model, read from the weights, never from the request for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    pub served_name: String,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// As in `config.json`, such as `LlamaForCausalLM`.
    pub architecture: String,
    pub parameters: u64,
    /// Bytes of the weight files.
    pub size_bytes: u64,
    /// Weights, KV cache and activations at the configured concurrency, in bytes.
    pub estimated_memory_bytes: u64,
    /// Storage type of most weights: `F32`, `F16`, `BF16`, `Q4_0`, …
    pub quantization: String,
    pub context_length: u32,
    /// What the model serves: `Generate`, `Embed`, `Rerank`, …; empty from servers that do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Commit that a revision resolved to, where the source knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// One version of one model in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryModel {
    pub name: String,
    pub version: u64,
    /// `Unavailable`, `Loading`, `Ready`, `Draining` or `Failed`.
    pub state: String,
    /// Why it is in that state; absent where that says everything.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// When it entered the state.
    pub since_unix_seconds: u64,
    /// What it takes, as estimated from its files, or may take while it is loaded.
    pub memory_bytes: u64,
    /// Engines that answer.
    pub instances: usize,
}

/// Seconds of the phases of the last start; a phase that has not ended is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Startup {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_seconds: Option<f64>,
    /// From process start to the first token that warm-up produced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_seconds: Option<f64>,
}

/// How far the present phase is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// `Fetch`, `Load` or `Warmup`.
    pub phase: String,
    pub done_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// Work at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// Admitted and not finished, waiting ones included.
    pub in_flight: u64,
    /// Of those, not yet running.
    pub queued: u64,
}
