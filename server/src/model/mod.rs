//! A model: loading it, and what clients are told about it.

mod files;
mod sampling;

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use candela_engine::{
    EmbeddedFile, EncoderEngine, Engine, EngineConfig, LoadError, LoadPhase, LoadProgress, ModelFacts,
    SamplingParams, WarmUpError,
};
use candela_wire::{
    config::{ModelConfig, Quantization, Task},
    internal::{ModelStatus, Startup},
    openai::Model,
    termination::ExitReason,
};
use tracing::info;

use crate::{
    Fatal,
    api::ApiError,
    exit::Chain,
    fetch::source::Source,
    loaded::{Loaded, warm_up_encoder},
    progress::{Phase, Progress},
    registry::{Hold, Uses},
};
use files::Files;

/// The demo model, as trained by `cargo xtask train-demo`.
static DEMO: &[EmbeddedFile] = &[
    embedded("config.json", include_bytes!("../../models/demo/config.json")),
    embedded("generation_config.json", include_bytes!("../../models/demo/generation_config.json")),
    embedded("model.safetensors", include_bytes!("../../models/demo/model.safetensors")),
    embedded("tokenizer.json", include_bytes!("../../models/demo/tokenizer.json")),
    embedded("tokenizer_config.json", include_bytes!("../../models/demo/tokenizer_config.json")),
];

const fn embedded(name: &'static str, bytes: &'static [u8]) -> EmbeddedFile {
    EmbeddedFile { name, bytes }
}

/// A loaded, warm model.
pub(crate) struct Served {
    pub(crate) loaded: Loaded,
    pub(crate) name: String,
    /// Of a repository's model the number of its folder, else 1.
    pub(crate) version: u64,
    /// What it is called in metrics: unlike its name, no other model's.
    pub(crate) label: String,
    /// Other names that it answers to.
    pub(crate) aliases: Vec<String>,
    pub(crate) uses: Arc<Uses>,
    /// Commit if the source has such, else the digest of the weights.
    pub(crate) revision: String,
    /// What a request means that does not say how to sample.
    pub(crate) defaults: SamplingParams,
    tasks: Vec<Task>,
    created: u64,
    resolved_revision: Option<String>,
}

impl Served {
    /// The engine, if the model generates text.
    pub(crate) fn engine(&self) -> Result<&Engine, ApiError> {
        match &self.loaded {
            Loaded::Generator(engine) => Ok(engine),
            Loaded::Encoder(_) => Err(self.cannot(Task::Generate)),
        }
    }

    /// The engine, if the model is for `task`.
    pub(crate) fn encoder(&self, task: Task) -> Result<&EncoderEngine, ApiError> {
        match &self.loaded {
            Loaded::Encoder(engine) if self.loaded.task() == task => Ok(engine),
            _ => Err(self.cannot(task)),
        }
    }

    /// Whether a request for `asked` may have come to this model.
    pub(crate) fn answers_to(&self, asked: &str) -> bool {
        let versioned = || {
            asked
                .rsplit_once(':')
                .is_some_and(|(name, version)| name == self.name && version.parse() == Ok(self.version))
        };
        asked == self.name || self.aliases.iter().any(|alias| alias == asked) || versioned()
    }

    /// For whoever has it on lease, and lets go of that first: keeps the model from being unloaded.
    pub(crate) fn hold(&self) -> Hold {
        Uses::again(&self.uses)
    }

    fn cannot(&self, task: Task) -> ApiError {
        let does = self.tasks.iter().map(|task| task.as_str()).collect::<Vec<_>>().join(", ");
        ApiError::WrongTask { model: self.name.clone(), task: task.as_str(), does }
    }

    pub(crate) fn status(&self) -> ModelStatus {
        let facts = self.loaded.facts();
        ModelStatus {
            served_name: self.name.clone(),
            digest: facts.digest.clone(),
            architecture: facts.architecture.clone(),
            parameters: facts.parameters,
            size_bytes: facts.size_bytes,
            estimated_memory_bytes: facts.memory.total_bytes(),
            quantization: facts.quantization.clone(),
            context_length: facts.context_length,
            tasks: self.tasks.iter().map(|task| task.as_str().to_owned()).collect(),
            revision: self.resolved_revision.clone(),
        }
    }

    /// As the model `id`.
    pub(crate) fn listed(&self, id: String) -> Model {
        Model { created: self.created, ..listed(id, UNIX_EPOCH) }
    }

    /// For `system_fingerprint`: changes exactly when the weights do.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = self.loaded.facts().digest.as_str();
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        format!("fp_{}", hex.get(..12).unwrap_or(hex))
    }
}

/// A model that nobody has loaded, known `since` then.
pub(crate) fn listed(id: String, since: SystemTime) -> Model {
    let created = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Model { id, object: "model".to_owned(), created, owned_by: "candela".to_owned() }
}

