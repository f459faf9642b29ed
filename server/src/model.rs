//! The one model of a process: where its files are, loading them, and what clients are told about it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use candela_engine::{
    EmbeddedFile, EncoderEngine, Engine, EngineConfig, LoadError, LoadPhase, LoadProgress, ModelFacts,
    ModelSource, SamplingParams, WarmUpError,
};
use candela_wire::{
    config::{ModelConfig, Quantization, Task},
    internal::{ModelStatus, Startup},
    openai::Model,
    termination::ExitReason,
};
use serde_json::Value;
use tracing::info;

use crate::{
    Fatal,
    api::ApiError,
    exit::Chain,
    fetch::{
        facts::FetchFacts,
        source::{Location, Source, redacted},
    },
    loaded::{Loaded, warm_up_encoder},
    progress::{Phase, Progress},
};

/// The demo model, as trained by `cargo xtask train-demo`.
static DEMO: &[EmbeddedFile] = &[
    embedded("config.json", include_bytes!("../models/demo/config.json")),
    embedded("generation_config.json", include_bytes!("../models/demo/generation_config.json")),
    embedded("model.safetensors", include_bytes!("../models/demo/model.safetensors")),
    embedded("tokenizer.json", include_bytes!("../models/demo/tokenizer.json")),
    embedded("tokenizer_config.json", include_bytes!("../models/demo/tokenizer_config.json")),
];

const fn embedded(name: &'static str, bytes: &'static [u8]) -> EmbeddedFile {
    EmbeddedFile { name, bytes }
}

/// A loaded, warm model.
pub(crate) struct Served {
    pub(crate) loaded: Loaded,
    pub(crate) name: String,
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
            Loaded::Encoder(engine) if self.loaded.task() == Some(task) => Ok(engine),
            _ => Err(self.cannot(task)),
        }
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

    pub(crate) fn listed(&self) -> Model {
        Model {
            id: self.name.clone(),
            object: "model".to_owned(),
            created: self.created,
            owned_by: "candela".to_owned(),
        }
    }

    /// For `system_fingerprint`: changes exactly when the weights do.
    pub(crate) fn fingerprint(&self) -> String {
        let digest = self.loaded.facts().digest.as_str();
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        format!("fp_{}", hex.get(..12).unwrap_or(hex))
    }
}

/// Finds, checks, loads and warms the model. Blocks.
pub(crate) fn load(
    config: &ModelConfig,
    models_dir: &Path,
    engine: &EngineConfig,
    progress: &Progress,
) -> Result<(Served, Startup), Fatal> {
    let source = Source::parse(config)?;
    let files = Files::find(&source, config, models_dir)?;
    let engine_config = EngineConfig {
        context_length: config.context_length,
        quantization: config.quantization.map(|quantization| match quantization {
            Quantization::Q8 => candela_engine::Quantization::Q8,
            Quantization::Q4 => candela_engine::Quantization::Q4,
        }),
        ..engine.clone()
    };

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
    let is_encoder = candela_engine::is_encoder(&files.source).map_err(|err| refusal(&err))?;
    let loaded = match is_encoder {
        true => EncoderEngine::load(&files.source, &engine_config, &mut report).map(Loaded::Encoder),
        false => Engine::load(&files.source, &engine_config, &mut report).map(Loaded::Generator),
    };
    let loaded = loaded.map_err(|err| refusal(&err))?;
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
    let refuse = |what: String| {
        Err(Fatal::new(ExitReason::ModelUnsupported, format!("model `{}` {what}", config.served_name)))
    };
    let architecture = &loaded.facts().architecture;
    let Some(task) = loaded.task() else {
        return refuse(format!("is a `{architecture}`, whose labels of tokens this server has no route for"));
    };
    match config.tasks.iter().find(|wanted| **wanted != task) {
        None => Ok(vec![task]),
        Some(wanted) => refuse(format!(
            "is to {}, which a `{architecture}` cannot: `model.tasks` may hold {} only",
            wanted.as_str(),
            task.as_str()
        )),
    }
}

