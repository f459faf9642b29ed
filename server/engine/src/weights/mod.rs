//! Tensors by their role, from whichever format holds them.

pub(crate) mod gguf;
mod gguf_reader;
pub(crate) mod safetensors;

use std::sync::Arc;

use candle_core::{
    DType, Device, Result as CandleResult, Tensor,
    quantized::{QMatMul, QTensor},
};

use crate::LoadError;

/// The role of a tensor in a Llama-shaped model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    FinalNorm,
    Head,
    /// GGUF only: divisors of the RoPE frequencies (how it stores Llama 3 scaling).
    RopeFactors,
    Layer(usize, Part),
}

/// A tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    AttentionNorm,
    Query,
    QueryBias,
    Key,
    KeyBias,
    Value,
    ValueBias,
    Output,
    OutputBias,
    FeedForwardNorm,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
}

/// Where weights come from. Shapes are `(rows, columns)` as in PyTorch: a matrix maps columns to rows.
pub(crate) trait Weights {
    fn contains(&self, role: Role) -> bool;
    /// Bytes that [`Weights::matrix`] would hold in memory, with what its products build beside it.
    fn matrix_bytes(&self, role: Role, shape: (usize, usize)) -> Result<u64, LoadError>;
    fn matrix(&mut self, role: Role, shape: (usize, usize)) -> Result<Matrix, LoadError>;
    fn vector(&mut self, role: Role, len: usize) -> Result<Tensor, LoadError>;
}

/// A weight matrix in f32 or in its quantised blocks.
#[derive(Clone)]
pub(crate) enum Matrix {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
}

impl Matrix {
    /// Rows `ids` of the matrix, in f32.
    pub(crate) fn rows(&self, ids: &Tensor) -> CandleResult<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0),
            Self::Quantized(weight) => weight.embedding(ids),
        }
    }

    pub(crate) fn into_product(self) -> CandleResult<Product> {
        Ok(match self {
            Self::Dense(weight) => Product::Dense(weight.t()?),
            Self::Quantized(weight) => Product::Quantized(QMatMul::from_arc(weight)?),
        })
    }
}

/// `x · Wᵀ`.
pub(crate) enum Product {
    /// The transposed view of a dense matrix.
    Dense(Tensor),
    Quantized(QMatMul),
}

impl Product {
    /// `x` is `(n, columns)`, the result `(n, rows)`.
    pub(crate) fn apply(&self, x: &Tensor) -> CandleResult<Tensor> {
        match self {
            Self::Dense(transposed) => x.matmul(transposed),
            Self::Quantized(weight) => x.apply(weight),
        }
    }
}

/// f32 values as a tensor on the CPU.
pub(crate) fn dense(values: Vec<f32>, shape: &[usize]) -> CandleResult<Tensor> {
    debug_assert_eq!(DType::F32.size_in_bytes(), 4);
    Tensor::from_vec(values, shape, &Device::Cpu)
}
