//! `candela-server fetch`: the init step that brings a model's files into the pod. It resumes, verifies, and
//! leaves a folder that either is complete or says so by lacking `candela-fetch.json`.

mod client;
mod download;
pub(crate) mod facts;
mod files;
mod hub;
pub(crate) mod source;

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use candela_wire::{
    config::{ModelConfig, ServerConfig},
    termination::ExitReason,
};
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::{
    Fatal,
    exit::Chain,
    http2::Unsent,
    internal,
    lifecycle::{Lifecycle, Stage},
    listen::{self, Bounds, Listener},
    metrics::Metrics,
    progress::{Phase, Progress},
};
use client::{Client, Credentials};
use download::Download;
use facts::{FetchFacts, FileFacts};
use files::{Plan, RemoteFile};
use source::{Location, Source, redacted};

/// What to fetch, and how patient to be.
pub struct Options {
    pub config: ServerConfig,
    pub to: PathBuf,
    pub deadline: Duration,
    /// The hub, from `HF_ENDPOINT`.
    pub hub: String,
    pub patience: Patience,
}

/// How a source may misbehave before we give up.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Failures in a row without a byte gained.
    pub attempts: u32,
    /// Wait after the first failure; doubles with each.
    pub backoff: Duration,
    pub backoff_max: Duration,
    pub connect: Duration,
    /// Between two pieces of an answer.
    pub read: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 8,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
        }
    }
}

impl Options {
    pub fn new(config: ServerConfig, to: PathBuf) -> Self {
        let hub = std::env::var("HF_ENDPOINT").ok().filter(|hub| !hub.is_empty());
        Self {
            config,
            to,
            deadline: Duration::from_secs(6 * 3600),
            hub: hub.unwrap_or_else(|| "https://huggingface.co".to_owned()),
            patience: Patience::default(),
        }
    }
}

/// Why a fetch failed; each kind is one reason of the termination message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Mismatch(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Config(String),
    /// The source does not do this kind of request (HEAD).
    #[error("{0}")]
    Method(String),
    /// Retrying did not help, or would not.
    #[error("{0}")]
    Failed(String),
    #[error("cannot write `{path}`{}", disk_hint(.source))]
    Disk {
        path: String,
        #[source]
        source: io::Error,
    },
}

fn disk_hint(err: &io::Error) -> &'static str {
    match err.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the volume is full; raise its size (or the pod's ephemeral-storage limit)"
        }
        _ => "",
    }
}

impl From<FetchError> for Fatal {
    fn from(err: FetchError) -> Self {
        let reason = match err {
            FetchError::NotFound(_) => ExitReason::WeightsNotFound,
            FetchError::Unauthorized(_) => ExitReason::WeightsUnauthorized,
            FetchError::Mismatch(_) => ExitReason::ChecksumMismatch,
            FetchError::Unsupported(_) => ExitReason::ModelUnsupported,
            FetchError::Config(_) => ExitReason::InvalidConfiguration,
            FetchError::Method(_) | FetchError::Failed(_) | FetchError::Disk { .. } => {
                ExitReason::WeightsFetchFailed
            }
        };
        Fatal::new(reason, Chain(&err).to_string())
    }
}

/// Fetches every model of the configuration; serves metrics on `internal_listen` meanwhile.
pub async fn run(options: Options, internal_listen: Option<SocketAddr>) -> Result<(), Fatal> {
    let progress = Arc::new(Progress::new(Phase::Fetch));
    let lifecycle = Lifecycle::new();
    let listener = match internal_listen {
        None => None,
        Some(address) => Some(tokio::spawn(
            Listener {
                socket: listen::bind(address)?,
                router: internal::fetch_router(Metrics::new(), Arc::clone(&progress)),
                lifecycle: lifecycle.clone(),
                until: Stage::Ending,
                bounds: Bounds::internal(),
                connections: Default::default(),
                closed_slow: Default::default(),
                unsent: Arc::new(Unsent::of(None)),
            }
            .run(),
        )),
    };
    let stall = Duration::from_secs(options.config.startup_stall_seconds.into());
    let all = async {
        for model in &options.config.models {
            progress.enter(Phase::Fetch);
            fetch(&options, model, &progress)
                .await
                .map_err(|fatal| of_model(fatal, &options.config, model))?;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = timeout(options.deadline, all) => result.unwrap_or_else(|_| {
            let message = format!("the fetch did not end within {} s", options.deadline.as_secs());
            Err(Fatal::new(ExitReason::WeightsFetchFailed, message))
        }),
        () = progress.stalled(stall) => {
            let message = format!(
                "no byte arrived for {} s, after {} bytes: is the source reachable from this pod?",
                stall.as_secs(), progress.done_bytes()
            );
            Err(Fatal::new(ExitReason::StartupStalled, message))
        }
        () = log_progress(&progress) => Ok(()),
    };
    lifecycle.enter(Stage::Ending);
    if let Some(listener) = listener {
        let _ = timeout(Duration::from_millis(500), listener).await;
    }
    result
}

/// Among several models, the message says which one it speaks of.
fn of_model(fatal: Fatal, config: &ServerConfig, model: &ModelConfig) -> Fatal {
    if config.models.len() == 1 {
        return fatal;
    }
    Fatal { message: format!("model `{}`: {}", model.served_name, fatal.message), ..fatal }
}

/// A line every ten seconds, for ever.
async fn log_progress(progress: &Progress) {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let now = progress.report();
        let per_second = now.done_bytes.saturating_sub(last) / 10;
        last = now.done_bytes;
        info!(done_bytes = now.done_bytes, total_bytes = ?now.total_bytes, per_second, "fetching");
    }
}

