//! Weights as they lie in a file.

use candle_core::{
    Device,
    quantized::{GgmlDType, ggml_file::qtensor_from_ggml},
};
use half::{bf16, f16};

/// How elements are stored: floats, or blocks of GGML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// A matrix, row-major. `bytes` has exactly the size of its elements and need not be aligned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawTensor<'a> {
    pub(crate) dtype: StoredType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: &'a [u8],
}

impl StoredType {
    pub(crate) fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// As llama.cpp names it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }

    /// Bytes of a row; `columns` is a whole number of blocks.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        columns / self.ggml().block_size() * self.ggml().type_size()
    }
}

impl<'a> RawTensor<'a> {
    /// The bytes of row `i`.
    pub(crate) fn row(&self, i: usize) -> &'a [u8] {
        let n = self.dtype.row_bytes(self.columns);
        &self.bytes[i * n..(i + 1) * n]
    }

    /// Row `i` in f32, exactly as the format defines it. `out` is as long as the row.
    pub(crate) fn widen_row(&self, i: usize, out: &mut [f32]) {
        let bytes = self.row(i);
        match self.dtype {
            StoredType::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            StoredType::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            StoredType::BF16 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
            StoredType::Q8_0 => {
                for (out, block) in out.chunks_mut(32).zip(bytes.as_chunks::<34>().0) {
                    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (out, q) in out.iter_mut().zip(&block[2..]) {
                        *out = d * f32::from(*q as i8);
                    }
                }
            }
            _ => {
                let widened = qtensor_from_ggml(self.dtype.ggml(), bytes, vec![self.columns], &Device::Cpu)
                    .and_then(|blocks| blocks.dequantize(&Device::Cpu)?.to_vec1::<f32>())
                    .expect("the bytes are whole blocks of the row");
                out.copy_from_slice(&widened);
            }
        }
    }
}
