//! What the handlers of one process share.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use candela_engine::KvType;
use candela_wire::{
    config::ServerConfig, health::READY_SILENCE_SECS, internal::Startup, openai::RequestLimits,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    api::{ApiError, Budget},
    health::Health,
    lifecycle::{Lifecycle, Stage},
    metrics::{Metrics, Now, Seen},
    model::Served,
    progress::Progress,
    registry::Registry,
    telemetry::Traces,
    trust::Trust,
};

/// Bounds of one process that `server.json` does not set.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body; less where the model's context or the container's memory is small.
    pub body_bytes: usize,
    /// Time for a whole body to arrive.
    pub body: Duration,
    /// Time from the first byte of a request (or from accepting) to the end of its headers.
    pub header: Duration,
    /// Time that a connection may rest between requests.
    pub idle: Duration,
    /// Time that a client may take to accept the next bytes of an answer.
    pub write: Duration,
    /// Open connections on the public listener; further ones wait in the kernel's backlog.
    pub connections: usize,
    /// Sequences that generate at the same time.
    pub sequences: usize,
    /// Requests that may wait for one.
    pub queue: usize,
    /// Prompt tokens that may wait, of all waiting requests together.
    pub queue_tokens: Option<usize>,
    /// Estimated time that a request may have to wait.
    pub wait: Option<Duration>,
    /// Tokens whose keys and values are held at most, of all sequences of a model.
    pub kv_cache_tokens: Option<usize>,
    /// How keys and values are stored.
    pub kv_cache_type: KvType,
    /// Tokens of a stream that its client has not read yet; one more ends it.
    pub unread_tokens: usize,
    /// Between keep-alive comments on a silent stream.
    pub keep_alive: Duration,
    /// Whole request, when `server.json` does not say.
    pub request: Duration,
    /// From SIGTERM until the listener closes: endpoints need that long to forget this pod.
    pub drain_window: Duration,
    /// An engine that has work and does not get on for so long is stuck: `/readyz` fails, and after three times as long
    /// `/livez`.
    pub heartbeat: Duration,
    /// Between two looks at the trust file.
    pub trust: Duration,
    pub shape: RequestLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            body: Duration::from_secs(30),
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
            connections: 1024,
            sequences: 8,
            queue: 64,
            queue_tokens: None,
            wait: None,
            kv_cache_tokens: None,
            kv_cache_type: KvType::F16,
            unread_tokens: 1024,
            keep_alive: Duration::from_secs(15),
            request: Duration::from_secs(600),
            drain_window: Duration::from_secs(5),
            heartbeat: Duration::from_secs(READY_SILENCE_SECS.into()),
            trust: Duration::from_secs(2),
            shape: RequestLimits::default(),
        }
    }
}

/// One process.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) lifecycle: Lifecycle,
    /// `None` = nobody asked for traces.
    pub(crate) traces: Option<Traces>,
    pub(crate) health: Health,
    pub(crate) models: Registry,
    /// Whom headers are believed from.
    pub(crate) trust: Arc<Trust>,
    pub(crate) startup: OnceLock<Startup>,
    /// Requests between their body and the engine's queue; more than that queue holds is refused at once.
    pub(crate) preparing: Arc<Semaphore>,
    /// For bodies between their headers and their job.
    pub(crate) bodies: Budget,
    /// Of the requests that prepare, how many tokenise at the same time.
    pub(crate) tokenising: Arc<Semaphore>,
    pub(crate) began: Instant,
}

impl App {
    /// Whether this process is on its way out.
    pub(crate) fn is_ending(&self) -> bool {
        self.lifecycle.stage() >= Stage::Draining
    }

    /// Why an engine takes no requests or has ended one: its model is unloaded, or the process ends.
    pub(crate) fn engine_ended(&self, model: &str) -> ApiError {
        if self.is_ending() {
            return ApiError::ShuttingDown;
        }
        let why = "it was unloaded, which ends requests that take too long".to_owned();
        ApiError::Unavailable { model: model.to_owned(), why, passes: true }
    }

    pub(crate) fn now(&self) -> Now {
        let seen = |served: Arc<Served>| Seen {
            model: served.label.clone(),
            metrics: self.metrics.of(&served.label),
            engine: served.loaded.seen(),
            memory: served.loaded.facts().memory,
        };
        Now {
            queued: self.models.loaded().map(|served| served.loaded.load().queued).sum(),
            in_flight: self.lifecycle.in_flight(),
            // Those too that answer their last requests.
            models: self.models.computing().map(seen).collect(),
        }
    }
}
