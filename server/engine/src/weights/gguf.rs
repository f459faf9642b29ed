//! Weights of a GGUF file. Quantised tensors stay in their blocks; F32, F16 and BF16 become f32.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, ggml_file::qtensor_from_ggml},
};

pub(crate) use super::gguf_reader::Header;
use super::{Matrix, Part, Role, Weights, gguf_reader::TensorInfo};
use crate::{
    LoadError,
    files::{self, Bytes},
};

/// An opened GGUF file.
pub(crate) struct GgufFile<'p> {
    pub(crate) name: String,
    pub(crate) bytes: Bytes,
    pub(crate) header: Header,
    progress: Box<dyn FnMut(u64) + 'p>,
}

impl<'p> GgufFile<'p> {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let bytes = files::open_path(path)
            .map_err(|e| LoadError::io(&path.display().to_string(), e, "check the path of the GGUF file"))?;
        let header = Header::read(&bytes).map_err(|e| LoadError::corrupt(&name, e))?;
        Ok(Self { name, bytes, header, progress: Box::new(|_| ()) })
    }

    pub(crate) fn on_progress(&mut self, progress: Box<dyn FnMut(u64) + 'p>) {
        self.progress = progress;
    }

    /// All elements of all tensors, and the type that most of them are stored in.
    pub(crate) fn parameters(&self) -> (u64, String) {
        let mut by_type = BTreeMap::<String, u64>::new();
        for info in self.header.tensors.values() {
            let n: usize = info.shape.iter().product();
            *by_type.entry(type_label(info.dtype)).or_default() += n as u64;
        }
        let total = by_type.values().sum();
        let most = by_type.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name);
        (total, most)
    }

    fn locate(&self, role: Role, shape: &[usize]) -> Result<&TensorInfo, LoadError> {
        let name = tensor_name(role);
        let info = self
            .header
            .tensors
            .get(&name)
            .ok_or_else(|| LoadError::corrupt(&self.name, format!("tensor `{name}` is missing")))?;
        if info.shape != shape {
            let what = format!("tensor `{name}` has shape {:?}, the metadata ask for {shape:?}", info.shape);
            return Err(LoadError::corrupt(&self.name, what));
        }
        Ok(info)
    }

    fn read(&mut self, role: Role, shape: &[usize]) -> Result<QTensor, LoadError> {
        let info = self.locate(role, shape)?;
        // The reader checked the range, that it is aligned to at least 8 bytes and that it has exactly the size
        // of the blocks, which is what this function relies on.
        let raw = &self.bytes[info.start..info.end];
        let tensor = qtensor_from_ggml(info.dtype, raw, shape.to_vec(), &Device::Cpu)
            .map_err(|e| LoadError::corrupt(&self.name, format!("tensor `{}`: {e}", tensor_name(role))))?;
        let n_bytes = raw.len() as u64;
        (self.progress)(n_bytes);
        Ok(tensor)
    }

    fn dequantize(&self, tensor: &QTensor) -> Result<Tensor, LoadError> {
        tensor.dequantize(&Device::Cpu).map_err(|e| LoadError::corrupt(&self.name, e.to_string()))
    }
}

impl Weights for GgufFile<'_> {
    fn contains(&self, role: Role) -> bool {
        self.header.tensors.contains_key(&tensor_name(role))
    }

    fn matrix_bytes(&self, role: Role, (rows, columns): (usize, usize)) -> Result<u64, LoadError> {
        let info = self.locate(role, &[rows, columns])?;
        let stored = (info.end - info.start) as u64;
        // candle keeps a repacked copy beside these, built at the first product, when whole tiles fit.
        let packs = rows % 16 == 0 && columns % 256 == 0;
        Ok(match info.dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => 4 * rows as u64 * columns as u64,
            GgmlDType::Q4K if packs => stored + stored * 4 / 3,
            GgmlDType::Q8_0 | GgmlDType::Q6K if packs => stored + stored * 3 / 2,
            _ => stored,
        })
    }

    fn matrix(&mut self, role: Role, (rows, columns): (usize, usize)) -> Result<Matrix, LoadError> {
        let tensor = self.read(role, &[rows, columns])?;
        Ok(match tensor.dtype() {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => Matrix::Dense(self.dequantize(&tensor)?),
            _ => Matrix::Quantized(Arc::new(tensor)),
        })
    }

    fn vector(&mut self, role: Role, len: usize) -> Result<Tensor, LoadError> {
        let tensor = self.read(role, &[len])?;
        self.dequantize(&tensor)
    }
}

/// As llama.cpp names it.
fn type_label(dtype: GgmlDType) -> String {
    let label = format!("{dtype:?}");
    match label.strip_suffix('K') {
        Some(bits) => format!("{bits}_K"),
        None => label,
    }
}

fn tensor_name(role: Role) -> String {
    let (layer, part) = match role {
        Role::Embedding => return "token_embd.weight".to_owned(),
        Role::FinalNorm => return "output_norm.weight".to_owned(),
        Role::Head => return "output.weight".to_owned(),
        Role::RopeFactors => return "rope_freqs.weight".to_owned(),
        Role::Layer(layer, part) => (layer, part),
    };
    let part = match part {
        Part::AttentionNorm => "attn_norm.weight",
        Part::Query => "attn_q.weight",
        Part::QueryBias => "attn_q.bias",
        Part::Key => "attn_k.weight",
        Part::KeyBias => "attn_k.bias",
        Part::Value => "attn_v.weight",
        Part::ValueBias => "attn_v.bias",
        Part::Output => "attn_output.weight",
        Part::OutputBias => "attn_output.bias",
        Part::FeedForwardNorm => "ffn_norm.weight",
        Part::Gate => "ffn_gate.weight",
        Part::GateBias => "ffn_gate.bias",
        Part::Up => "ffn_up.weight",
        Part::UpBias => "ffn_up.bias",
        Part::Down => "ffn_down.weight",
        Part::DownBias => "ffn_down.bias",
    };
    format!("blk.{layer}.{part}")
}
