//! From a folder to an encoder.

use std::{sync::Arc, thread};

use tokenizers::TruncationParams;

use super::{
    body::Body,
    config::{self, CONFIG, Head},
    engine::{EncoderLimits, EncoderTask, MAX_REQUEST_TOKENS},
    graph::Encoder,
    input::Tokens,
    pooling::Recipe,
};
#[cfg(feature = "onnx")]
use crate::onnx;
use crate::{
    EngineConfig, LoadError, LoadPhase, LoadProgress, Memory, ModelFacts, ModelSource, Quantization,
    contained,
    files::{self, Files, OnnxFile},
    kernels::{PackedFormat, Pool},
    load::Meter,
    text::{self, Text},
    weights::folder::{self, FolderWeights},
};

pub(crate) struct Loaded {
    pub(crate) facts: ModelFacts,
    pub(crate) limits: EncoderLimits,
    pub(crate) body: Body,
    pub(crate) recipe: Recipe,
    pub(crate) tokens: Tokens,
    /// Names by number, of a model that labels tokens.
    pub(crate) labels: Vec<String>,
}

/// Probabilities that are kept of one request until it is answered: 64 MiB.
const MAX_LABEL_SCORES: usize = 1 << 24;

/// Tokens of a batch: what fits the caches of a CPU, whatever a decoder's steps are set to.
pub(crate) fn batch_tokens(config: &EngineConfig) -> usize {
    config.step_tokens.max(2048)
}

/// The context that is asked for, or the longest that the model's positions and its own files allow.
pub(crate) fn context_length(
    config: &EngineConfig,
    positions: usize,
    recipe_max: Option<usize>,
) -> Result<usize, LoadError> {
    let longest = recipe_max.map_or(positions, |n| n.min(positions));
    match config.context_length {
        None => Ok(longest),
        Some(n) if (2..=longest as u32).contains(&n) => Ok(n as usize),
        Some(n) => {
            let what = format!("{n} is outside 2..={longest}, what the model was made for");
            Err(LoadError::InvalidConfig { field: "context_length", what })
        }
    }
}

/// What makes tokens of the texts of a model.
pub(crate) fn tokens(text: Text, max_tokens: usize, task: EncoderTask) -> Result<Tokens, LoadError> {
    let mut truncating = text.tokenizer.clone();
    let cut = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    truncating.with_truncation(Some(cut)).map_err(|e| LoadError::corrupt("tokenizer.json", e.to_string()))?;
    Ok(Tokens { text, truncating, max_tokens, spans: task == EncoderTask::TokenClassify })
}

/// What requests may ask of a model with this head.
pub(crate) fn limits(head: Head, max_tokens: usize, dimensions: usize) -> EncoderLimits {
    let (task, n_labels) = match head {
        Head::Embed => (EncoderTask::Embed, 0),
        Head::Score => (EncoderTask::Rerank, 0),
        Head::Tokens(n) => (EncoderTask::TokenClassify, n),
    };
    let max_request_tokens =
        (MAX_LABEL_SCORES / n_labels.max(1)).clamp(max_tokens, MAX_REQUEST_TOKENS.max(max_tokens));
    EncoderLimits { task, max_tokens, max_request_tokens, dimensions }
}

/// A graph, where it is all the weights that a folder has.
fn only_onnx(files: &Files) -> Option<OnnxFile> {
    files.onnx().filter(|_| !folder::has_weights(files))
}

/// Whether a source holds an encoder, by its `config.json`.
pub fn is_encoder(source: &ModelSource) -> Result<bool, LoadError> {
    let files = match source {
        ModelSource::GgufFile(_) => return Ok(false),
        ModelSource::Folder(path) => Files::folder(path)?,
        ModelSource::Embedded(files) => Files::Embedded(files),
    };
    let Some(json) = files.json(CONFIG)? else { return Ok(false) };
    #[cfg(feature = "onnx")]
    if only_onnx(&files).is_some() {
        return Ok(onnx::is_encoder(&json));
    }
    #[cfg(not(feature = "onnx"))]
    if let Some(file) = only_onnx(&files) {
        return Err(folder::no_onnx(&file.name));
    }
    Ok(config::kind(&json).is_some())
}

