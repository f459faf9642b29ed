//! From files to a model: everything is read and checked in the order in which mistakes are cheapest to find.
//! Config, headers and the memory limit come before any weight is converted.

use std::{sync::Arc, thread};

use crate::{
    EngineConfig, LoadError, LoadPhase, LoadProgress, Memory, ModelFacts, ModelSource, contained,
    files::{self, Files},
    kernels::{KvStore, Pool},
    model::{self, BLOCK_TOKENS, Decoder, HfConfig, Shape, Source},
    schedule::MAX_DRAFT_ROWS,
    text::{self, Text},
    weights::{
        folder::{Conventions, FolderWeights},
        gguf::GgufFile,
    },
};

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) facts: ModelFacts,
    pub(crate) model: Decoder,
    /// Blocks of its store of keys and values.
    pub(crate) n_blocks: usize,
    pub(crate) text: Text,
}

/// What the files say of themselves.
struct Described {
    digest: String,
    parameters: u64,
    quantization: String,
    size_bytes: u64,
}

impl Described {
    /// What most weights are in memory, if that is not what they are in the files.
    fn became(&mut self, quantization: Option<&str>) {
        if let Some(name) = quantization {
            self.quantization = name.to_owned();
        }
    }
}

pub(crate) fn load(
    source: &ModelSource,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    check_config(config)?;
    let work = || match source {
        ModelSource::Folder(path) => load_folder(&Files::folder(path)?, config, progress),
        ModelSource::Embedded(files) => load_folder(&Files::Embedded(files), config, progress),
        ModelSource::GgufFile(path) => load_gguf(path, config, progress),
    };
    // The checks below should leave nothing for the libraries to panic about. If one does all the same, the
    // process must still report what it was given rather than die.
    contained::run(work).unwrap_or_else(|_| {
        let file = match source {
            ModelSource::Folder(path) | ModelSource::GgufFile(path) => path.display().to_string(),
            ModelSource::Embedded(_) => "embedded model".to_owned(),
        };
        Err(LoadError::corrupt(&file, "reading it made a library panic; the log has the message"))
    })
}

fn load_folder(
    files: &Files,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    let json = files.json(model::CONFIG)?.ok_or_else(|| LoadError::NotFound {
        file: model::CONFIG.to_owned(),
        hint: "the folder needs the model's `config.json`, in Hugging Face layout".to_owned(),
    })?;
    let hf_config = HfConfig::parse(json)?;
    let mut shape = model::from_hf(&hf_config)?;
    let mut meter = Meter::new(progress);
    let mut weights = FolderWeights::open(files)?;
    weights.follow(Conventions {
        post_norms: shape.family.has_post_norms(),
        norms_are_offsets: shape.family.norms_are_offsets(),
    });
    let file = weights.name().to_owned();
    let mut source = Source::new(&mut weights, config.quantization, file);
    let room = check_memory(&mut shape, &source, config)?;
    let text = text::from_folder(files, hf_config.eos_token_id.as_ref())?;
    let Source { file, .. } = source;

    meter.now.total_bytes = weights.size_bytes();
    meter.start(LoadPhase::Verify);
    let list: Vec<String> = weights
        .files()
        .map(|(name, bytes)| format!("{}  {name}\n", files::sha256(bytes, &mut |n| meter.add(n as u64))))
        .collect();
    let (parameters, quantization) = weights.parameters();
    let mut described = Described {
        digest: format!("sha256:{}", files::sha256(list.concat().as_bytes(), &mut |_| ())),
        parameters,
        quantization,
        size_bytes: weights.size_bytes(),
    };
    meter.start(LoadPhase::Weights);
    weights.on_progress(Box::new(|n| meter.add(n)));
    source = Source::new(&mut weights, config.quantization, file);
    let model = decoder(shape, &mut source, config, &room)?;
    described.became(source.most_became(parameters));
    drop(weights);
    meter.end();
    Ok(finish(model, text, described, room))
}

fn load_gguf(
    path: &std::path::Path,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    let mut meter = Meter::new(progress);
    let mut file = GgufFile::open(path)?;
    let mut shape = model::from_gguf(&file)?;
    let name = file.name.clone();
    let mut source = Source::new(&mut file, config.quantization, name.clone());
    let room = check_memory(&mut shape, &source, config)?;
    let text = text::from_gguf(&file.header, &file.name)?;

    let size_bytes = file.bytes.len() as u64;
    meter.now.total_bytes = size_bytes;
    meter.start(LoadPhase::Verify);
    let digest = format!("sha256:{}", files::sha256(&file.bytes, &mut |n| meter.add(n as u64)));
    let (parameters, quantization) = file.parameters();
    let mut described = Described { digest, parameters, quantization, size_bytes };
    meter.start(LoadPhase::Weights);
    file.on_progress(Box::new(|n| meter.add(n)));
    source = Source::new(&mut file, config.quantization, name);
    let model = decoder(shape, &mut source, config, &room)?;
    described.became(source.most_became(parameters));
    drop(file);
    meter.end();
    Ok(finish(model, text, described, room))
}

fn decoder(
    shape: Shape,
    source: &mut Source<'_>,
    config: &EngineConfig,
    room: &Room,
) -> Result<Decoder, LoadError> {
    let threads = config.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
    let pool = Arc::new(Pool::new(threads.unwrap_or(1)).map_err(LoadError::Thread)?);
    let kv = KvStore::new(config.kv_type, shape.layers, shape.kv_heads, shape.head_dim, room.n_blocks)
        .map_err(|what| LoadError::InvalidConfig { field: "kv_cache_tokens", what })?;
    Decoder::load(shape, source, pool, kv)
}

