//! Safetensors, one file or several named by an index. Stored f16 and bf16 are widened to f32 when read: candle's
//! bf16 product widens the whole matrix on every call, which is six times slower than computing in f32.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use super::{Matrix, Part, Role, Weights, dense};
use crate::{
    LoadError,
    files::{Bytes, Files},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const FETCH_HINT: &str =
    "the folder needs `model.safetensors`, or `model.safetensors.index.json` with all its shards";

/// All weight files of a folder, headers read and checked.
pub(crate) struct SafetensorsFiles<'p> {
    files: Vec<WeightFile>,
    /// Which file holds a tensor.
    holders: HashMap<String, usize>,
    /// Called with the bytes that were converted.
    progress: Box<dyn FnMut(u64) + 'p>,
}

struct WeightFile {
    name: String,
    bytes: Bytes,
    header: Metadata,
    /// Where tensor data begins.
    data_start: usize,
}

impl<'p> SafetensorsFiles<'p> {
    pub(crate) fn open(files: &Files) -> Result<Self, LoadError> {
        let (names, index) = if files.contains(INDEX) {
            let index = read_index(files)?;
            (index.values().cloned().collect::<BTreeSet<_>>(), Some(index))
        } else if files.contains(SINGLE) {
            (BTreeSet::from([SINGLE.to_owned()]), None)
        } else {
            return Err(missing(files));
        };
        let files =
            names.into_iter().map(|name| WeightFile::open(files, name)).collect::<Result<Vec<_>, _>>()?;
        let mut holders = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for tensor in file.header.tensors().into_keys() {
                if let Some(first) = holders.insert(tensor.clone(), i) {
                    let what = format!("tensor `{tensor}` is in `{}` too", files[first].name);
                    return Err(LoadError::corrupt(&file.name, what));
                }
            }
        }
        for (tensor, shard) in index.iter().flatten() {
            let held = holders.get(tensor).is_some_and(|&i| files[i].name == *shard);
            if !held {
                return Err(LoadError::corrupt(INDEX, format!("`{shard}` does not hold tensor `{tensor}`")));
            }
        }
        Ok(Self { files, holders, progress: Box::new(|_| ()) })
    }

    pub(crate) fn on_progress(&mut self, progress: Box<dyn FnMut(u64) + 'p>) {
        self.progress = progress;
    }

    /// Name and bytes of each file, sorted by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), &*file.bytes))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.len() as u64).sum()
    }

    /// All elements of all tensors, and the type that most of them are stored in.
    pub(crate) fn parameters(&self) -> (u64, String) {
        let mut by_type = BTreeMap::<String, u64>::new();
        for info in self.files.iter().flat_map(|file| file.header.tensors().into_values()) {
            let n: usize = info.shape.iter().product();
            *by_type.entry(format!("{:?}", info.dtype)).or_default() += n as u64;
        }
        let total = by_type.values().sum();
        let most = by_type.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name);
        (total, most)
    }

    fn locate(&self, role: Role, shape: &[usize]) -> Result<(&WeightFile, Dtype, &[u8]), LoadError> {
        let name = tensor_name(role);
        let Some(file) = self.holders.get(&name).map(|&i| &self.files[i]) else {
            return Err(LoadError::corrupt(&self.files[0].name, format!("tensor `{name}` is missing")));
        };
        let info = file.header.info(&name).ok_or_else(|| LoadError::corrupt(&file.name, "header changed"))?;
        if info.shape != shape {
            let what =
                format!("tensor `{name}` has shape {:?}, `config.json` asks for {shape:?}", info.shape);
            return Err(LoadError::corrupt(&file.name, what));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(LoadError::unsupported(
                &file.name,
                format!("tensor `{name}` of type {:?}", info.dtype),
                "convert the weights to F32, F16 or BF16 safetensors, or use a GGUF file",
            ));
        }
        let (start, end) = info.data_offsets;
        let data = start
            .checked_add(self.data_start(file))
            .zip(end.checked_add(self.data_start(file)))
            .and_then(|(start, end)| file.bytes.get(start..end))
            .ok_or_else(|| LoadError::corrupt(&file.name, format!("tensor `{name}` lies past the end")))?;
        Ok((file, info.dtype, data))
    }

    fn data_start(&self, file: &WeightFile) -> usize {
        file.data_start
    }

    fn read(&mut self, role: Role, shape: &[usize]) -> Result<Tensor, LoadError> {
        let (file, dtype, data) = self.locate(role, shape)?;
        let values: Vec<f32> = match dtype {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => data.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        };
        let (name, n_bytes) = (file.name.clone(), data.len() as u64);
        let tensor = dense(values, shape).map_err(|e| LoadError::corrupt(&name, e.to_string()))?;
        (self.progress)(n_bytes);
        Ok(tensor)
    }
}

