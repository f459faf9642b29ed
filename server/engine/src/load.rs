//! From files to a model: everything is read and checked in the order in which mistakes are cheapest to find.
//! Config, headers and the memory limit come before any weight is converted.

use crate::{
    EngineConfig, LoadError, LoadPhase, LoadProgress, Memory, ModelFacts, ModelSource, contained,
    files::{self, Files},
    model::{self, HfConfig, Llama, Shape},
    text::{self, Text},
    weights::{Weights, gguf::GgufFile, safetensors::SafetensorsFiles},
};

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) facts: ModelFacts,
    pub(crate) model: Llama,
    pub(crate) text: Text,
}

/// What the files say of themselves.
struct Described {
    digest: String,
    parameters: u64,
    quantization: String,
    size_bytes: u64,
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
    let mut weights = SafetensorsFiles::open(files)?;
    let memory = check_memory(&mut shape, &weights, config)?;
    let text = text::from_folder(files, hf_config.eos_token_id.as_ref())?;

    meter.now.total_bytes = weights.size_bytes();
    meter.start(LoadPhase::Verify);
    let list: Vec<String> = weights
        .files()
        .map(|(name, bytes)| format!("{}  {name}\n", files::sha256(bytes, &mut |n| meter.add(n as u64))))
        .collect();
    let (parameters, quantization) = weights.parameters();
    let described = Described {
        digest: format!("sha256:{}", files::sha256(list.concat().as_bytes(), &mut |_| ())),
        parameters,
        quantization,
        size_bytes: weights.size_bytes(),
    };
    meter.start(LoadPhase::Weights);
    weights.on_progress(Box::new(|n| meter.add(n)));
    let model = Llama::load(shape, &mut weights, "model.safetensors")?;
    drop(weights);
    meter.end();
    Ok(finish(model, text, described, memory))
}

fn load_gguf(
    path: &std::path::Path,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    let mut meter = Meter::new(progress);
    let mut file = GgufFile::open(path)?;
    let mut shape = model::from_gguf(&mut file)?;
    let memory = check_memory(&mut shape, &file, config)?;
    let text = text::from_gguf(&file.header, &file.name)?;

    let size_bytes = file.bytes.len() as u64;
    meter.now.total_bytes = size_bytes;
    meter.start(LoadPhase::Verify);
    let digest = format!("sha256:{}", files::sha256(&file.bytes, &mut |n| meter.add(n as u64)));
    let (parameters, quantization) = file.parameters();
    let described = Described { digest, parameters, quantization, size_bytes };
    meter.start(LoadPhase::Weights);
    let name = file.name.clone();
    file.on_progress(Box::new(|n| meter.add(n)));
    let model = Llama::load(shape, &mut file, &name)?;
    drop(file);
    meter.end();
    Ok(finish(model, text, described, memory))
}

fn finish(model: Llama, text: Text, described: Described, memory: Memory) -> Loaded {
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
        memory,
    };
    Loaded { facts, model, text }
}

fn check_config(config: &EngineConfig) -> Result<(), LoadError> {
    let refuse = |field, what: String| Err(LoadError::InvalidConfig { field, what });
    if !(1..=4096).contains(&config.max_sequences) {
        return refuse("max_sequences", format!("{} is outside 1..=4096", config.max_sequences));
    }
    if config.step_tokens <= config.max_sequences || config.step_tokens > 1 << 16 {
        let what = format!(
            "{} is not above max_sequences ({}) and at most 65536: each step computes one token for every running \
             sequence and, with the rest, prompts",
            config.step_tokens, config.max_sequences
        );
        return refuse("step_tokens", what);
    }
    let (threads, pool) = (config.threads, candle_core::utils::get_num_threads());
    if let Some(threads) = threads.filter(|threads| *threads != pool) {
        let what = format!(
            "{threads} threads were asked for, but the process computes with {pool}; start it with \
             RAYON_NUM_THREADS={threads} and CANDLE_NUM_THREADS={threads} in its environment"
        );
        return refuse("threads", what);
    }
    Ok(())
}

/// Applies the configured context length, then compares the estimate with the limit.
fn check_memory(
    shape: &mut Shape,
    weights: &dyn Weights,
    config: &EngineConfig,
) -> Result<Memory, LoadError> {
    if let Some(context) = config.context_length {
        if context < 2 || context > shape.max_context {
            let what = format!("{context} is outside 2..={}, what the model was made for", shape.max_context);
            return Err(LoadError::InvalidConfig { field: "context_length", what });
        }
        shape.max_context = context;
    }
    let weights_bytes = Llama::weights_bytes(shape, weights)?;
    let memory = shape.memory(weights_bytes, shape.max_context, config.max_sequences, config.step_tokens);
    match config.memory_limit_bytes {
        Some(limit_bytes) if memory.total_bytes() > limit_bytes => Err(LoadError::OutOfMemory {
            needed_bytes: memory.total_bytes(),
            limit_bytes,
            weights_bytes,
            kv_bytes: memory.kv_bytes,
            max_sequences: config.max_sequences,
            context_length: shape.max_context,
        }),
        _ => Ok(memory),
    }
}

/// Turns sizes of pieces into progress.
struct Meter<'p> {
    now: LoadProgress,
    report: &'p mut dyn FnMut(LoadProgress),
}

impl<'p> Meter<'p> {
    fn new(report: &'p mut dyn FnMut(LoadProgress)) -> Self {
        Self { now: LoadProgress { phase: LoadPhase::Verify, done_bytes: 0, total_bytes: 0 }, report }
    }

    fn start(&mut self, phase: LoadPhase) {
        (self.now.phase, self.now.done_bytes) = (phase, 0);
        (self.report)(self.now);
    }

    fn add(&mut self, n_bytes: u64) {
        self.now.done_bytes = (self.now.done_bytes + n_bytes).min(self.now.total_bytes);
        (self.report)(self.now);
    }

    /// Headers count as read once the tensors are.
    fn end(&mut self) {
        self.now.done_bytes = self.now.total_bytes;
        (self.report)(self.now);
    }
}
