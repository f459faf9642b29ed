//! Loading and unloading, each on a thread of its own: neither requests nor other models wait for it.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use candela_engine::EngineConfig;
use candela_wire::config::ModelConfig;
use tracing::{info, warn};

use super::{
    Inner,
    machine::{Event, Key},
    repository::{Print, Refusal, Repository},
    settings::Settings,
};
use crate::{
    model::{self, Served},
    progress::{Phase, Progress},
};

/// Something to be done outside of every lock.
pub(super) enum Work {
    Load { key: Key, limit: Option<u64> },
    Drain { key: Key, served: Vec<Arc<Served>> },
}

impl Work {
    /// `Err` = there is no thread for it; what the machine is to hear then.
    pub(super) fn start(self, inner: &Arc<Inner>) -> Result<(), Event> {
        let shared = Arc::clone(inner);
        let failed = |key: &Key, err: io::Error| Event::Failed {
            key: key.clone(),
            reason: format!("no thread can be started: {err}"),
        };
        match self {
            Self::Load { key, limit } => {
                let name = key.clone();
                let work = move || {
                    let began = Instant::now();
                    let progress = Arc::new(Progress::new(Phase::Load));
                    let watch = Watch::begin(&shared, &key, &progress);
                    let loaded = load(&shared, &key, limit, &progress);
                    drop(watch);
                    match loaded {
                        Ok(served) => {
                            shared.metrics.load_seconds.observe(began.elapsed().as_secs_f64());
                            shared.arrived(key, served);
                        }
                        Err(event) => shared.apply(event),
                    }
                };
                let thread = thread::Builder::new().name("registry-load".to_owned()).spawn(work);
                thread.map(drop).map_err(|err| failed(&name, err))
            }
            Self::Drain { key, served } => {
                let name = key.clone();
                let work = move || {
                    drain(&key, served, shared.options.drain);
                    shared.apply(Event::Drained(key));
                };
                // Without a thread it ends with its last handle, here.
                let thread = thread::Builder::new().name("registry-drain".to_owned()).spawn(work);
                thread.map(drop).map_err(|_| Event::Drained(name))
            }
        }
    }
}

/// Tells the machine of a load that gets no further, until it is dropped.
struct Watch {
    _ended: mpsc::Sender<()>,
}

impl Watch {
    fn begin(inner: &Arc<Inner>, key: &Key, progress: &Arc<Progress>) -> Self {
        let (ended, end) = mpsc::channel::<()>();
        let (inner, key, progress) = (Arc::downgrade(inner), key.clone(), Arc::clone(progress));
        let work = move || {
            let (mut is_quiet, mut is_stalled) = (false, false);
            while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let Some(inner) = inner.upgrade() else { return };
                let still = progress.still_for();
                if still >= QUIET && !is_quiet {
                    is_quiet = true;
                    warn!(model = %key, seconds = still.as_secs(), "a load gets no further: others go before it");
                    inner.apply(Event::Quiet(key.clone()));
                }
                if still >= inner.stall && !is_stalled {
                    is_stalled = true;
                    let reason = format!("no progress for {} s: does its volume answer?", still.as_secs());
                    inner.apply(Event::Stalled { key: key.clone(), reason });
                }
            }
        };
        // Without a thread for it nobody watches; the load itself has one.
        if let Err(err) = thread::Builder::new().name("registry-watch".to_owned()).spawn(work) {
            warn!(%err, "no thread can be started to watch a load");
        }
        Self { _ended: ended }
    }
}

/// Between two looks at a load.
const LOOK: Duration = Duration::from_millis(500);
/// Of a load without progress, from when on others do not wait for it.
const QUIET: Duration = Duration::from_secs(10);

/// All instances of a model, or what became of the attempt.
fn load(inner: &Inner, key: &Key, limit: Option<u64>, progress: &Progress) -> Result<Vec<Served>, Event> {
    let failed = |reason: String| {
        warn!(model = %key, reason, "cannot load the model");
        Event::Failed { key: key.clone(), reason }
    };
    let refused = |refusal| match refusal {
        Refusal::NotFound => failed("its files are gone from the repository".to_owned()),
        Refusal::Bad(what) => failed(what),
    };
    let Some(repository) = &inner.repository else {
        return Err(failed("there is no repository".to_owned()));
    };
    let Files { config, settings, print } = Files::read(repository, key).map_err(refused)?;
    let n = settings.instances();
    let engine = EngineConfig {
        max_sequences: settings.max_sequences.unwrap_or(inner.engine.max_sequences),
        kv_cache_tokens: settings.kv_cache_tokens.or(inner.engine.kv_cache_tokens),
        step_tokens: inner.engine.step_tokens.max(settings.max_sequences.unwrap_or(0)),
        // Together they have the threads that a single one has.
        threads: inner.engine.threads.map(|threads| (threads / n).max(1)),
        memory_limit_bytes: limit.map(|limit| limit / n as u64),
        ..inner.engine.clone()
    };
    let mut instances = Vec::new();
    for at in 1..=n {
        let loaded = model::load(&config, &inner.models_dir, &engine, progress);
        let (mut served, _) = loaded.map_err(|failure| match failure.needs_bytes {
            Some(bytes) if limit.is_some() => {
                Event::Needs { key: key.clone(), bytes: bytes.saturating_mul(n as u64) }
            }
            // Clients read it too, and where the repository lies is not their affair.
            _ => failed(repository.within(&failure.fatal.message)),
        })?;
        served.version = key.version;
        served.label = if n == 1 { key.to_string() } else { format!("{key}#{at}") };
        served.aliases = inner.aliases_of(key);
        served.uses.touch();
        instances.push(served);
    }
    // What changed while it was read may be half of one and half of another model.
    match Files::read(repository, key) {
        Ok(files) if files.print == print => Ok(instances),
        _ => Err(failed("its files changed while they were read: load it again".to_owned())),
    }
}

/// What a version is loaded from.
struct Files {
    config: ModelConfig,
    settings: Settings,
    print: Print,
}

impl Files {
    fn read(repository: &Repository, key: &Key) -> Result<Self, Refusal> {
        let settings = repository.model(&key.name)?.settings;
        let path = repository.version(&key.name, key.version)?;
        let print = repository.print(&path)?;
        let text = path.to_str().ok_or_else(|| Refusal::Bad("its path must be UTF-8".to_owned()))?;
        let mut config = ModelConfig::new(&*key.name, format!("file://{text}"));
        config.context_length = settings.context_length;
        config.quantization = settings.quantization;
        config.tasks.clone_from(&settings.tasks);
        Ok(Self { config, settings, print })
    }
}

/// Ends a model that nobody can reach any more: after its requests, or after `patience`.
fn drain(key: &Key, served: Vec<Arc<Served>>, patience: Duration) {
    let began = Instant::now();
    let deadline = began + patience;
    // Those that have found it and not yet asked its engine, then those that have.
    let left = served.iter().all(|served| served.uses.wait(deadline));
    for served in &served {
        served.loaded.drain();
    }
    let idle = served.iter().all(|served| served.loaded.wait_idle(deadline));
    if !(left && idle) {
        warn!(model = %key, ?patience, "unloading the model ends requests that took too long");
    }
    // Joins the threads, and with them goes the memory of weights and caches.
    for served in &served {
        served.loaded.shutdown();
    }
    info!(model = %key, seconds = began.elapsed().as_secs_f64(), "model unloaded");
}