/// Bytes of the weights of a model that lies ready; 0 where that cannot be told, which its load then does.
pub(crate) fn weight_bytes(config: &ModelConfig, models_dir: &Path) -> u64 {
    let Ok(source) = Source::parse(config) else { return 0 };
    let path = match &source.location {
        Location::Builtin => return DEMO.iter().map(|file| file.bytes.len() as u64).sum(),
        Location::Path(path) => path.clone(),
        Location::Hub { .. } | Location::HttpFile(_) | Location::HttpFolder(_) => {
            models_dir.join(source.folder_name())
        }
    };
    let of_file = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    if path.is_file() {
        return of_file(&path);
    }
    let is_weights = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| ["safetensors", "gguf", "bin"].contains(&extension))
    };
    // A fetch may have left the one file in a folder below.
    let fetched = FetchFacts::read(&path).ok().flatten();
    let files: Vec<PathBuf> = match fetched {
        Some(facts) => facts.files.iter().map(|file| path.join(&file.name)).collect(),
        None => fs::read_dir(&path)
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default(),
    };
    files.iter().filter(|path| is_weights(path)).map(|path| of_file(path)).sum()
}

/// What the engine reads, and what lies beside it.
struct Files {
    source: ModelSource,
    defaults: SamplingParams,
    /// Left by the init step, if there was one.
    facts: Option<FetchFacts>,
}

impl Files {
    fn find(source: &Source, config: &ModelConfig, models_dir: &Path) -> Result<Self, Fatal> {
        let path = match &source.location {
            Location::Builtin => {
                let settings = DEMO.iter().find(|file| file.name == GENERATION_CONFIG);
                let defaults = sampling_defaults(settings.map(|file| file.bytes))?;
                return Ok(Self { source: ModelSource::Embedded(DEMO), defaults, facts: None });
            }
            Location::Path(path) => path.clone(),
            Location::Hub { .. } | Location::HttpFile(_) | Location::HttpFolder(_) => {
                models_dir.join(source.folder_name())
            }
        };
        let missing = |what: &str| {
            let message = format!("{what} `{}` not found: is `{}` right?", path.display(), config.uri);
            Fatal::new(ExitReason::WeightsNotFound, message)
        };
        let facts = match &source.location {
            // What lies on somebody's volume is not a fetch of ours, whatever it says.
            Location::Path(_) => None,
            _ => Some(finished_fetch(&path, config)?),
        };
        if path.is_file() {
            let defaults = SamplingParams::default();
            return Ok(Self { source: ModelSource::GgufFile(path), defaults, facts });
        }
        if !path.is_dir() {
            return Err(missing("the model's folder"));
        }
        let settings = match read_settings(&path.join(GENERATION_CONFIG)) {
            Ok(bytes) => Some(bytes),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => None,
            Err(err) => {
                let message = format!("cannot read `{}/{GENERATION_CONFIG}`: {err}", path.display());
                return Err(Fatal::new(ExitReason::WeightsNotFound, message));
            }
        };
        let defaults = sampling_defaults(settings.as_deref())?;
        let source = match only_gguf(&path, config, facts.as_ref())? {
            Some(file) => ModelSource::GgufFile(file),
            None => ModelSource::Folder(path),
        };
        Ok(Self { source, defaults, facts })
    }
}

/// What the init step left, if it is what this configuration asks for. A container that restarts finds the files of
/// its pod, and they must be those of its own configuration.
fn finished_fetch(folder: &Path, config: &ModelConfig) -> Result<FetchFacts, Fatal> {
    let facts = FetchFacts::read(folder)
        .map_err(|err| Fatal::new(ExitReason::WeightsFetchFailed, format!("{}", Chain(&err))))?;
    let facts = facts.ok_or_else(|| {
        Fatal::new(
            ExitReason::WeightsNotFound,
            format!("`{}` holds no finished fetch: run `candela-server fetch` first", folder.display()),
        )
    })?;
    if facts.uri != config.uri || facts.revision != config.revision {
        let of = |uri: &str, revision: &Option<String>| match revision {
            Some(revision) => format!("`{}` at `{revision}`", redacted(uri)),
            None => format!("`{}`", redacted(uri)),
        };
        return Err(Fatal::new(
            ExitReason::InvalidConfiguration,
            format!(
                "`{}` holds {}, the configuration asks for {}: fetch again, or delete the pod",
                folder.display(),
                of(&facts.uri, &facts.revision),
                of(&config.uri, &config.revision)
            ),
        ));
    }
    if !facts.answers(&ModelConfig { sha256: None, ..config.clone() }, folder) {
        return Err(Fatal::new(
            ExitReason::WeightsNotFound,
            format!(
                "`{}` lacks files of its fetch, or has others: fetch again, or delete the pod",
                folder.display()
            ),
        ));
    }
    Ok(facts)
}