/// Why a model was not loaded.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) fatal: Fatal,
    /// What it would need, where the limit in bytes was too low.
    pub(crate) needs_bytes: Option<u64>,
}

impl From<Fatal> for Failure {
    fn from(fatal: Fatal) -> Self {
        Self { fatal, needs_bytes: None }
    }
}

impl From<&LoadError> for Failure {
    fn from(err: &LoadError) -> Self {
        let needs_bytes = match err {
            LoadError::OutOfMemory { needed_bytes, .. } => Some(*needed_bytes),
            _ => None,
        };
        Self { fatal: refusal(err), needs_bytes }
    }
}

/// What engines of this model have of their own.
fn engine_config(config: &ModelConfig, engine: &EngineConfig) -> EngineConfig {
    EngineConfig {
        context_length: config.context_length,
        quantization: config.quantization.map(|quantization| match quantization {
            Quantization::Q8 => candela_engine::Quantization::Q8,
            Quantization::Q4 => candela_engine::Quantization::Q4,
        }),
        ..engine.clone()
    }
}

/// An engine of either kind, as the files are.
fn open(
    files: &Files,
    engine: &EngineConfig,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    match candela_engine::is_encoder(&files.source)? {
        true => EncoderEngine::load(&files.source, engine, report).map(Loaded::Encoder),
        false => Engine::load(&files.source, engine, report).map(Loaded::Generator),
    }
}

/// The fewest bytes that the model can be loaded in: weights as they will be held, buffers, and the keys and values of
/// one request. 0 where that cannot be told; its load then says why. Reads headers only, and blocks.
pub(crate) fn least_bytes(config: &ModelConfig, models_dir: &Path, engine: &EngineConfig) -> u64 {
    let Ok(files) = Source::parse(config).and_then(|source| Files::find(&source, config, models_dir)) else {
        return 0;
    };
    // Whoever refuses says what would have been enough.
    let nothing = EngineConfig { memory_limit_bytes: Some(0), ..engine_config(config, engine) };
    match open(&files, &nothing, &mut |_| ()) {
        Err(LoadError::OutOfMemory { needed_bytes, .. }) => needed_bytes,
        Ok(_) | Err(_) => 0,
    }
}

/// Finds, checks, loads and warms the model. Blocks.
pub(crate) fn load(
    config: &ModelConfig,
    models_dir: &Path,
    engine: &EngineConfig,
    progress: &Progress,
) -> Result<(Served, Startup), Failure> {
    let source = Source::parse(config)?;
    let files = Files::find(&source, config, models_dir)?;
    let engine_config = engine_config(config, engine);

    let began = SystemTime::now();
    progress.enter(Phase::Load);
    let clock = tokio::time::Instant::now();
    let mut report = |now: LoadProgress| {
        // Digests are read first, then weights: two passes over the same bytes.
        let done = match now.phase {
            LoadPhase::Verify => now.done_bytes,
            LoadPhase::Weights => now.total_bytes.saturating_add(now.done_bytes),
        };
        progress.set(done, now.total_bytes.saturating_mul(2));
    };
    let loaded = open(&files, &engine_config, &mut report).map_err(|err| Failure::from(&err))?;
    let load_seconds = clock.elapsed().as_secs_f64();
    check_digest(config, loaded.facts())?;
    let tasks = check_tasks(config, &loaded)?;

    progress.enter(Phase::Warmup);
    let cannot = |message: String| {
        Fatal::new(
            ExitReason::ModelUnsupported,
            format!("the model loads but cannot compute a token: {message}; check its config.json"),
        )
    };
    let warmup = match &loaded {
        Loaded::Generator(engine) => engine.warm_up().map_err(|err| match err {
            WarmUpError::Failed(message) => cannot(message),
            WarmUpError::Submit(err) => {
                Fatal::new(ExitReason::EngineCrashed, format!("warm-up failed: {err}"))
            }
        })?,
        Loaded::Encoder(engine) => warm_up_encoder(engine).map_err(cannot)?,
    };

    let facts = loaded.facts();
    info!(
        model = %config.served_name, digest = %facts.digest, architecture = %facts.architecture,
        parameters = facts.parameters, context_length = facts.context_length, load_seconds, "model loaded"
    );
    let resolved_revision = files.facts.as_ref().and_then(|facts| facts.resolved_revision.clone());
    let served = Served {
        name: config.served_name.clone(),
        version: 1,
        label: config.served_name.clone(),
        aliases: Vec::new(),
        uses: Arc::default(),
        revision: resolved_revision.clone().unwrap_or_else(|| facts.digest.clone()),
        defaults: files.defaults,
        tasks,
        created: began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        resolved_revision,
        loaded,
    };
    let startup = Startup {
        fetch_seconds: files.facts.map(|facts| facts.seconds),
        load_seconds: Some(load_seconds),
        warmup_seconds: Some(warmup.as_secs_f64()),
        first_token_seconds: None,
    };
    Ok((served, startup))
}

