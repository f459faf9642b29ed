//! The weight files of a folder in Hugging Face layout: safetensors or PyTorch's state dicts, one file or several named
//! by an index. Tensors stay where they lie in the mapped files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use super::{Part, Role, Weights, pytorch, safetensors};
use crate::{
    LoadError,
    files::{Bytes, Files},
    kernels::{RawTensor, StoredType},
};

/// One file, or the index that names several.
const LAYOUTS: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];
const FETCH_HINT: &str = "the folder needs `model.safetensors` or `pytorch_model.bin`, or the index \
    (`model.safetensors.index.json`) with all its shards";

/// All weight files of a folder, headers read and checked.
pub(crate) struct FolderWeights<'p> {
    files: Vec<WeightFile>,
    /// Which file holds a tensor.
    holders: HashMap<String, usize>,
    /// How the family names and stores what the roles do not say.
    conventions: Conventions,
    /// Called with the bytes that were converted.
    progress: Box<dyn FnMut(u64) + 'p>,
}

/// What differs between families in the same format.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Conventions {
    /// `post_attention_layernorm` is what it says, and the feed-forward has norms before and behind (Gemma). Elsewhere
    /// that name is the feed-forward's own norm.
    pub(crate) post_norms: bool,
    /// Weights of norms are stored less one (Gemma).
    pub(crate) norms_are_offsets: bool,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// `None` = of a type that no weights have; it may be there, but cannot be used.
    pub(super) dtype: Option<StoredType>,
    /// The type as the format names it.
    pub(super) label: String,
    pub(super) shape: Vec<usize>,
    /// Of its elements in the file, checked against the file and the shape.
    pub(super) range: Range<usize>,
}

struct WeightFile {
    name: String,
    bytes: Bytes,
    tensors: HashMap<String, Entry>,
}

impl<'p> FolderWeights<'p> {
    pub(crate) fn open(files: &Files) -> Result<Self, LoadError> {
        let (names, index) = shards(files)?;
        let files =
            names.into_iter().map(|name| WeightFile::open(files, name)).collect::<Result<Vec<_>, _>>()?;
        let mut holders = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for tensor in file.tensors.keys() {
                if let Some(first) = holders.insert(tensor.clone(), i) {
                    let what = format!("tensor `{tensor}` is in `{}` too", files[first].name);
                    return Err(LoadError::corrupt(&file.name, what));
                }
            }
        }
        for (name, tensor, shard) in
            index.iter().flat_map(|(name, map)| map.iter().map(move |(t, s)| (name, t, s)))
        {
            let held = holders.get(tensor).is_some_and(|&i| files[i].name == *shard);
            if !held {
                return Err(LoadError::corrupt(name, format!("`{shard}` does not hold tensor `{tensor}`")));
            }
        }
        Ok(Self { files, holders, conventions: Conventions::default(), progress: Box::new(|_| ()) })
    }

    pub(crate) fn on_progress(&mut self, progress: Box<dyn FnMut(u64) + 'p>) {
        self.progress = progress;
    }

    pub(crate) fn follow(&mut self, conventions: Conventions) {
        self.conventions = conventions;
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.holders.contains_key(name)
    }

    /// Name and bytes of each file, sorted by name.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|file| (file.name.as_str(), &*file.bytes))
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.len() as u64).sum()
    }

    /// `n_bytes` of the files became weights in memory.
    pub(crate) fn add_progress(&mut self, n_bytes: u64) {
        (self.progress)(n_bytes);
    }

    /// The first file's name, for messages.
    pub(crate) fn name(&self) -> &str {
        self.files.first().map_or("", |file| file.name.as_str())
    }

    /// All elements of all tensors, and the type that most of them are stored in.
    pub(crate) fn parameters(&self) -> (u64, String) {
        let mut by_type = BTreeMap::<&str, u64>::new();
        for entry in self.files.iter().flat_map(|file| file.tensors.values()) {
            let n = entry.shape.iter().fold(1u64, |n, size| n.saturating_mul(*size as u64));
            let label = match entry.dtype {
                Some(dtype) => dtype.label(),
                None => entry.label.as_str(),
            };
            let total = by_type.entry(label).or_default();
            *total = total.saturating_add(n);
        }
        let total = by_type.values().fold(0u64, |all, n| all.saturating_add(*n));
        let most = by_type.into_iter().max_by_key(|(_, n)| *n).map_or("", |(name, _)| name);
        (total, most.to_owned())
    }

    /// A tensor by its name, as it is stored. A vector is one row.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>, LoadError> {
        let missing = || LoadError::corrupt(self.name(), format!("tensor `{name}` is missing"));
        let file = self.holders.get(name).map(|&i| &self.files[i]).ok_or_else(missing)?;
        let entry = file.tensors.get(name).ok_or_else(missing)?;
        if entry.shape != shape {
            let what =
                format!("tensor `{name}` has shape {:?}, `config.json` asks for {shape:?}", entry.shape);
            return Err(LoadError::corrupt(&file.name, what));
        }
        let Some(dtype) = entry.dtype else {
            return Err(LoadError::unsupported(
                &file.name,
                format!("tensor `{name}` of type {}", entry.label),
                "convert the weights to F32, F16 or BF16 safetensors, or use a GGUF file",
            ));
        };
        let bytes = file.bytes.get(entry.range.clone());
        let bytes = bytes
            .ok_or_else(|| LoadError::corrupt(&file.name, format!("tensor `{name}` lies past the end")))?;
        let (rows, columns) = match shape {
            [rows, columns] => (*rows, *columns),
            _ => (1, shape.iter().product()),
        };
        Ok(RawTensor { dtype, rows, columns, bytes })
    }

    fn name_of(&self, role: Role) -> String {
        tensor_name(role, self.conventions)
    }
}