impl Weights for SafetensorsFiles<'_> {
    fn contains(&self, role: Role) -> bool {
        self.holders.contains_key(&tensor_name(role))
    }

    fn matrix_bytes(&self, role: Role, (rows, columns): (usize, usize)) -> Result<u64, LoadError> {
        self.locate(role, &[rows, columns])?;
        Ok(4 * rows as u64 * columns as u64)
    }

    fn matrix(&mut self, role: Role, (rows, columns): (usize, usize)) -> Result<Matrix, LoadError> {
        self.read(role, &[rows, columns]).map(Matrix::Dense)
    }

    fn vector(&mut self, role: Role, len: usize) -> Result<Tensor, LoadError> {
        self.read(role, &[len])
    }
}

impl WeightFile {
    fn open(files: &Files, name: String) -> Result<Self, LoadError> {
        let bytes = files.open(&name, FETCH_HINT)?;
        // The crate bounds the header by the file and by 100 MB, and checks that shapes, types and offsets agree
        // and cover the data without gaps, before anything is allocated for tensors.
        let (header_len, header) =
            SafeTensors::read_metadata(&bytes).map_err(|e| LoadError::corrupt(&name, e.to_string()))?;
        let data_start = header_len.saturating_add(8);
        Ok(Self { name, bytes, header, data_start })
    }
}

fn read_index(files: &Files) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let map = files.parsed::<Index>(INDEX)?.map(|index| index.weight_map).unwrap_or_default();
    if map.is_empty() {
        return Err(LoadError::corrupt(INDEX, "`weight_map` is not an object with entries"));
    }
    match map.iter().find(|(_, shard)| !shard.ends_with(".safetensors")) {
        Some((tensor, shard)) => Err(LoadError::corrupt(
            INDEX,
            format!("`weight_map.{tensor}` is not a safetensors file: {shard}"),
        )),
        None => Ok(map),
    }
}

fn missing(files: &Files) -> LoadError {
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"] {
        if files.contains(name) {
            return LoadError::unsupported(
                name,
                "PyTorch's pickle format",
                "use a revision with safetensors, or save the model with `save_pretrained(safe_serialization=True)`",
            );
        }
    }
    LoadError::NotFound { file: SINGLE.to_owned(), hint: FETCH_HINT.to_owned() }
}

fn tensor_name(role: Role) -> String {
    let (layer, part) = match role {
        Role::Embedding => return "model.embed_tokens.weight".to_owned(),
        Role::FinalNorm => return "model.norm.weight".to_owned(),
        Role::Head => return "lm_head.weight".to_owned(),
        // Not stored in this format: `config.json` says it.
        Role::RopeFactors => return String::new(),
        Role::Layer(layer, part) => (layer, part),
    };
    let part = match part {
        Part::AttentionNorm => "input_layernorm.weight",
        Part::Query => "self_attn.q_proj.weight",
        Part::QueryBias => "self_attn.q_proj.bias",
        Part::Key => "self_attn.k_proj.weight",
        Part::KeyBias => "self_attn.k_proj.bias",
        Part::Value => "self_attn.v_proj.weight",
        Part::ValueBias => "self_attn.v_proj.bias",
        Part::Output => "self_attn.o_proj.weight",
        Part::OutputBias => "self_attn.o_proj.bias",
        Part::FeedForwardNorm => "post_attention_layernorm.weight",
        Part::Gate => "mlp.gate_proj.weight",
        Part::GateBias => "mlp.gate_proj.bias",
        Part::Up => "mlp.up_proj.weight",
        Part::UpBias => "mlp.up_proj.bias",
        Part::Down => "mlp.down_proj.weight",
        Part::DownBias => "mlp.down_proj.bias",
    };
    format!("model.layers.{layer}.{part}")
}
