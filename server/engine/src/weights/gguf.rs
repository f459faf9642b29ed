//! Weights of a GGUF file, as they are stored.

use std::{collections::BTreeMap, path::Path};

use candle_core::quantized::GgmlDType;

pub(crate) use super::gguf_reader::Header;
use super::{Part, Role, Weights, gguf_reader::TensorInfo};
use crate::{
    LoadError,
    files::{self, Bytes},
    kernels::{RawTensor, StoredType},
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

    /// Whether the file holds a tensor that has no role in the graph.
    pub(crate) fn names_tensor(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }
}

impl Weights for GgufFile<'_> {
    fn contains(&self, role: Role) -> bool {
        self.names_tensor(&tensor_name(role))
    }

    fn matrix(&self, role: Role, (rows, columns): (usize, usize)) -> Result<RawTensor<'_>, LoadError> {
        let info = self.locate(role, &[rows, columns])?;
        // The reader checked the range, and that it has exactly the size of the blocks.
        let bytes = &self.bytes[info.start..info.end];
        Ok(RawTensor { dtype: stored(info.dtype), rows, columns, bytes })
    }

    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
        let info = self.locate(role, &[len])?;
        let bytes = &self.bytes[info.start..info.end];
        let mut values = vec![0.0; len];
        RawTensor { dtype: stored(info.dtype), rows: 1, columns: len, bytes }.widen_row(0, &mut values);
        Ok(values)
    }

    fn converted(&mut self, n_bytes: u64) {
        (self.progress)(n_bytes);
    }
}

fn stored(dtype: GgmlDType) -> StoredType {
    match dtype {
        GgmlDType::F16 => StoredType::F16,
        GgmlDType::BF16 => StoredType::BF16,
        GgmlDType::Q4_0 => StoredType::Q4_0,
        GgmlDType::Q4_1 => StoredType::Q4_1,
        GgmlDType::Q5_0 => StoredType::Q5_0,
        GgmlDType::Q5_1 => StoredType::Q5_1,
        GgmlDType::Q8_0 => StoredType::Q8_0,
        GgmlDType::Q2K => StoredType::Q2K,
        GgmlDType::Q3K => StoredType::Q3K,
        GgmlDType::Q4K => StoredType::Q4K,
        GgmlDType::Q5K => StoredType::Q5K,
        GgmlDType::Q6K => StoredType::Q6K,
        // The reader's own list ends here: Q8_1 and Q8_K are types of activations and are never stored.
        GgmlDType::F32 | GgmlDType::Q8_1 | GgmlDType::Q8K => StoredType::F32,
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
        Role::RopeFactorsShort => return "rope_factors_short.weight".to_owned(),
        Role::RopeFactorsLong => return "rope_factors_long.weight".to_owned(),
        Role::Layer(layer, part) => (layer, part),
    };
    let part = match part {
        Part::AttentionNorm => "attn_norm.weight",
        Part::Query => "attn_q.weight",
        Part::QueryBias => "attn_q.bias",
        Part::QueryNorm => "attn_q_norm.weight",
        Part::Key => "attn_k.weight",
        Part::KeyBias => "attn_k.bias",
        Part::KeyNorm => "attn_k_norm.weight",
        Part::Value => "attn_v.weight",
        Part::ValueBias => "attn_v.bias",
        Part::QueryKeyValue => "attn_qkv.weight",
        Part::Output => "attn_output.weight",
        Part::OutputBias => "attn_output.bias",
        Part::PostAttentionNorm => "post_attention_norm.weight",
        Part::FeedForwardNorm => "ffn_norm.weight",
        Part::Gate => "ffn_gate.weight",
        Part::GateBias => "ffn_gate.bias",
        Part::Up => "ffn_up.weight",
        Part::UpBias => "ffn_up.bias",
        // Phi-3's `ffn_up` holds the gate too, in front.
        Part::GateUp => "ffn_up.weight",
        Part::Down => "ffn_down.weight",
        Part::DownBias => "ffn_down.bias",
        Part::PostFeedForwardNorm => "post_ffw_norm.weight",
    };
    format!("blk.{layer}.{part}")
}