impl WeightFile {
    fn open(files: &Files, name: String) -> Result<Self, LoadError> {
        let bytes = files.open(&name, FETCH_HINT)?;
        let tensors = match name.ends_with(".safetensors") {
            true => safetensors::read(&name, &bytes)?,
            false => pytorch::read(&name, &bytes)?,
        };
        Ok(Self { name, bytes, tensors })
    }
}

/// Whether a folder has weights that [`FolderWeights`] reads.
pub(crate) fn has_weights(files: &Files) -> bool {
    LAYOUTS.iter().any(|(single, index)| files.contains(single) || files.contains(index))
}

/// An index's own name, and which shard holds a tensor.
type Index = (String, BTreeMap<String, String>);

/// The weight files, with the index that names them if there is one.
fn shards(files: &Files) -> Result<(BTreeSet<String>, Option<Index>), LoadError> {
    for (single, index) in LAYOUTS {
        if files.contains(index) {
            let map = read_index(files, index)?;
            return Ok((map.values().cloned().collect(), Some((index.to_owned(), map))));
        }
        if files.contains(single) {
            return Ok((BTreeSet::from([single.to_owned()]), None));
        }
    }
    Err(missing(files))
}

fn read_index(files: &Files, name: &str) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let map = files.parsed::<Index>(name)?.map(|index| index.weight_map).unwrap_or_default();
    if map.is_empty() {
        return Err(LoadError::corrupt(name, "`weight_map` is not an object with entries"));
    }
    let extension = if name.starts_with("model.") { ".safetensors" } else { ".bin" };
    match map.iter().find(|(_, shard)| !shard.ends_with(extension)) {
        Some((tensor, shard)) => Err(LoadError::corrupt(
            name,
            format!("`weight_map.{tensor}` is not a file `*{extension}`: {shard}"),
        )),
        None => Ok(map),
    }
}

/// What a build says that has no ONNX runtime.
pub(crate) fn no_onnx(file: &str) -> LoadError {
    LoadError::unsupported(
        file,
        "ONNX in this build",
        "put `model.safetensors` beside it, or use a server that was built with `--features onnx`",
    )
}

