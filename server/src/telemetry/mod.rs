//! Traces for an OpenTelemetry collector: one span for each request on the public listener, with the time of its phases
//! below it. Without an endpoint in the environment nothing of this exists while requests are served.
//!
//! A finished span goes to a bounded queue, or is dropped and counted: no request waits for a collector.

mod context;
mod export;
mod otlp;
mod settings;
mod span;

use std::sync::Arc;

use http::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use context::Context;
pub(crate) use export::Exporter;
pub use settings::Settings;
pub(crate) use span::{RequestSpan, carried, current, scoped};

use crate::metrics::Metrics;

/// Begins the spans of one process.
pub(crate) struct Traces {
    settings: Arc<Settings>,
    finished: mpsc::Sender<otlp::Span>,
    dropped: Counter,
}

impl Traces {
    /// With what takes the spans away, which is to be run beside the server.
    pub(crate) fn new(settings: Settings, metrics: &Metrics) -> (Self, Exporter) {
        let settings = Arc::new(settings);
        let (finished, queue) = mpsc::channel(settings.max_queue);
        let dropped = metrics.spans_dropped.clone();
        let exporter = Exporter::new(Arc::clone(&settings), queue, metrics.spans.clone(), dropped.clone());
        (Self { settings, finished, dropped }, exporter)
    }

    /// The span of a request that just arrived; `None` = this one is not recorded.
    pub(crate) fn begin(
        &self,
        method: &http::Method,
        route: &'static str,
        headers: &HeaderMap,
    ) -> Option<RequestSpan> {
        let parent = Context::of(headers);
        if !self.settings.sampler.records(parent.as_ref()) {
            return None;
        }
        Some(RequestSpan::new(parent, method, route, self.finished.clone(), self.dropped.clone()))
    }
}