async fn fetch(options: &Options, model: &ModelConfig, progress: &Progress) -> Result<(), Fatal> {
    let source = Source::parse(model)?;
    let folder = options.to.join(source.folder_name());
    if matches!(source.location, Location::Builtin | Location::Path(_)) {
        info!(model = %model.served_name, uri = %redacted(&model.uri), "nothing to fetch");
        return Ok(());
    }
    // A file that does not parse is as good as none: everything is fetched again.
    if FetchFacts::read(&folder).ok().flatten().is_some_and(|facts| facts.answers(model, &folder)) {
        info!(folder = %folder.display(), "already complete");
        return Ok(());
    }
    let began = Instant::now();
    let credentials = Credentials::read(model, &source, &options.hub)?;
    let client = Client::new(credentials, options.patience)?;
    info!(model = %model.served_name, uri = %redacted(&model.uri), to = %folder.display(), "fetching");
    let facts = fetch_files(options, model, &source, &client, &folder, progress).await?;
    let seconds = began.elapsed().as_secs_f64();
    let facts = FetchFacts { seconds, ..facts };
    let text = serde_json::to_vec_pretty(&facts).expect("plain data with string keys serialises");
    download::write_whole(&folder.join(facts::FILE), &text)?;
    info!(seconds, bytes = facts.fetched_bytes, digest = %facts.digest, "fetched");
    Ok(())
}

async fn fetch_files(
    options: &Options,
    model: &ModelConfig,
    source: &Source,
    client: &Client,
    folder: &std::path::Path,
    progress: &Progress,
) -> Result<FetchFacts, FetchError> {
    let disk = |err| FetchError::Disk { path: folder.display().to_string(), source: err };
    fs::create_dir_all(folder).map_err(disk)?;
    // The folder is in flux from here on.
    match fs::remove_file(folder.join(facts::FILE)) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(disk(err)),
        _ => {}
    }
    let Plan { files, resolved_revision } = match &source.location {
        Location::Hub { repo, revision, file } => {
            hub::plan(client, &options.hub, repo, revision, file.as_deref(), model).await?
        }
        Location::HttpFile(url) => files::one_file(client, url).await?,
        Location::HttpFolder(url) => files::folder(client, url).await?,
        Location::Builtin | Location::Path(_) => unreachable!("returned above: there is nothing to fetch"),
    };
    // Sizes are the source's words: too large a sum is as good as none.
    let known = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size_bytes?));
    progress.set_total(known.unwrap_or(0));
    remove_others(folder, &files).map_err(disk)?;
    let mut done = Vec::new();
    let mut fetched_bytes = 0;
    for file in &files {
        let download = Download { client, file, folder, progress };
        let (facts, bytes) = match download.run().await {
            // Some sources answer neither HEAD nor an honest 404.
            Err(FetchError::NotFound(_) | FetchError::Unauthorized(_)) if file.optional => {
                download.remove_part()?;
                continue;
            }
            result => result?,
        };
        fetched_bytes += bytes;
        done.push(facts);
    }
    let digest = digest(&done);
    if let Some(wanted) = model.sha256.as_ref().filter(|wanted| **wanted != digest) {
        for file in done.iter().filter(|file| is_weights(&file.name)) {
            // Kept, they would be found complete by the next attempt, and be wrong again.
            let _ = fs::remove_file(folder.join(&file.name));
        }
        let message = format!("the weights have SHA-256 {digest}, `verification.sha256` says {wanted}");
        return Err(FetchError::Mismatch(message));
    }
    Ok(FetchFacts {
        uri: model.uri.clone(),
        revision: model.revision.clone(),
        resolved_revision,
        digest,
        seconds: 0.0,
        fetched_bytes,
        files: done,
    })
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin") || is_gguf(name)
}

fn is_gguf(name: &str) -> bool {
    std::path::Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Takes out what an earlier fetch of something else left: an old index would be read as part of this model. Parts of
/// files of this plan stay, they can be continued.
fn remove_others(folder: &std::path::Path, files: &[files::RemoteFile]) -> io::Result<()> {
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at)? {
            let entry = entry?;
            let path = entry.path();
            // Not followed: a link is removed, what it points at is not ours.
            if entry.file_type()?.is_dir() {
                open.push(path);
                continue;
            }
            let wanted = |file: &files::RemoteFile| {
                let target = folder.join(&file.name);
                let beside = path.parent() == target.parent();
                let name =
                    |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
                let (Some(found), Some(target)) = (name(&path), name(&target)) else { return false };
                beside && (found == target || found.contains(&target) && found.contains(".part"))
            };
            if !files.iter().any(wanted) {
                info!(file = %path.display(), "not part of this model, removed");
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// As `verification.sha256` counts: of the file, or of the sorted list of `SHA256  NAME` lines.
fn digest(files: &[FileFacts]) -> String {
    use sha2::{Digest, Sha256};
    let mut weights: Vec<_> = files.iter().filter(|file| is_weights(&file.name)).collect();
    if let [only] = weights[..]
        && is_gguf(&only.name)
    {
        return only.sha256.clone();
    }
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let list: String = weights.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
    hex::encode(Sha256::digest(list))
}

#[cfg(test)]
mod tests;
