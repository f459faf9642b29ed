//! Takes finished spans to the collector, in batches. What a collector does not take is lost and counted; nobody waits.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::{
    Settings,
    otlp::{ExportTraceServiceRequest, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span},
};
use crate::{
    exit::Chain,
    lifecycle::{Lifecycle, Stage},
};

/// How often a batch is offered to a collector that says "later" or does not answer.
const ATTEMPTS: u32 = 3;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(1);
/// For what is left when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// Owns the queue's other end.
pub(crate) struct Exporter {
    settings: Arc<Settings>,
    queue: mpsc::Receiver<Span>,
    /// Taken from the queue, and not yet sent.
    batch: Vec<Span>,
    sent: Counter,
    dropped: Counter,
    /// The last batch was refused, and it was said.
    is_failing: bool,
}

/// Why a batch did not arrive.
struct Refused {
    why: String,
    may_pass: bool,
}

impl Exporter {
    pub(super) fn new(
        settings: Arc<Settings>,
        queue: mpsc::Receiver<Span>,
        sent: Counter,
        dropped: Counter,
    ) -> Self {
        Self { settings, queue, batch: Vec::new(), sent, dropped, is_failing: false }
    }

    /// Until the process ends; then what is left has [`LAST`] to go out.
    pub(crate) async fn run(mut self, lifecycle: Lifecycle) {
        // Another part of the process may have chosen it already; there is one provider in the build.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("candela-server/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(self.settings.timeout);
        let client = match client.build() {
            Ok(client) => client,
            Err(err) => {
                warn!(err = %Chain(&err), "cannot set up HTTP: traces are lost");
                return;
            }
        };
        info!(endpoint = %self.settings.endpoint.origin().ascii_serialization(), "traces go to a collector");
        loop {
            tokio::select! {
                () = self.offer_next(&client) => {}
                () = lifecycle.reached(Stage::Ending) => break,
            }
        }
        // Spans of streams that were just cut off are still to come; they end within this time or are lost.
        let end = Instant::now() + LAST;
        loop {
            if self.batch.is_empty() {
                let soon = end.min(Instant::now() + LAST / 4);
                let Ok(Some(span)) = timeout_at(soon, self.queue.recv()).await else { return };
                self.batch.push(span);
            }
            while self.batch.len() < self.settings.max_batch
                && let Ok(span) = self.queue.try_recv()
            {
                self.batch.push(span);
            }
            if !matches!(timeout_at(end, self.send(&client)).await, Ok(Ok(()))) {
                self.dropped.inc_by(self.batch.len() as u64);
            }
            self.batch.clear();
        }
    }

    /// Waits for a first span, then for as many as a batch holds or as long as a batch may wait; then offers it until it
    /// is taken, or given up. Broken off, it leaves what it has in `batch`.
    async fn offer_next(&mut self, client: &reqwest::Client) {
        let end = match self.queue.recv().await {
            Some(first) => {
                self.batch.push(first);
                Instant::now() + self.settings.delay
            }
            // Whoever begins spans lives as long as the process.
            None => std::future::pending().await,
        };
        while self.batch.len() < self.settings.max_batch {
            match timeout_at(end, self.queue.recv()).await {
                Ok(Some(span)) => self.batch.push(span),
                _ => break,
            }
        }
        let mut attempt = 1;
        loop {
            let Err(refused) = self.send(client).await else {
                if std::mem::take(&mut self.is_failing) {
                    info!("the collector takes traces again");
                }
                break;
            };
            if !refused.may_pass || attempt == ATTEMPTS {
                self.dropped.inc_by(self.batch.len() as u64);
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(why = refused.why, "the collector takes no traces: they are lost, and counted");
                }
                break;
            }
            sleep(BETWEEN_ATTEMPTS * attempt).await;
            attempt += 1;
        }
        self.batch.clear();
    }

    async fn send(&self, client: &reqwest::Client) -> Result<(), Refused> {
        let body = Bytes::from(self.request().encode_to_vec());
        let mut request = client.post(self.settings.endpoint.clone()).body(body);
        request = request.header(http::header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        let answer = request.send().await.map_err(|err| Refused {
            // Without the address, which may hold a password.
            why: Chain(&err.without_url()).to_string(),
            may_pass: true,
        })?;
        let status = answer.status();
        if status.is_success() {
            self.sent.inc_by(self.batch.len() as u64);
            return Ok(());
        }
        // These four, says the protocol, are worth another attempt.
        let may_pass = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        Err(Refused { why: format!("it answers {status}"), may_pass })
    }

    fn request(&self) -> ExportTraceServiceRequest {
        let attributes = self.settings.resource.iter();
        let attributes = attributes.map(|(key, value)| KeyValue::new(key.as_str(), value.as_str()));
        let scope =
            Scope { name: "candela-server".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: attributes.collect() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans: self.batch.clone() }],
            }],
        }
    }
}
