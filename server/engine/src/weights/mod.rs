//! Tensors by their role, from whichever format holds them.

pub(crate) mod folder;
pub(crate) mod gguf;
mod gguf_reader;
mod pickle;
mod pytorch;
mod safetensors;

use crate::{LoadError, kernels::RawTensor};

/// The role of a tensor in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    FinalNorm,
    Head,
    /// GGUF only: divisors of the RoPE frequencies (how it stores Llama 3 scaling).
    RopeFactors,
    /// GGUF only: LongRoPE's two sets of them.
    RopeFactorsShort,
    RopeFactorsLong,
    Layer(usize, Part),
}

/// A tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    AttentionNorm,
    Query,
    QueryBias,
    QueryNorm,
    Key,
    KeyBias,
    KeyNorm,
    Value,
    ValueBias,
    /// Query, key and value in one (Phi-3).
    QueryKeyValue,
    Output,
    OutputBias,
    /// Of what attention adds to the residual (Gemma).
    PostAttentionNorm,
    FeedForwardNorm,
    Gate,
    GateBias,
    Up,
    UpBias,
    /// Gate and up in one (Phi-3).
    GateUp,
    Down,
    DownBias,
    /// Of what the feed-forward adds to the residual (Gemma).
    PostFeedForwardNorm,
}

/// Where weights come from. Shapes are `(rows, columns)` as in PyTorch: a matrix maps columns to rows.
pub(crate) trait Weights {
    fn contains(&self, role: Role) -> bool;
    /// A matrix as it is stored; its shape and the place of its bytes are checked.
    fn matrix(&self, role: Role, shape: (usize, usize)) -> Result<RawTensor<'_>, LoadError>;
    /// A vector in f32, as the graph multiplies with it.
    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError>;
    /// `n_bytes` of the files became weights in memory.
    fn converted(&mut self, n_bytes: u64);
}
