//! Arguments, logging, the runtime, and exit codes.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use candela_engine::KvType;
use candela_wire::{
    config::{MODELS_DIR, Quantization, SERVER_CONFIG_PATH},
    termination::{ExitReason, TERMINATION_LOG_PATH},
    trust::TRUST_PATH,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tracing_subscriber::EnvFilter;

use crate::{
    Alias, Control, Fatal, Limits, RegistryOptions, exit, fetch,
    resources::Resources,
    serve::{self, Device, Options},
    telemetry,
};

#[derive(Parser)]
#[command(name = "candela-server", version, about = "Serves models over the OpenAI API")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Load the models and answer requests until SIGTERM.
    Serve(Box<ServeArgs>),
    /// Fetch the models' files, then exit: the init step of a pod.
    Fetch(FetchArgs),
}

#[derive(Args)]
struct Shared {
    /// What to serve.
    #[arg(long, default_value = SERVER_CONFIG_PATH)]
    config: PathBuf,
    /// Address of metrics, probes and status.
    #[arg(long, default_value = "0.0.0.0:9090")]
    internal_listen: SocketAddr,
    /// Where to leave the reason if the process has to give up.
    #[arg(long, default_value = TERMINATION_LOG_PATH)]
    termination_log: PathBuf,
}

#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    shared: Shared,
    /// A GGUF file, or a folder in the hub's layout, to serve instead of what `--config` says.
    #[arg(long, conflicts_with = "config", value_name = "PATH")]
    model: Option<PathBuf>,
    /// What clients call the model of `--model`; the file's name without its ending if absent.
    #[arg(long, requires = "model", value_name = "NAME")]
    served_name: Option<String>,
    /// Prompt and answer of a request to the model of `--model`, in tokens; what it was made for if absent.
    #[arg(long, requires = "model", value_name = "TOKENS")]
    context_length: Option<u32>,
    /// What weights of 16 and 32 bits of `--model` become when they are loaded.
    #[arg(long, requires = "model", value_enum, value_name = "TYPE")]
    quantization: Option<WeightType>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// `cpu` leaves accelerators unused.
    #[arg(long, value_enum, default_value = "auto")]
    device: Device,
    /// Address of the public API.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Folder that `fetch` filled.
    #[arg(long, default_value = MODELS_DIR)]
    models_dir: PathBuf,
    /// The keys that a gateway's tokens are checked with; it may be absent, and is followed while it changes.
    #[arg(long, default_value = TRUST_PATH, value_name = "PATH")]
    trust: PathBuf,
    /// Requests that generate at the same time.
    #[arg(long, default_value_t = Limits::default().sequences, value_parser = positive)]
    max_sequences: usize,
    /// Requests that may wait; one more is answered 429.
    #[arg(long, default_value_t = Limits::default().queue, value_parser = positive)]
    max_queue: usize,
    /// Prompt tokens that may wait, of all requests together; further requests are answered 429. A request that waits
    /// alone may have more.
    #[arg(long, value_parser = positive, value_name = "TOKENS")]
    max_queue_tokens: Option<usize>,
    /// Requests that would have to wait longer, as estimated from the speed so far, are answered 429.
    #[arg(long, value_parser = positive, value_name = "SECONDS")]
    max_wait_seconds: Option<usize>,
    /// How keys and values are stored. `int8` halves their memory and changes answers a little; `f32` doubles it.
    #[arg(long, value_enum, default_value = "f16", value_name = "TYPE")]
    kv_cache_type: KvCacheType,
    /// Tokens whose keys and values are held at most, of all requests of a model together; absent = every sequence at
    /// its full context, or what the memory limit leaves. A request that needs more waits for others to end.
    #[arg(long, value_parser = positive, value_name = "TOKENS")]
    kv_cache_tokens: Option<usize>,
    /// Open client connections.
    #[arg(long, default_value_t = Limits::default().connections, value_parser = positive)]
    max_connections: usize,
    /// Largest request body in bytes; a short context or little memory lower it.
    #[arg(long, default_value_t = Limits::default().body_bytes, value_parser = positive)]
    max_body_bytes: usize,
    /// Seconds after SIGTERM in which new requests are still answered.
    #[arg(long, default_value_t = Limits::default().drain_window.as_secs())]
    drain_window_seconds: u64,
    /// Seconds without any progress of an engine that has work until `/readyz` fails; `/livez` fails after three times that.
    #[arg(long, default_value_t = Limits::default().heartbeat.as_secs())]
    heartbeat_seconds: u64,
    /// Address of an OpenTelemetry collector that takes traces over HTTP, such as `http://collector:4318`; else
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`. Without it there are no traces. Other `OTEL_` variables hold as well.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvCacheType {
    F32,
    F16,
    Int8,
}

#[derive(Clone, Copy, ValueEnum)]
enum WeightType {
    Q8,
    Q4,
}

impl From<WeightType> for Quantization {
    fn from(wanted: WeightType) -> Self {
        match wanted {
            WeightType::Q8 => Self::Q8,
            WeightType::Q4 => Self::Q4,
        }
    }
}

/// Models beside those of the configuration.
#[derive(Args)]
struct RegistryArgs {
    /// A folder of models in Triton's layout, `<model>/<version>/<files>`, to serve beside what `--config` says.
    #[arg(long, value_name = "FOLDER")]
    model_repository: Option<PathBuf>,
    /// Who says which of its models are loaded.
    #[arg(long, value_enum, default_value = "explicit", requires = "model_repository")]
    model_control: Control,
    /// Bytes that its models may take together; what is not used goes first. What the other models leave of the
    /// container's limit if absent.
    #[arg(long, requires = "model_repository", value_name = "BYTES", value_parser = positive)]
    model_memory_bytes: Option<usize>,
    /// Seconds that a request may wait for its model to be loaded.
    #[arg(long, default_value_t = RegistryOptions::default().wait.as_secs(), requires = "model_repository")]
    model_wait_seconds: u64,
    /// Seconds that requests have to end when their model is unloaded.
    #[arg(long, default_value_t = RegistryOptions::default().drain.as_secs(), requires = "model_repository")]
    model_drain_seconds: u64,
    /// Another name of a model; may be given several times.
    #[arg(long, value_name = "NAME=MODEL[:VERSION]")]
    model_alias: Vec<Alias>,
}

impl RegistryArgs {
    fn options(self) -> RegistryOptions {
        RegistryOptions {
            repository: self.model_repository,
            control: self.model_control,
            memory_bytes: self.model_memory_bytes.map(|bytes| bytes as u64),
            wait: Duration::from_secs(self.model_wait_seconds),
            drain: Duration::from_secs(self.model_drain_seconds),
            aliases: self.model_alias,
        }
    }
}

#[derive(Args)]
struct FetchArgs {
    #[command(flatten)]
    shared: Shared,
    /// Folder to fill: one subfolder per served name.
    #[arg(long, default_value = MODELS_DIR)]
    to: PathBuf,
    /// Seconds after which fetching gives up, whatever its progress.
    #[arg(long, default_value_t = 6 * 3600)]
    deadline_seconds: u64,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number above 0".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// The program.
pub fn main() -> ExitCode {
    // clap prints and exits by itself; its exit code 2 means "bad arguments".
    let cli = Cli::parse();
    let began = Instant::now();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let log = match &cli.command {
        Verb::Serve(args) => args.shared.termination_log.clone(),
        Verb::Fetch(args) => args.shared.termination_log.clone(),
    };
    exit::exit_on_panic(&log);
    let result = match cli.command {
        Verb::Serve(args) => run_serve(*args, began),
        Verb::Fetch(args) => run_fetch(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            exit::report(&fatal, &log);
            ExitCode::FAILURE
        }
    }
}

fn run_serve(args: ServeArgs, began: Instant) -> Result<(), Fatal> {
    let threads = Resources::of_this_process().threads().get();
    set_environment(threads, args.registry.model_repository.is_some())?;
    let limits = Limits {
        sequences: args.max_sequences,
        queue: args.max_queue,
        queue_tokens: args.max_queue_tokens,
        wait: args.max_wait_seconds.map(|seconds| Duration::from_secs(seconds as u64)),
        kv_cache_tokens: args.kv_cache_tokens,
        kv_cache_type: match args.kv_cache_type {
            KvCacheType::F32 => KvType::F32,
            KvCacheType::F16 => KvType::F16,
            KvCacheType::Int8 => KvType::Int8,
        },
        connections: args.max_connections,
        body_bytes: args.max_body_bytes,
        drain_window: Duration::from_secs(args.drain_window_seconds),
        heartbeat: Duration::from_secs(args.heartbeat_seconds),
        ..Limits::default()
    };
    let options = Options {
        config: match &args.model {
            Some(model) => {
                let mut config = serve::local_config(model, args.served_name)?;
                for model in &mut config.models {
                    model.context_length = args.context_length;
                    model.quantization = args.quantization.map(Into::into);
                }
                config
            }
            None if args.registry.model_repository.is_some() && is_absent_default(&args.shared.config) => {
                serve::empty_config()
            }
            None => serve::read_config(&args.shared.config)?,
        },
        device: args.device,
        listen: args.listen,
        internal_listen: args.shared.internal_listen,
        models_dir: args.models_dir,
        trust: args.trust,
        limits,
        registry: args.registry.options(),
        traces: telemetry::Settings::read(args.otlp_endpoint.as_deref(), |name| std::env::var(name).ok())
            .map_err(Fatal::config)?,
        began,
    };
    let runtime = runtime(threads)?;
    let result = runtime.block_on(async {
        let stop = stop_signal()?;
        serve::start(options).await?.run(stop).await
    });
    // A load that is still reading cannot be cancelled, and nobody waits for it.
    runtime.shutdown_background();
    result
}

/// Nobody named a configuration, and there is none.
fn is_absent_default(config: &Path) -> bool {
    config == Path::new(SERVER_CONFIG_PATH) && !config.exists()
}

fn run_fetch(args: FetchArgs) -> Result<(), Fatal> {
    let config = serve::read_config(&args.shared.config)?;
    let options = fetch::Options {
        deadline: Duration::from_secs(args.deadline_seconds),
        ..fetch::Options::new(config, args.to)
    };
    let runtime = runtime(1)?;
    let result = runtime.block_on(async {
        let stop = stop_signal()?;
        let metrics = Some(args.shared.internal_listen);
        tokio::select! {
            result = fetch::run(options, metrics) => result,
            // What has arrived stays, and the next attempt goes on from there; but this one has not succeeded.
            () = stop => Err(Fatal::new(
                ExitReason::WeightsFetchFailed,
                "told to stop before the fetch was complete; the next one resumes it",
            )),
        }
    });
    runtime.shutdown_background();
    result
}

/// candle and rayon read the size of their pools from the environment, once, before the first use, and the C library what
/// of its memory it keeps. Setting a variable in a process that may have threads is not safe, so the process starts itself
/// again with them.
fn set_environment(threads: usize, unloads: bool) -> Result<(), Fatal> {
    let mut wanted =
        vec![("RAYON_NUM_THREADS", threads.to_string()), ("CANDLE_NUM_THREADS", threads.to_string())];
    if unloads {
        // glibc raises this by itself with each large piece that is freed, up to 32 MiB, and would keep the matrices of
        // models that are unloaded.
        wanted.push(("MALLOC_MMAP_THRESHOLD_", (512 << 10).to_string()));
    }
    wanted.retain(|(name, _)| std::env::var_os(name).is_none());
    if wanted.is_empty() {
        return Ok(());
    }
    // Returns only if it failed.
    let err = Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).envs(wanted).exec();
    Err(Fatal::config(format!("cannot start again with {threads} threads: {err}")))
}

/// What a shell makes of SIGINT.
const INTERRUPTED: i32 = 130;

/// Requests need little: tokenising has threads of its own, and so has the engine.
fn runtime(threads: usize) -> Result<Runtime, Fatal> {
    Builder::new_multi_thread()
        .worker_threads(threads.clamp(1, 4))
        .max_blocking_threads(threads + 8)
        .enable_all()
        .build()
        .map_err(|err| Fatal::config(format!("cannot start the runtime's threads: {err}")))
}

fn stop_signal() -> Result<impl Future<Output = ()>, Fatal> {
    let listen =
        |kind| signal(kind).map_err(|err| Fatal::config(format!("cannot listen for signals: {err}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Who asks twice at a terminal waits for no drain.
        tokio::spawn(async move {
            if interrupt.recv().await.is_some() {
                std::process::exit(INTERRUPTED);
            }
        });
    })
}

#[cfg(test)]
mod tests;
