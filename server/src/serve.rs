//! `candela-server serve`: load, answer, drain.

mod config;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use candela_engine::EngineConfig;
use candela_wire::{
    config::{Batching, MODELS_DIR, ServerConfig},
    internal::Startup,
    termination::ExitReason,
    trust::TRUST_PATH,
};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tracing::{info, warn};

use crate::{
    Fatal, Limits, api,
    app::App,
    health::{self, Health},
    http2::Unsent,
    internal,
    lifecycle::{Lifecycle, Stage},
    listen::{self, Bounds, Listener},
    metrics::Metrics,
    progress::{Phase, Progress},
    registry::{Registry, RegistryOptions},
    resources::Resources,
    telemetry::{self, Exporter, Traces},
    trust::{Trust, TrustFollower},
};
pub use config::{empty_config, local_config, read_config};

/// Everything that a process is told.
pub struct Options {
    pub config: ServerConfig,
    pub device: Device,
    pub listen: SocketAddr,
    pub internal_listen: SocketAddr,
    /// Where the init step left the files.
    pub models_dir: PathBuf,
    /// Whose tokens are good; it may be absent, come, change and go.
    pub trust: PathBuf,
    pub limits: Limits,
    pub registry: RegistryOptions,
    /// `None` = no traces.
    pub traces: Option<telemetry::Settings>,
    /// When the process began, for "seconds to the first token".
    pub began: Instant,
}

/// What `--device` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// Accelerators if the pod has some, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

impl Options {
    pub fn new(config: ServerConfig) -> Self {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            config,
            device: Device::Auto,
            listen: any(candela_wire::config::HTTP_PORT),
            internal_listen: any(candela_wire::config::INTERNAL_PORT),
            models_dir: PathBuf::from(MODELS_DIR),
            trust: PathBuf::from(TRUST_PATH),
            limits: Limits::default(),
            registry: RegistryOptions::default(),
            traces: None,
            began: Instant::now(),
        }
    }
}

/// No build has CUDA yet, so accelerators can only be left unused, and only when told so.
fn check_device(options: &Options) -> Result<(), Fatal> {
    let refuse = |what: String| {
        let message = format!(
            "{what}, but candela-server computes on CPUs only so far: serve the model with the engine `Custom`, leave \
             the accelerator out, or pass `--device cpu`"
        );
        Err(Fatal::new(ExitReason::DeviceUnsupported, message))
    };
    match (options.device, &options.config.accelerator) {
        (Device::Cuda, _) => refuse("`--device cuda` was passed".to_owned()),
        (Device::Auto, Some(given)) if given.count > 0 => {
            refuse(format!("the pod was given {} {}", given.count, given.resource_name))
        }
        (Device::Auto | Device::Cpu, _) => Ok(()),
    }
}

/// A process that has its listeners.
pub struct Running {
    pub address: SocketAddr,
    pub internal_address: SocketAddr,
    app: Arc<App>,
    public: Listener,
    internal: Listener,
    exporter: Option<Exporter>,
    engine: EngineConfig,
    models_dir: PathBuf,
    trust_follower: TrustFollower,
}

