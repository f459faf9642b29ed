//! Why a model could not be loaded, and why text could not be turned into tokens.

use std::io;

/// What loading is busy with, for progress reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadPhase {
    /// Headers and digests.
    Verify,
    /// Weights are being read and converted.
    Weights,
}

/// How far a load is. Both numbers grow with bytes of the weight files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    pub phase: LoadPhase,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Why loading failed. Each variant names the file (and the field, tensor or key in it) and the way out.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that a model needs is not there.
    #[error("`{file}` not found: {hint}")]
    NotFound { file: String, hint: String },
    /// The files are what they claim to be, but this build cannot serve them.
    #[error("`{file}`: {what} is not supported; {hint}")]
    Unsupported { file: String, what: String, hint: String },
    /// The files contradict themselves or their format.
    #[error("`{file}` is corrupt: {what}; fetch it again or compare its checksum")]
    Corrupt { file: String, what: String },
    /// The limits that were asked for do not fit the model.
    #[error("`{field}`: {what}")]
    InvalidConfig { field: &'static str, what: String },
    /// The model does not fit into the memory limit.
    #[error(
        "the model needs about {needed_bytes} bytes ({weights_bytes} of weights, {kv_bytes} of KV cache for \
         {kv_tokens} tokens), the limit is {limit_bytes}; raise the memory limit, lower `contextLength` or choose a \
         quantised model"
    )]
    OutOfMemory { needed_bytes: u64, limit_bytes: u64, weights_bytes: u64, kv_bytes: u64, kv_tokens: usize },
    /// A file is there but cannot be read.
    #[error("cannot read `{file}`")]
    Io {
        file: String,
        #[source]
        source: io::Error,
    },
    /// The engine's thread could not be started.
    #[error("cannot start the engine thread")]
    Thread(#[source] io::Error),
}

impl LoadError {
    pub(crate) fn corrupt(file: &str, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_owned(), what: what.into() }
    }

    pub(crate) fn unsupported(file: &str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_owned(), what: what.into(), hint: hint.into() }
    }

    /// `NotFound` when the system says so, otherwise `Io`.
    pub(crate) fn io(file: &str, source: io::Error, hint: &str) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { file: file.to_owned(), hint: hint.to_owned() },
            _ => Self::Io { file: file.to_owned(), source },
        }
    }
}

/// Why text could not be rendered or tokenised. `Tokenizer` is our affair, the others are
/// the client's (400).
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("the model has no chat template; use the completions endpoint, or a model with `chat_template`")]
    NoChatTemplate,
    /// The template refused these messages (`raise_exception`) or failed on them.
    #[error("the model's chat template refused the messages: {0}")]
    ChatTemplate(String),
    #[error("text of {bytes} bytes exceeds the {limit_bytes} that a context of this model can hold")]
    TooLong { bytes: usize, limit_bytes: usize },
    #[error(
        "a text of {tokens} tokens, where the model takes {max_tokens}; shorten it, or ask for it to be cut (`truncate`)"
    )]
    TooManyTokens { tokens: usize, max_tokens: usize },
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}