/// What the model is asked for, which must be what its architecture is for. Nothing said means that too.
fn check_tasks(config: &ModelConfig, loaded: &Loaded) -> Result<Vec<Task>, Fatal> {
    let (architecture, task) = (&loaded.facts().architecture, loaded.task());
    match config.tasks.iter().find(|wanted| **wanted != task) {
        None => Ok(vec![task]),
        Some(wanted) => Err(Fatal::new(
            ExitReason::ModelUnsupported,
            format!(
                "model `{}` is to {}, which a `{architecture}` cannot: `model.tasks` may hold {} only",
                config.served_name,
                wanted.as_str(),
                task.as_str()
            ),
        )),
    }
}

fn check_digest(config: &ModelConfig, facts: &ModelFacts) -> Result<(), Fatal> {
    let have = facts.digest.strip_prefix("sha256:").unwrap_or(&facts.digest);
    match config.sha256.as_deref() {
        Some(wanted) if wanted != have => Err(Fatal::new(
            ExitReason::ChecksumMismatch,
            format!("the weights have SHA-256 {have}, `verification.sha256` says {wanted}"),
        )),
        _ => Ok(()),
    }
}

fn refusal(err: &LoadError) -> Fatal {
    let reason = match err {
        LoadError::NotFound { .. } => ExitReason::WeightsNotFound,
        LoadError::Unsupported { .. } | LoadError::Corrupt { .. } => ExitReason::ModelUnsupported,
        LoadError::InvalidConfig { .. } => ExitReason::InvalidConfiguration,
        LoadError::OutOfMemory { .. } => ExitReason::OutOfMemory,
        LoadError::Io { .. } => ExitReason::WeightsFetchFailed,
        LoadError::Thread(_) => ExitReason::EngineCrashed,
    };
    let what = match err {
        LoadError::OutOfMemory { needed_bytes, limit_bytes, weights_bytes, kv_bytes, .. } => {
            let missing = needed_bytes.saturating_sub(*limit_bytes);
            // A tenth of the container's memory is nobody's.
            let missing_mib = missing.div_ceil(9).saturating_mul(10).div_ceil(1 << 20);
            let (kv, lower) = match kv_bytes {
                0 => (String::new(), ""),
                bytes => (format!(", {bytes} of KV cache"), ", lower `contextLength`"),
            };
            format!(
                "it needs about {needed_bytes} bytes ({weights_bytes} of weights{kv}), and {limit_bytes} are left for \
                 it: raise `resources.limits.memory` by at least {missing_mib}Mi{lower} or choose a quantised model"
            )
        }
        other => Chain(other).to_string(),
    };
    Fatal::new(reason, format!("cannot load the model: {what}"))
}

#[cfg(test)]
mod tests {
    use candela_engine::testing::TinyModel;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn least(config: &ModelConfig) -> u64 {
        let engine = EngineConfig { threads: Some(1), ..EngineConfig::default() };
        least_bytes(config, Path::new("nowhere"), &engine)
    }

    #[test]
    fn what_a_model_needs_at_least_is_enough_and_not_twice_as_much() {
        let dir = tempfile::tempdir().unwrap();
        let model = TinyModel { hidden: 256, layers: 4, ..TinyModel::default() };
        model.write_folder(dir.path()).unwrap();
        let config = ModelConfig::new("m", format!("file://{}", dir.path().display()));
        let needs = least(&config);
        let load = |bytes| {
            let engine =
                EngineConfig { threads: Some(1), memory_limit_bytes: Some(bytes), ..EngineConfig::default() };
            super::load(&config, Path::new("nowhere"), &engine, &Progress::new(Phase::Load))
        };
        assert!(load(needs).is_ok());
        assert!(load(needs - 1).is_err_and(|failure| failure.needs_bytes == Some(needs)));

        // Nobody reads these beside safetensors.
        for other in ["pytorch_model.bin", "training_args.bin", "tokenizer.bin"] {
            std::fs::write(dir.path().join(other), vec![0; 32 << 20]).unwrap();
        }
        assert_eq!(least(&config), needs);
        let quantized = ModelConfig { quantization: Some(Quantization::Q8), ..config };
        assert!(least(&quantized) + MIB < needs, "{} and {needs}", least(&quantized));
    }

    #[test]
    fn an_encoder_needs_its_weights_as_they_are_held() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/golden/bert");
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join(file), dir.path().join(file)).unwrap();
        }
        let config = ModelConfig::new("m", format!("file://{}", dir.path().display()));
        let needs = least(&config);
        let file = dir.path().join("model.safetensors").metadata().unwrap().len();
        assert!(needs > file, "with its buffers: {needs} and {file}");
        std::fs::write(dir.path().join("pytorch_model.bin"), vec![0; 1 << 20]).unwrap();
        assert_eq!(least(&config), needs);
        assert_eq!(least(&ModelConfig::new("m", "file:///not/there")), 0, "its load says what is wrong");
    }
}