fn finish(model: Decoder, text: Text, described: Described, room: Room) -> Loaded {
    let shape = &model.shape;
    let facts = ModelFacts {
        digest: described.digest,
        architecture: shape.architecture.clone(),
        parameters: described.parameters,
        size_bytes: described.size_bytes,
        quantization: described.quantization,
        context_length: shape.max_context,
        vocabulary_size: shape.vocabulary as u32,
        has_chat_template: text.template.is_some(),
        memory: room.memory,
    };
    Loaded { facts, model, n_blocks: room.n_blocks, text }
}

fn check_config(config: &EngineConfig) -> Result<(), LoadError> {
    let refuse = |field, what: String| Err(LoadError::InvalidConfig { field, what });
    if !(1..=4096).contains(&config.max_sequences) {
        return refuse("max_sequences", format!("{} is outside 1..=4096", config.max_sequences));
    }
    if config.step_tokens < config.max_sequences || config.step_tokens > 1 << 16 {
        let what = format!(
            "{} is not from max_sequences ({}) to 65536: each step computes one token for every running \
             sequence and, with the rest, prompts",
            config.step_tokens, config.max_sequences
        );
        return refuse("step_tokens", what);
    }
    if config.threads.is_some_and(|threads| !(1..=1024).contains(&threads)) {
        return refuse("threads", format!("{:?} is outside 1..=1024", config.threads));
    }
    if config.kv_cache_tokens == Some(0) {
        return refuse("kv_cache_tokens", "0 tokens hold no context".to_owned());
    }
    if config.max_queue_tokens == Some(0) {
        return refuse("max_queue_tokens", "0 lets nothing wait; leave it out for no limit".to_owned());
    }
    if config.max_wait.is_some_and(|wait| wait.is_zero()) {
        return refuse("max_wait", "0 lets nothing wait; leave it out for no limit".to_owned());
    }
    Ok(())
}

/// What the limits leave.
struct Room {
    memory: Memory,
    /// Blocks for keys and values.
    n_blocks: usize,
}

/// Applies the configured context length, then compares the estimate with the limit.
fn check_memory(shape: &mut Shape, source: &Source<'_>, config: &EngineConfig) -> Result<Room, LoadError> {
    if let Some(context) = config.context_length {
        if context < 2 || context > shape.max_context {
            let what = format!("{context} is outside 2..={}, what the model was made for", shape.max_context);
            return Err(LoadError::InvalidConfig { field: "context_length", what });
        }
        shape.max_context = context;
    }
    shape.settle();
    let weights_bytes = Decoder::weights_bytes(shape, source)?;
    let activations_bytes =
        shape.activations_bytes(config.step_tokens, config.max_sequences + MAX_DRAFT_ROWS);
    let block_bytes = KvStore::bytes_per_block(config.kv_type, shape.layers, shape.kv_heads, shape.head_dim);
    let per_sequence = (shape.max_context as usize).div_ceil(BLOCK_TOKENS);
    let every_sequence = per_sequence.saturating_mul(config.max_sequences);
    let wanted = match config.kv_cache_tokens.map(|tokens| tokens.div_ceil(BLOCK_TOKENS)) {
        Some(n) if n < per_sequence => {
            let what = format!(
                "{} tokens are fewer than one sequence's context of {}; raise it, or lower `context_length`",
                n * BLOCK_TOKENS,
                shape.max_context
            );
            return Err(LoadError::InvalidConfig { field: "kv_cache_tokens", what });
        }
        Some(n) => n.min(every_sequence),
        None => every_sequence,
    };
    let memory = |n_blocks: usize| Memory {
        weights_bytes,
        kv_bytes: block_bytes.saturating_mul(n_blocks as u64),
        activations_bytes,
    };
    let fitting = config.memory_limit_bytes.map_or(wanted, |limit| {
        let left = limit.saturating_sub(memory(0).total_bytes()) / block_bytes.max(1);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    });
    // What was asked for in so many words is not cut down silently.
    let n_blocks = if config.kv_cache_tokens.is_some() { wanted } else { fitting.max(per_sequence) };
    let memory = memory(n_blocks);
    match config.memory_limit_bytes {
        Some(limit_bytes) if memory.total_bytes() > limit_bytes => Err(LoadError::OutOfMemory {
            needed_bytes: memory.total_bytes(),
            limit_bytes,
            weights_bytes,
            kv_bytes: memory.kv_bytes,
            kv_tokens: n_blocks * BLOCK_TOKENS,
        }),
        _ => Ok(Room { memory, n_blocks }),
    }
}

/// Turns sizes of pieces into progress.
pub(crate) struct Meter<'p> {
    pub(crate) now: LoadProgress,
    report: &'p mut dyn FnMut(LoadProgress),
}

impl<'p> Meter<'p> {
    pub(crate) fn new(report: &'p mut dyn FnMut(LoadProgress)) -> Self {
        Self { now: LoadProgress { phase: LoadPhase::Verify, done_bytes: 0, total_bytes: 0 }, report }
    }

    pub(crate) fn start(&mut self, phase: LoadPhase) {
        (self.now.phase, self.now.done_bytes) = (phase, 0);
        (self.report)(self.now);
    }

    pub(crate) fn add(&mut self, n_bytes: u64) {
        self.now.done_bytes = (self.now.done_bytes + n_bytes).min(self.now.total_bytes);
        (self.report)(self.now);
    }

    /// Headers count as read once the tensors are.
    pub(crate) fn end(&mut self) {
        self.now.done_bytes = self.now.total_bytes;
        (self.report)(self.now);
    }
}
