//! Weights on their way from a file to packed matrices.

use crate::{
    LoadError, Quantization,
    kernels::{Linear, PackedFormat, PackedMatrix, Pool, RawTensor},
    weights::{Role, Weights},
};

/// The files' weights, and what they become.
pub(crate) struct Source<'a> {
    pub(crate) weights: &'a mut dyn Weights,
    /// What 16- and 32-bit matrices become; `None` = what they are.
    pub(crate) quantization: Option<Quantization>,
    /// For messages.
    pub(crate) file: String,
    /// Weights that were quantised so far.
    quantized: u64,
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        weights: &'a mut dyn Weights,
        quantization: Option<Quantization>,
        file: String,
    ) -> Self {
        Self { weights, quantization, file, quantized: 0 }
    }

    /// The name of the type to which more than half of `parameters` were quantised, as GGUF has it.
    pub(crate) fn most_became(&self, parameters: u64) -> Option<&'static str> {
        let most = self.quantized > parameters / 2;
        self.quantization.filter(|_| most).map(Quantization::label)
    }

    /// Bytes that the packed matrix will hold.
    pub(super) fn packed_bytes(&self, role: Role, dims: (usize, usize)) -> Result<u64, LoadError> {
        let raw = self.weights.matrix(role, dims)?;
        Ok(match self.target(&raw) {
            Some(format) => PackedMatrix::bytes_as(format, raw.rows, raw.columns),
            None => PackedMatrix::bytes(raw.dtype, raw.rows, raw.columns),
        })
    }

    /// Matrices over one input as one product.
    pub(super) fn linear(
        &mut self,
        pool: &Pool,
        parts: &[(Role, (usize, usize))],
        bias: Option<Vec<f32>>,
    ) -> Result<Linear, LoadError> {
        let corrupt = |what: String| LoadError::corrupt(&self.file, what);
        let mut packed = Vec::with_capacity(parts.len());
        for &(role, dims) in parts {
            let raw = self.weights.matrix(role, dims)?;
            let n_bytes = raw.bytes.len() as u64;
            let matrix = match self.target(&raw) {
                Some(format) => {
                    self.quantized += (raw.rows as u64) * (raw.columns as u64);
                    PackedMatrix::quantize(&raw, format, pool)
                }
                None => PackedMatrix::pack(&raw, pool),
            };
            packed.push(matrix.map_err(corrupt)?);
            self.weights.converted(n_bytes);
        }
        Linear::new(packed, bias).map_err(corrupt)
    }

    /// Matrices whose rows are no whole number of blocks stay what they are, as llama.cpp's quantiser leaves them.
    fn target(&self, raw: &RawTensor<'_>) -> Option<PackedFormat> {
        let format = match self.quantization? {
            Quantization::Q8 => PackedFormat::Int8,
            Quantization::Q4 => PackedFormat::Int4,
        };
        (raw.dtype.is_dense() && raw.columns.is_multiple_of(32)).then_some(format)
    }
}
