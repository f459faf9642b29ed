//! `spec.batching`.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How many requests each replica works on at a time, per model.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxBatchTokens) || !has(self.maxSequences) || self.maxBatchTokens >= self.maxSequences")
        .message("batching.maxBatchTokens must not be below batching.maxSequences: every request that generates computes one token in each step")
)]
pub struct Batching {
    /// Tokens computed in one step, pieces of prompts included; absent = the server's own choice, at least `maxSequences`.
    /// More makes long prompts faster and the streams that run beside them less even.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 16 && self <= 65536").message("batching.maxBatchTokens must be a number of tokens from 16 to 65536"))]
    pub max_batch_tokens: Option<i32>,
    /// Requests that generate at the same time; absent = the server's own choice. Memory for the KV cache is estimated
    /// for all of them at full context: see `status.models[].estimatedMemory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1024").message("batching.maxSequences must be from 1 to 1024"))]
    pub max_sequences: Option<i32>,
    /// Requests that may wait for one of those; one more is answered 429 with `Retry-After`. Absent = the server's own
    /// choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65536").message("batching.maxQueue must be from 1 to 65536"))]
    pub max_queue: Option<i32>,
    /// Longest that a request may have to wait, as the server estimates it from what waits before it and from its speed
    /// so far; one that would wait longer is answered 429 with `Retry-After` at once. Absent = any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('100ms') && self <= duration('24h')").message("batching.maxWait must be from 100ms to 24h"))]
    pub max_wait: Option<Duration>,
}