pub(super) fn load(
    source: &ModelSource,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    let work = || match source {
        ModelSource::Folder(path) => folder(&Files::folder(path)?, config, progress),
        ModelSource::Embedded(files) => folder(&Files::Embedded(files), config, progress),
        ModelSource::GgufFile(path) => Err(LoadError::unsupported(
            &path.display().to_string(),
            "an encoder in a GGUF file",
            "use the folder with its safetensors",
        )),
    };
    contained::run(work).unwrap_or_else(|_| {
        let file = match source {
            ModelSource::Folder(path) | ModelSource::GgufFile(path) => path.display().to_string(),
            ModelSource::Embedded(_) => "embedded model".to_owned(),
        };
        Err(LoadError::corrupt(&file, "reading it made a library panic; the log has the message"))
    })
}

fn folder(
    files: &Files,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    #[cfg(feature = "onnx")]
    if let Some(graph) = only_onnx(files) {
        return onnx::load(files, &graph, config, progress);
    }
    let json = files.json(CONFIG)?.ok_or_else(|| LoadError::NotFound {
        file: CONFIG.to_owned(),
        hint: "the folder needs the model's `config.json`, in Hugging Face layout".to_owned(),
    })?;
    let shape = config::shape(json)?;
    let format = config.quantization.map(|quantization| match quantization {
        Quantization::Q8 => PackedFormat::Int8,
        Quantization::Q4 => PackedFormat::Int4,
    });
    let recipe = Recipe::read(files)?;
    let positions = shape.positions - shape.first_position;
    let max_tokens = context_length(config, positions, recipe.max_tokens)?;
    let mut meter = Meter::new(progress);
    let weights = FolderWeights::open(files)?;
    let weights_bytes = Encoder::weights_bytes(&shape, &weights, format)?;
    let tokens = batch_tokens(config).max(max_tokens) as u64;
    let row = Encoder::bytes_per_token(&shape);
    let memory = Memory { weights_bytes, kv_bytes: 0, activations_bytes: tokens.saturating_mul(row) };
    if let Some(limit_bytes) = config.memory_limit_bytes.filter(|limit| memory.total_bytes() > *limit) {
        return Err(LoadError::OutOfMemory {
            needed_bytes: memory.total_bytes(),
            limit_bytes,
            weights_bytes,
            kv_bytes: 0,
            kv_tokens: 0,
        });
    }
    let text = text::from_folder(files, None)?;

    let size_bytes = weights.size_bytes();
    meter.now.total_bytes = size_bytes;
    meter.start(LoadPhase::Verify);
    let list: Vec<String> = weights
        .files()
        .map(|(name, bytes)| format!("{}  {name}\n", files::sha256(bytes, &mut |n| meter.add(n as u64))))
        .collect();
    let (parameters, stored) = weights.parameters();
    // Of the matrices, which are all of the work; tables that rows are taken from stay what they are.
    let quantization = match config.quantization {
        None => stored,
        Some(quantization) => quantization.label().to_owned(),
    };
    let digest = format!("sha256:{}", files::sha256(list.concat().as_bytes(), &mut |_| ()));
    let threads = config.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
    let pool = Arc::new(Pool::new(threads.unwrap_or(1)).map_err(LoadError::Thread)?);
    meter.start(LoadPhase::Weights);
    let encoder = Encoder::load(shape.clone(), &weights, format, pool)?;
    drop(weights);
    meter.end();
    let facts = ModelFacts {
        digest,
        architecture: shape.class.clone(),
        parameters,
        size_bytes,
        quantization,
        context_length: max_tokens as u32,
        vocabulary_size: shape.vocabulary as u32,
        has_chat_template: false,
        memory,
    };
    let limits = limits(shape.head, max_tokens, shape.hidden);
    let body = Body::Native(Box::new(encoder));
    let tokens = self::tokens(text, max_tokens, limits.task)?;
    Ok(Loaded { facts, limits, body, recipe, tokens, labels: shape.labels })
}
