//! What to load and within which limits.

use std::{path::PathBuf, time::Duration};

pub use crate::kernels::KvType;

/// Where a model's files are.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder in Hugging Face layout: `config.json`, `tokenizer.json`, safetensors, optionally a chat template.
    Folder(PathBuf),
    /// One GGUF file, which carries its tokenizer and chat template.
    GgufFile(PathBuf),
    /// The files of such a folder, compiled into the binary.
    Embedded(&'static [EmbeddedFile]),
}

/// One file compiled into the binary (`include_bytes!`).
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedFile {
    pub name: &'static str,
    pub bytes: &'static [u8],
}

/// Limits of one engine. Each one is enforced.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Upper bound on prompt plus output, in tokens; `None` = what the model was made for.
    /// More than the model was made for is refused.
    pub context_length: Option<u32>,
    /// Sequences that generate at the same time, as far as the KV cache has room for them.
    pub max_sequences: usize,
    /// Requests that may wait for a sequence slot; one more is answered [`crate::SubmitError::QueueFull`].
    pub max_queue: usize,
    /// Prompt tokens that may wait, of all waiting requests together; a request that waits alone may have more. `None` =
    /// as many as `max_queue` requests have.
    pub max_queue_tokens: Option<usize>,
    /// How long a request may have to wait for a slot, as estimated from what waits before it and from the speed so
    /// far. `None` = any time.
    pub max_wait: Option<Duration>,
    /// Tokens computed in one step, prompt chunks included: bounds how long a step takes, hence how late a
    /// cancellation or a deadline is noticed and how long a prompt may stall the streams that run beside it.
    pub step_tokens: usize,
    /// Loading is refused with [`crate::LoadError::OutOfMemory`] if weights, KV cache and activations are
    /// estimated to need more; `None` = no check.
    pub memory_limit_bytes: Option<u64>,
    /// Threads that compute, the engine's own included; `None` = as many as the process may run at once.
    pub threads: Option<usize>,
    /// Tokens whose keys and values are held at most, over all sequences; rounded up to whole blocks of 32. `None` =
    /// every sequence at its full context, or less if the memory limit leaves less, but at least one full context.
    pub kv_cache_tokens: Option<usize>,
    /// How keys and values are stored.
    pub kv_type: KvType,
    /// What 16- and 32-bit matrices become when they are loaded; `None` = they stay what they are. Weights that are
    /// quantised already are not touched.
    pub quantization: Option<Quantization>,
}

/// Types to quantise weights to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8 bits per weight and a 16-bit scale per 32 of them, as GGUF's Q8_0.
    Q8,
    /// 4 bits per weight and a 16-bit scale per 32 of them, as GGUF's Q4_0.
    Q4,
}

impl Quantization {
    /// As GGUF names it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Q8 => "Q8_0",
            Self::Q4 => "Q4_0",
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            context_length: None,
            max_sequences: 8,
            max_queue: 64,
            max_queue_tokens: None,
            max_wait: None,
            step_tokens: 128,
            memory_limit_bytes: None,
            threads: None,
            kv_cache_tokens: None,
            kv_type: KvType::F16,
            quantization: None,
        }
    }
}
