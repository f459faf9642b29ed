//! `candela-operator`: arguments, logs, signals; everything else is in the library.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use candela_operator::{OperatorConfig, Planted, RunOptions, client, error::Chain, run};
use clap::{Parser, Subcommand, ValueEnum};
use rand::distr::{Alphanumeric, SampleString as _};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// Kubernetes operator for the whole life of an LLM API.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM.
    Run(RunArgs),
    /// Check a configuration and print it with its defaults.
    CheckConfig {
        #[arg(long, default_value = "/etc/candela/operator.yaml")]
        config: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The configuration of this installation.
    #[arg(long, default_value = "/etc/candela/operator.yaml")]
    config: PathBuf,
    /// How to reach the API server; absent = as a pod.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Look after one namespace only.
    #[arg(long)]
    namespace: Option<String>,
    /// Name of this process in the Lease; absent = the pod's name and a random part.
    #[arg(long)]
    identity: Option<String>,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "candela-system")]
    operator_namespace: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    #[arg(long, default_value = "0.0.0.0:9090")]
    internal_listen: SocketAddr,
    /// Format of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => start(args),
        Command::CheckConfig { config } => check_config(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = Chain(failure.as_ref()).to_string();
            // Before logging is set up, and for people at a terminal.
            if tracing::dispatcher::has_been_set() {
                error!(error = text, "ended");
            } else {
                let _ =
                    std::io::Write::write_all(&mut std::io::stderr(), format!("error: {text}\n").as_bytes());
            }
            ExitCode::FAILURE
        }
    }
}

fn check_config(path: &std::path::Path) -> anyhow::Result<()> {
    let config = OperatorConfig::load(path)?;
    let text = serde_yaml::to_string(&config).context("failed to print the configuration")?;
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).context("failed to write to stdout")
}

fn start(args: RunArgs) -> anyhow::Result<()> {
    let config = OperatorConfig::load(&args.config)?;
    let filter = EnvFilter::try_from_default_env()
        // kube logs each 4xx and 5xx answer as an error; we say ourselves what follows from it.
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=error"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => subscriber.init(),
    }
    // One provider for the process; the error only says that it was set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    runtime.block_on(run_until_signal(args, config))
}

async fn run_until_signal(args: RunArgs, config: OperatorConfig) -> anyhow::Result<()> {
    let client = client::connect(args.kubeconfig.as_deref(), &config.client_timeouts).await?;
    let identity = args.identity.unwrap_or_else(|| {
        let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "candela-operator".to_owned());
        format!("{pod}_{}", Alphanumeric.sample_string(&mut rand::rng(), 8))
    });
    let mut options = RunOptions::new(client, config, identity);
    options.operator_namespace = args.operator_namespace;
    options.watch_namespace = args.namespace;
    options.internal_listen = Some(args.internal_listen);
    options.planted = planted();
    info!(version = env!("CARGO_PKG_VERSION"), identity = %options.identity, "starting");

    let shutdown = options.shutdown.clone();
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let signals = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = run(options) => Ok(ended?),
        () = signals => Ok(()),
    }
}

#[cfg(feature = "planted-bugs")]
fn planted() -> Planted {
    Planted::from_env()
}

#[cfg(not(feature = "planted-bugs"))]
fn planted() -> Planted {
    Planted::default()
}
