//! Clients that go on until told to stop, and a record of every request, so that afterwards those can be counted that
//! were under way during a rollout.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::client::{self, Connections, Once};

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) stream: bool,
    pub(crate) connections: Connections,
    /// From the start of a request to the next one's: the connection rests in between.
    pub(crate) pace: Duration,
}

/// Two of each that ask without pause, and two whose kept connections rest for a while each time.
pub(crate) fn manners() -> Vec<Manner> {
    let mut manners = Vec::new();
    for stream in [true, false] {
        for connections in [Connections::Kept, Connections::NewEach] {
            manners.extend([Manner { stream, connections, pace: Duration::ZERO }; 2]);
        }
        manners.push(Manner { stream, connections: Connections::Kept, pace: Duration::from_millis(700) });
    }
    manners
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    pub(crate) failure: Option<String>,
}

impl Sent {
    pub(crate) fn under_way_in(&self, window: (Instant, Instant)) -> bool {
        self.from <= window.1 && self.until >= window.0
    }
}

pub(crate) struct Load {
    stopping: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Sent>>>,
    clients: JoinSet<()>,
}

impl Load {
    /// `body` makes a request that streams or not; each answer must say exactly `expected`.
    pub(crate) fn start(url: &str, expected: &str, body: fn(bool) -> Value) -> Self {
        let (stopping, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut clients = JoinSet::new();
        for manner in manners() {
            let (stopping, sent) = (Arc::clone(&stopping), Arc::clone(&sent));
            let (once, expected) = (Once::new(url, manner.connections), expected.to_owned());
            clients.spawn(async move {
                while !stopping.load(Ordering::Relaxed) {
                    let from = Instant::now();
                    let answer = ask(&once, manner.stream, &body(manner.stream), &expected).await;
                    let failure = answer.err().map(|error| format!("{manner:?}: {error:#}"));
                    let record = Sent { from, until: Instant::now(), failure };
                    sent.lock().unwrap_or_else(PoisonError::into_inner).push(record);
                    // The rest between two requests, which is part of the load; nothing is waited for.
                    tokio::time::sleep(manner.pace.saturating_sub(from.elapsed())).await;
                }
            });
        }
        Self { stopping, sent, clients }
    }

    pub(crate) fn under_way_in(&self, window: (Instant, Instant)) -> usize {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().filter(|request| request.under_way_in(window)).count()
    }

    pub(crate) fn n_failed(&self) -> usize {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().filter(|request| request.failure.is_some()).count()
    }

    /// Lets every request under way end, and gives all of them.
    pub(crate) async fn finish(self) -> Vec<Sent> {
        self.stopping.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn ask(once: &Once, stream: bool, body: &Value, expected: &str) -> Result<()> {
    let answer = once.chat(body).await?;
    let text = if stream { client::streamed_text(&answer)? } else { client::whole_text(&answer)? };
    ensure!(text == expected, "said {text:?} instead of {expected:?}");
    Ok(())
}
