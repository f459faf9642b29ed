//! Everything this process counts, as Prometheus text. Labels come from closed sets only.

mod model;
mod process;
mod seen;
mod table;
mod text;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{progress::Progress, registry::RegistryMetrics, trust::TrustMetrics};
pub(crate) use model::ModelMetrics;
pub(crate) use seen::{Engine as SeenEngine, Seen};
pub(crate) use text::Format;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Answer {
    /// A route's pattern, or `none` where no route matched.
    pub(crate) route: &'static str,
    pub(crate) status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// Bounds of `answer_seconds`: refusals at the fine end, long answers that are not streamed at the other.
const ANSWER_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Handles are cheap to clone and lock-free or nearly so.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<Answer, Counter>,
    pub(crate) answer_time: Family<Answer, Histogram>,
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    pub(crate) connections: Gauge,
    pub(crate) connections_closed_slow: Counter,
    requests_in_flight: Gauge,
    progress_bytes: Family<PhaseLabel, Gauge>,
    progress_total_bytes: Family<PhaseLabel, Gauge>,
    startup_seconds: Family<PhaseLabel, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub(crate) trust: TrustMetrics,
    pub(crate) registry_of_models: RegistryMetrics,
    resident_memory: Gauge,
    pub(crate) spans: Counter,
    pub(crate) spans_dropped: Counter,
}

/// Values that belong to others and are read when someone asks.
#[derive(Default)]
pub(crate) struct Now {
    pub(crate) queued: usize,
    pub(crate) in_flight: u64,
    pub(crate) models: Vec<Seen>,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("candela_server"),
            requests: Family::default(),
            answer_time: Family::new_with_constructor(|| Histogram::new(ANSWER_SECONDS)),
            models: Mutex::default(),
            connections: Gauge::default(),
            connections_closed_slow: Counter::default(),
            requests_in_flight: Gauge::default(),
            progress_bytes: Family::default(),
            progress_total_bytes: Family::default(),
            startup_seconds: Family::default(),
            trust: TrustMetrics::default(),
            registry_of_models: RegistryMetrics::default(),
            resident_memory: Gauge::default(),
            spans: Counter::default(),
            spans_dropped: Counter::default(),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        to.register("requests", "Answers on the public listener", self.requests.clone());
        to.register(
            "answer_seconds",
            "From the head of a request to the head of its answer, on the public listener",
            self.answer_time.clone(),
        );
        to.register("connections", "Open connections on the public listener", self.connections.clone());
        to.register(
            "connections_closed_slow",
            "Connections, and answers over HTTP/2, that were closed since the client sent or read too slowly",
            self.connections_closed_slow.clone(),
        );
        to.register(
            "requests_in_flight",
            "Generations admitted and not answered to the end",
            self.requests_in_flight.clone(),
        );
        to.register("progress_bytes", "Bytes done of a phase of the start", self.progress_bytes.clone());
        to.register(
            "progress_total_bytes",
            "Bytes to do in a phase of the start, once known",
            self.progress_total_bytes.clone(),
        );
        to.register("startup_seconds", "How long each phase of the start took", self.startup_seconds.clone());
        self.trust.register(to);
        self.registry_of_models.register(to);
        to.register(
            "resident_memory_bytes",
            "Memory of this process that is in RAM",
            self.resident_memory.clone(),
        );
        to.register(
            "trace_spans",
            "Spans that were given to the OpenTelemetry collector",
            self.spans.clone(),
        );
        to.register(
            "trace_spans_dropped",
            "Spans that were lost since the collector was slow, away or refused them",
            self.spans_dropped.clone(),
        );
    }

    /// Of the model of this name, from now on.
    pub(crate) fn of(&self, model: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        match models.get(model) {
            Some(metrics) => Arc::clone(metrics),
            None => Arc::clone(models.entry(model.to_owned()).or_default()),
        }
    }

    pub(crate) fn phase_took(&self, phase: &'static str, seconds: f64) {
        self.startup_seconds.get_or_create(&PhaseLabel { phase }).set(seconds);
    }

    /// The exposition text.
    pub(crate) fn text(&self, now: Now, progress: &Progress, format: Format) -> String {
        self.requests_in_flight.set(now.in_flight as i64);
        let phase = PhaseLabel { phase: progress.phase().name() };
        self.progress_bytes.get_or_create(&phase).set(progress.done_bytes() as i64);
        if let Some(total) = progress.total_bytes() {
            self.progress_total_bytes.get_or_create(&phase).set(total as i64);
        }
        if let Some(bytes) = process::resident_bytes() {
            self.resident_memory.set(bytes as i64);
        }
        let mut models = Registry::default();
        models.register_collector(Box::new(seen::AllSeen(now.models)));
        text::written(&[&self.registry, &models], format)
    }
}

#[cfg(test)]
mod tests;
