//! The families of decoders that one graph computes, and how each departs from Llama.

/// Who defined the graph. Everything that differs between families and is not a number of the config is a method here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Llama 2 and 3, SmolLM, and what else calls itself Llama.
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
}

/// Family, `model_type` and class in `config.json`, `general.architecture` in GGUF.
const NAMES: [(Family, &str, &str, &str); 7] = [
    (Family::Llama, "llama", "LlamaForCausalLM", "llama"),
    // llama.cpp's converter writes Mistral as Llama.
    (Family::Mistral, "mistral", "MistralForCausalLM", ""),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM", "qwen2"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM", "qwen3"),
    (Family::Gemma2, "gemma2", "Gemma2ForCausalLM", "gemma2"),
    (Family::Gemma3, "gemma3_text", "Gemma3ForCausalLM", "gemma3"),
    (Family::Phi3, "phi3", "Phi3ForCausalLM", "phi3"),
];

impl Family {
    /// From `model_type` and the first of `architectures`, of which one may be empty.
    pub(crate) fn from_hf(model_type: &str, class: &str) -> Option<Self> {
        let of_type = NAMES.iter().find(|names| names.1 == model_type);
        let of_class = NAMES.iter().find(|names| names.2 == class);
        match (of_type, of_class) {
            // A Mistral fine-tune under Llama's class, and the other way round, are around.
            (Some(a), Some(_)) if matches!(a.0, Self::Llama | Self::Mistral) => Some(a.0),
            (Some(a), Some(b)) if a.0 == b.0 => Some(a.0),
            (Some(a), None) if class.is_empty() => Some(a.0),
            (None, Some(b)) if model_type.is_empty() => Some(b.0),
            _ => None,
        }
    }

    pub(crate) fn from_gguf(architecture: &str) -> Option<Self> {
        NAMES.iter().find(|names| names.3 == architecture && !architecture.is_empty()).map(|names| names.0)
    }

    pub(crate) fn class(self) -> &'static str {
        NAMES.iter().find(|names| names.0 == self).map_or("", |names| names.2)
    }

    /// All classes, for messages.
    pub(crate) fn classes() -> String {
        NAMES.map(|names| names.2).join(", ")
    }

    /// All GGUF architectures, for messages.
    pub(crate) fn ggufs() -> String {
        let known: Vec<_> = NAMES.iter().map(|names| names.3).filter(|name| !name.is_empty()).collect();
        known.join(", ")
    }

    pub(crate) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// What attention and feed-forward add to the residual is normed first.
    pub(crate) fn has_post_norms(self) -> bool {
        self.is_gemma()
    }

    /// Queries and keys are normed per head before they are rotated.
    pub(crate) fn has_query_key_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Query, key and value are stored as one matrix, gate and up as another.
    pub(crate) fn is_fused(self) -> bool {
        self == Self::Phi3
    }

    /// Hugging Face stores the weights of norms less one; GGUF stores them whole.
    pub(crate) fn norms_are_offsets(self) -> bool {
        self.is_gemma()
    }

    /// llama.cpp's converter reorders queries and keys so that rotated pairs are neighbours.
    pub(crate) fn gguf_is_interleaved(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral)
    }

    /// Queries, keys and values have biases whatever the config says.
    pub(crate) fn has_qkv_bias(self) -> bool {
        self == Self::Qwen2
    }

    /// Of `pattern` neighbouring layers, all but the last see a window only.
    pub(crate) fn default_pattern(self) -> Option<usize> {
        match self {
            Self::Gemma2 => Some(2),
            Self::Gemma3 => Some(6),
            _ => None,
        }
    }
}
