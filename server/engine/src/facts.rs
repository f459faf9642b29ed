//! What a loaded model is, read from its files.

/// Facts about a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// `sha256:` and 64 hex digits: of the file for one-file models, for a folder of the list of lines
    /// `SHA256  NAME\n` over its weight files, sorted by name.
    pub digest: String,
    /// As in `config.json`, such as `LlamaForCausalLM`; for GGUF `general.architecture`, such as `llama`.
    pub architecture: String,
    pub parameters: u64,
    /// Bytes of the weight files.
    pub size_bytes: u64,
    /// Type of most weights in memory: that of the files (`F32`, `F16`, `BF16`, `Q4_0`, …), or what they were quantised to.
    pub quantization: String,
    /// Prompt plus output, in tokens, after [`crate::EngineConfig::context_length`].
    pub context_length: u32,
    pub vocabulary_size: u32,
    pub has_chat_template: bool,
    pub memory: Memory,
}

/// Estimated memory at the configured concurrency, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub weights_bytes: u64,
    /// All sequences at full context.
    pub kv_bytes: u64,
    pub activations_bytes: u64,
}

impl Memory {
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.activations_bytes)
    }
}