/// A small file of plain text beside the weights, perhaps on somebody's volume.
fn read_settings(path: &Path) -> std::io::Result<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > LIMIT {
        let what = format!("it is not a plain file of at most {LIMIT} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    fs::read(path)
}

/// The GGUF file of a folder, if that is what the folder is for. A fetch may have left it in a folder below, as the hub
/// has it.
fn only_gguf(
    folder: &Path,
    config: &ModelConfig,
    facts: Option<&FetchFacts>,
) -> Result<Option<PathBuf>, Fatal> {
    use candela_wire::config::Format;
    if config.format == Some(Format::Safetensors) {
        return Ok(None);
    }
    let unreadable = |err| {
        let message = format!("cannot list `{}`: {err}", folder.display());
        Fatal::new(ExitReason::WeightsNotFound, message)
    };
    let is_gguf =
        |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let mut found = Vec::new();
    if let Some(facts) = facts {
        found.extend(facts.files.iter().map(|file| folder.join(&file.name)).filter(|path| is_gguf(path)));
    } else {
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if is_gguf(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    if config.format.is_none() && folder.join("config.json").is_file() {
        return Ok(None);
    }
    match (found.pop(), found.len()) {
        (Some(file), 0) => Ok(Some(file)),
        (Some(_), others) => Err(Fatal::new(
            ExitReason::ModelUnsupported,
            format!("`{}` holds {} GGUF files: name one in `model.uri`", folder.display(), others + 1),
        )),
        (None, _) if config.format == Some(Format::Gguf) => Err(Fatal::new(
            ExitReason::WeightsNotFound,
            format!("`{}` holds no GGUF file, but `format` is Gguf", folder.display()),
        )),
        (None, _) => Ok(None),
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
    Fatal::new(reason, format!("cannot load the model: {}", Chain(err)))
}

const GENERATION_CONFIG: &str = "generation_config.json";

/// The author's advice on sampling. `do_sample: false` means greedy; without the file, the model's own distribution.
fn sampling_defaults(settings: Option<&[u8]>) -> Result<SamplingParams, Fatal> {
    let mut params = SamplingParams::default();
    let Some(settings) = settings else { return Ok(params) };
    let invalid =
        |what: String| Fatal::new(ExitReason::ModelUnsupported, format!("`{GENERATION_CONFIG}`: {what}"));
    let settings: Value = serde_json::from_slice(settings).map_err(|err| invalid(err.to_string()))?;
    let number = |name: &str, low: f64, high: f64| match settings.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number as f32)),
            _ => Err(invalid(format!("`{name}` must be a number from {low} to {high}"))),
        },
    };
    params.temperature = number("temperature", 0.0, 2.0)?.unwrap_or(params.temperature);
    params.top_p = number("top_p", 0.001, 1.0)?.unwrap_or(params.top_p);
    params.top_k = number("top_k", 0.0, 1e6)?.map_or(params.top_k, |k| k as u32);
    params.min_p = number("min_p", 0.0, 0.99)?.unwrap_or(params.min_p);
    params.repetition_penalty =
        number("repetition_penalty", 0.01, 10.0)?.unwrap_or(params.repetition_penalty);
    if settings.get("do_sample") == Some(&Value::Bool(false)) {
        params.temperature = 0.0;
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_gguf_is_found_where_the_hub_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "servedName": "m", "uri": "hf://org/name/q/m.gguf"
        }))
        .unwrap();
        let file = crate::fetch::facts::FileFacts {
            name: "q/m.gguf".to_owned(),
            size_bytes: 1,
            sha256: "0".repeat(64),
        };
        let facts = FetchFacts {
            uri: config.uri.clone(),
            revision: None,
            resolved_revision: None,
            digest: "0".repeat(64),
            seconds: 0.0,
            fetched_bytes: 1,
            files: vec![file],
        };
        let found = only_gguf(folder.path(), &config, Some(&facts)).unwrap();
        assert_eq!(found, Some(folder.path().join("q/m.gguf")));
        assert_eq!(only_gguf(folder.path(), &config, None).unwrap(), None);
    }

    #[test]
    fn the_authors_sampling_advice_is_the_default() {
        let defaults = |text: &str| sampling_defaults(Some(text.as_bytes())).unwrap();
        assert_eq!(sampling_defaults(None).unwrap(), SamplingParams::default());
        assert_eq!(defaults("{\"do_sample\": false}").temperature, 0.0);
        let params = defaults(r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8}"#);
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.7, 20, 0.8));
        let err = sampling_defaults(Some(b"{\"top_p\": 7}")).unwrap_err();
        assert_eq!(err.message, "`generation_config.json`: `top_p` must be a number from 0.001 to 1");
    }
}