/// Checks what can be checked at once and binds; `run` does the rest.
pub async fn start(options: Options) -> Result<Running, Fatal> {
    check_device(&options)?;
    let Options {
        config,
        listen,
        internal_listen,
        models_dir,
        trust: trust_file,
        mut limits,
        registry,
        traces,
        began,
        ..
    } = options;
    // What one resource asks for goes before what the operator's configuration says for all.
    let Batching { max_batch_tokens, max_sequences, max_queue, max_wait_ms } = config.batching;
    let number = |wanted: Option<u32>| wanted.map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    limits.sequences = number(max_sequences).unwrap_or(limits.sequences);
    limits.queue = number(max_queue).unwrap_or(limits.queue);
    limits.wait = max_wait_ms.map(Duration::from_millis).or(limits.wait);
    let resources = Resources::of_this_process();
    let threads = resources.threads().get();
    info!(cpus = resources.cpus, memory_bytes = resources.memory_bytes, threads, "limits of this container");
    let engine = EngineConfig {
        max_sequences: limits.sequences,
        max_queue: limits.queue,
        max_queue_tokens: limits.queue_tokens,
        max_wait: limits.wait,
        // Whatever runs computes a token in each step.
        step_tokens: number(max_batch_tokens)
            .unwrap_or_else(|| EngineConfig::default().step_tokens.max(limits.sequences)),
        threads: Some(threads),
        kv_cache_tokens: limits.kv_cache_tokens,
        kv_type: limits.kv_cache_type,
        // A tenth is left for requests, buffers and the allocator's slack.
        memory_limit_bytes: resources.memory_bytes.map(|bytes| bytes / 10 * 9),
        ..EngineConfig::default()
    };
    let metrics = Metrics::new();
    // A repository's models come and go: room for the requests of some.
    let served_at_once = config.models.len() + if registry.repository.is_some() { 4 } else { 0 };
    let models = Registry::new(
        &config,
        registry,
        models_dir.clone(),
        engine.clone(),
        metrics.registry_of_models.clone(),
    )?;
    let (traces, exporter) = traces.map(|settings| Traces::new(settings, &metrics)).unzip();
    let trust = Arc::new(Trust::new(&metrics.trust));
    let trust_follower = TrustFollower::start(Arc::clone(&trust), trust_file);
    let app = Arc::new(App {
        metrics,
        traces,
        trust,
        progress: Arc::new(Progress::new(Phase::Load)),
        lifecycle: Lifecycle::new(),
        health: Health::default(),
        models,
        startup: OnceLock::new(),
        preparing: Arc::new(Semaphore::new(served_at_once * (limits.queue + limits.sequences))),
        bodies: api::Budget::of(resources.memory_bytes),
        tokenising: Arc::new(Semaphore::new(threads)),
        began,
        config,
        limits,
    });
    let public = listen::bind(listen)?;
    let internal = listen::bind(internal_listen)?;
    let address = |socket: &tokio::net::TcpListener| {
        socket.local_addr().map_err(|err| Fatal::config(format!("cannot tell the listening address: {err}")))
    };
    Ok(Running {
        address: address(&public)?,
        internal_address: address(&internal)?,
        public: Listener {
            socket: public,
            router: api::router(Arc::clone(&app)),
            lifecycle: app.lifecycle.clone(),
            until: Stage::Closing,
            bounds: Bounds::public(&app.limits),
            connections: app.metrics.connections.clone(),
            closed_slow: app.metrics.connections_closed_slow.clone(),
            unsent: Arc::new(Unsent::of(resources.memory_bytes)),
        },
        internal: Listener {
            socket: internal,
            router: internal::router(Arc::clone(&app)),
            lifecycle: app.lifecycle.clone(),
            // Probes and the operator see the drain to its end.
            until: Stage::Ending,
            bounds: Bounds::internal(),
            connections: Default::default(),
            closed_slow: Default::default(),
            unsent: Arc::new(Unsent::of(None)),
        },
        exporter,
        engine,
        models_dir,
        trust_follower,
        app,
    })
}

impl Running {
    /// Serves until `stop` completes, then drains. `Err` = a model could not be loaded.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Fatal> {
        let Self {
            app,
            public,
            internal,
            exporter,
            engine,
            models_dir,
            trust_follower,
            address,
            internal_address,
        } = self;
        info!(%address, %internal_address, "listening");
        // Ends with this function.
        let mut beside = JoinSet::new();
        beside.spawn(trust_follower.run(app.limits.trust));
        let public = tokio::spawn(public.run());
        let internal = tokio::spawn(internal.run());
        let exporter = exporter.map(|exporter| tokio::spawn(exporter.run(app.lifecycle.clone())));
        tokio::pin!(stop);
        tokio::select! {
            result = load(&app, engine, models_dir) => result?,
            () = &mut stop => {
                info!("told to stop while loading");
                return Ok(());
            }
        }
        let watch = tokio::spawn(health::watch(Arc::clone(&app)));
        stop.await;
        let stuck = drain(&app, public).await;
        // Both end with the last stage of the drain.
        let _ = watch.await;
        if let Some(exporter) = exporter {
            let _ = exporter.await;
        }
        // The last probes are answered in milliseconds; whoever holds a connection longer is cut off by our end.
        let _ = tokio::time::timeout(Duration::from_millis(500), internal).await;
        // So that the operator says why the pod was restarted.
        stuck.map_or(Ok(()), |stuck| Err(Fatal::new(ExitReason::EngineCrashed, stuck.trim())))
    }
}

