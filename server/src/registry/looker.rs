//! Looks at the repository's folder on a thread of its own, for requests: a volume that hangs takes no thread from
//! anything else, and nobody waits for it for long.

use std::{
    sync::mpsc::{self, Receiver, SyncSender, TrySendError},
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

use super::{
    Registry,
    repository::{Folder, Refusal, Repository},
};
use crate::api::ApiError;

/// Looks that wait; one more is told to come again.
const QUEUE: usize = 64;
/// That a request waits for a look.
const PATIENCE: Duration = Duration::from_secs(10);
/// From one scan of everything to the next: what comes meanwhile shares one.
const BETWEEN_SCANS: Duration = Duration::from_millis(250);

enum Look {
    Model { name: String, found: oneshot::Sender<Result<Folder, Refusal>> },
    All { registry: Registry, done: oneshot::Sender<()> },
}

/// A handle of the thread, which ends with it.
#[derive(Clone)]
pub(super) struct Looker(SyncSender<Look>);

impl Looker {
    pub(super) fn new(repository: &Repository) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        let repository = repository.clone();
        let work = move || run(&repository, &receiver);
        thread::Builder::new().name("registry-look".to_owned()).spawn(work)?;
        Ok(Self(sender))
    }

    /// One model's folder, as it is now.
    pub(super) async fn model(&self, name: &str) -> Result<Result<Folder, Refusal>, ApiError> {
        let (found, answer) = oneshot::channel();
        let silent = || {
            let why = format!(
                "the volume of the model repository did not answer within {} s: retry later, or look after it",
                PATIENCE.as_secs()
            );
            ApiError::Unavailable { model: name.chars().take(100).collect(), why, passes: true }
        };
        self.ask(Look::Model { name: name.to_owned(), found }, answer).await?.ok_or_else(silent)
    }

    /// Returns once the registry has heard of all folders as they are now; or of none, if the volume is silent.
    pub(super) async fn all(&self, registry: Registry) -> Result<(), ApiError> {
        let (done, answer) = oneshot::channel();
        if self.ask(Look::All { registry, done }, answer).await?.is_none() {
            warn!(waited = ?PATIENCE, "the volume of the model repository does not answer");
        }
        Ok(())
    }

    /// `None` = no answer in time.
    async fn ask<T>(&self, look: Look, answer: oneshot::Receiver<T>) -> Result<Option<T>, ApiError> {
        match self.0.try_send(look) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Err(ApiError::QueueFull { retry_after: Duration::from_secs(1) });
            }
            Err(TrySendError::Disconnected(_)) => return Err(ApiError::ShuttingDown),
        }
        match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map(Some).map_err(|_| ApiError::ShuttingDown),
            Err(_) => Ok(None),
        }
    }
}

fn run(repository: &Repository, looks: &Receiver<Look>) {
    let mut scanned: Option<Instant> = None;
    let mut put_off = Vec::new();
    loop {
        let next = match (&put_off[..], scanned) {
            ([], _) => looks.recv().ok(),
            (_, Some(scanned)) => looks.recv_timeout(BETWEEN_SCANS.saturating_sub(scanned.elapsed())).ok(),
            _ => None,
        };
        match next {
            // Nobody waits any more: so much less to do after a volume has come back.
            Some(Look::Model { found, .. }) if found.is_closed() => {}
            Some(Look::Model { name, found }) => {
                let _ = found.send(repository.model(&name));
            }
            Some(Look::All { registry, done }) => put_off.push((registry, done)),
            None if put_off.is_empty() => return,
            None => {}
        }
        put_off.retain(|(_, done): &(Registry, oneshot::Sender<()>)| !done.is_closed());
        if let Some((registry, _)) = put_off.first()
            && scanned.is_none_or(|scanned| scanned.elapsed() >= BETWEEN_SCANS)
        {
            registry.scan(repository);
            scanned = Some(Instant::now());
            for (_, done) in put_off.drain(..) {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
    }
}