/// What a folder without weights has instead, and the way out.
fn missing(files: &Files) -> LoadError {
    const CONVERT: &str =
        "load it in Python and call `model.save_pretrained(folder)`, which writes safetensors";
    let others = [
        (
            "consolidated.00.pth",
            "Meta's own checkpoint format",
            "use the repository whose name ends in `-hf`",
        ),
        ("saved_model.pb", "TensorFlow's SavedModel", CONVERT),
        ("tf_model.h5", "a Keras checkpoint", CONVERT),
        ("flax_model.msgpack", "a Flax checkpoint", CONVERT),
        ("model.pt", "a bare PyTorch file", "name it `pytorch_model.bin` if it is a state dict"),
    ];
    if let Some(onnx) = files.onnx() {
        return match cfg!(feature = "onnx") {
            true => LoadError::unsupported(
                &onnx.name,
                "generation by an ONNX graph",
                "use the model's safetensors or a GGUF file; ONNX serves embeddings and rerank",
            ),
            false => no_onnx(&onnx.name),
        };
    }
    for (name, what, hint) in others {
        if files.contains(name) {
            return LoadError::unsupported(name, what, hint);
        }
    }
    LoadError::NotFound { file: LAYOUTS[0].0.to_owned(), hint: FETCH_HINT.to_owned() }
}

impl Weights for FolderWeights<'_> {
    fn contains(&self, role: Role) -> bool {
        self.has(&self.name_of(role))
    }

    fn matrix(&self, role: Role, (rows, columns): (usize, usize)) -> Result<RawTensor<'_>, LoadError> {
        self.tensor(&self.name_of(role), &[rows, columns])
    }

    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = vec![0.0; len];
        self.tensor(&self.name_of(role), &[len])?.widen_row(0, &mut values);
        if self.conventions.norms_are_offsets && is_norm(role) {
            for value in &mut values {
                *value += 1.0;
            }
        }
        Ok(values)
    }

    fn converted(&mut self, n_bytes: u64) {
        self.add_progress(n_bytes);
    }
}

fn is_norm(role: Role) -> bool {
    use Part::*;
    match role {
        Role::FinalNorm => true,
        Role::Layer(_, part) => matches!(
            part,
            AttentionNorm | PostAttentionNorm | FeedForwardNorm | PostFeedForwardNorm | QueryNorm | KeyNorm
        ),
        _ => false,
    }
}

fn tensor_name(role: Role, conventions: Conventions) -> String {
    let (layer, part) = match role {
        Role::Embedding => return "model.embed_tokens.weight".to_owned(),
        Role::FinalNorm => return "model.norm.weight".to_owned(),
        Role::Head => return "lm_head.weight".to_owned(),
        // Not stored in this format: `config.json` says it.
        Role::RopeFactors | Role::RopeFactorsShort | Role::RopeFactorsLong => return String::new(),
        Role::Layer(layer, part) => (layer, part),
    };
    let part = match part {
        Part::AttentionNorm => "input_layernorm.weight",
        Part::Query => "self_attn.q_proj.weight",
        Part::QueryBias => "self_attn.q_proj.bias",
        Part::QueryNorm => "self_attn.q_norm.weight",
        Part::Key => "self_attn.k_proj.weight",
        Part::KeyBias => "self_attn.k_proj.bias",
        Part::KeyNorm => "self_attn.k_norm.weight",
        Part::Value => "self_attn.v_proj.weight",
        Part::ValueBias => "self_attn.v_proj.bias",
        Part::QueryKeyValue => "self_attn.qkv_proj.weight",
        Part::Output => "self_attn.o_proj.weight",
        Part::OutputBias => "self_attn.o_proj.bias",
        Part::PostAttentionNorm => "post_attention_layernorm.weight",
        Part::FeedForwardNorm if conventions.post_norms => "pre_feedforward_layernorm.weight",
        Part::FeedForwardNorm => "post_attention_layernorm.weight",
        Part::Gate => "mlp.gate_proj.weight",
        Part::GateBias => "mlp.gate_proj.bias",
        Part::Up => "mlp.up_proj.weight",
        Part::UpBias => "mlp.up_proj.bias",
        Part::GateUp => "mlp.gate_up_proj.weight",
        Part::Down => "mlp.down_proj.weight",
        Part::DownBias => "mlp.down_proj.bias",
        Part::PostFeedForwardNorm => "post_feedforward_layernorm.weight",
    };
    format!("model.layers.{layer}.{part}")
}