/// Loads on a thread that may block, under the eye of the stall watchdog.
async fn load(app: &Arc<App>, engine: EngineConfig, models_dir: PathBuf) -> Result<(), Fatal> {
    let shared = Arc::clone(app);
    let work = move || shared.models.load_fixed(&shared.config, &models_dir, &engine, &shared.progress);
    let limit = Duration::from_secs(app.config.startup_stall_seconds.into());
    let loaded = tokio::select! {
        loaded = tokio::task::spawn_blocking(work) => loaded,
        () = app.progress.stalled(limit) => {
            let at = app.progress.report();
            let message = format!(
                "no progress for {} s in phase {}, after {} bytes: is the volume or the node overloaded?",
                limit.as_secs(), at.phase, at.done_bytes
            );
            return Err(Fatal::new(ExitReason::StartupStalled, message));
        }
    };
    let crashed =
        |err| Fatal::new(ExitReason::EngineCrashed, format!("loading ended by a fault of ours: {err}"));
    let startup = loaded.map_err(crashed)??;
    let first_token_seconds = Some(app.began.elapsed().as_secs_f64());
    let startup = Startup { first_token_seconds, ..startup };
    for (phase, seconds) in [
        ("Fetch", startup.fetch_seconds),
        ("Load", startup.load_seconds),
        ("Warmup", startup.warmup_seconds),
        ("FirstToken", startup.first_token_seconds),
    ] {
        if let Some(seconds) = seconds {
            app.metrics.phase_took(phase, seconds);
        }
    }
    let models: Vec<_> = app.config.models.iter().map(|model| &*model.served_name).collect();
    info!(models = models.join(", "), first_token_seconds, "ready");
    // It is set here only.
    let _ = app.startup.set(startup);
    app.lifecycle.enter(Stage::Ready);
    Ok(())
}

/// Not ready → requests still answered while endpoints forget us → no new ones → streams finish → leftovers end.
/// An engine that is stuck finishes none of them: then they end at once, and what is wrong with it is returned.
async fn drain(app: &Arc<App>, public: tokio::task::JoinHandle<()>) -> Option<String> {
    let stuck = health::stuck(app, health::Probe::Ready);
    let grace = match &stuck {
        Some(_) => Duration::ZERO,
        None => Duration::from_secs(app.config.termination_grace_seconds.into()),
    };
    // What is left when streams are ended goes to sending their last event.
    let end = Instant::now() + grace.saturating_sub((grace / 4).min(Duration::from_secs(2)));
    let window = app.limits.drain_window.min(grace / 3);
    info!(in_flight = app.lifecycle.in_flight(), ?window, ?grace, "draining");
    app.lifecycle.enter(Stage::Draining);
    tokio::time::sleep(window).await;
    app.lifecycle.enter(Stage::Closing);
    tokio::pin!(public);
    if tokio::time::timeout_at(end, &mut public).await.is_err() {
        warn!(in_flight = app.lifecycle.in_flight(), "grace period over: ending what is left");
        app.lifecycle.enter(Stage::Ending);
        if tokio::time::timeout(Duration::from_secs(1), public).await.is_err() {
            warn!("some clients did not take their last event");
        }
    }
    app.lifecycle.enter(Stage::Ending);
    // Joins the engines' threads, which finish their steps first; one that never does must not keep the pod.
    let engines: Vec<_> = app.models.loaded().map(|served| served.loaded.clone()).collect();
    let joined = tokio::task::spawn_blocking(move || engines.iter().for_each(|engine| engine.shutdown()));
    let patience = end.max(Instant::now() + Duration::from_secs(1));
    if tokio::time::timeout_at(patience, joined).await.is_err() {
        warn!("an engine is still in a step: ending without it");
    }
    info!("drained");
    stuck
}

#[cfg(test)]
mod tests;
