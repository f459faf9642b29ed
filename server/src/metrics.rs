//! Everything this process counts, as Prometheus text. Labels come from closed sets only.

use std::{fmt::Write, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{progress::Progress, trust::TrustMetrics};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Answer {
    /// A route's pattern, or `none` where no route matched.
    pub(crate) route: &'static str,
    pub(crate) status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
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
    generations: Family<Outcome, Counter>,
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(crate) queue_time: Histogram,
    pub(crate) connections: Gauge,
    pub(crate) connections_closed_slow: Counter,
    requests_running: Gauge,
    requests_queued: Gauge,
    requests_in_flight: Gauge,
    progress_bytes: Family<PhaseLabel, Gauge>,
    progress_total_bytes: Family<PhaseLabel, Gauge>,
    startup_seconds: Family<PhaseLabel, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub(crate) trust: TrustMetrics,
}

/// Values that belong to others and are read when someone asks.
pub(crate) struct Now {
    pub(crate) running: usize,
    pub(crate) queued: usize,
    pub(crate) in_flight: u64,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let mut metrics = Self {
            registry: Registry::with_prefix("candela_server"),
            requests: Family::default(),
            answer_time: Family::new_with_constructor(|| Histogram::new(ANSWER_SECONDS)),
            generations: Family::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            time_to_first_token: seconds(),
            inter_token: seconds(),
            queue_time: seconds(),
            connections: Gauge::default(),
            connections_closed_slow: Counter::default(),
            requests_running: Gauge::default(),
            requests_queued: Gauge::default(),
            requests_in_flight: Gauge::default(),
            progress_bytes: Family::default(),
            progress_total_bytes: Family::default(),
            startup_seconds: Family::default(),
            trust: TrustMetrics::default(),
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
        to.register("generations", "Admitted generations by how they ended", self.generations.clone());
        to.register("prompt_tokens", "Tokens of admitted prompts", self.prompt_tokens.clone());
        to.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        to.register(
            "time_to_first_token_seconds",
            "From admission to the first token",
            self.time_to_first_token.clone(),
        );
        to.register("inter_token_seconds", "Between tokens of one answer", self.inter_token.clone());
        to.register("queue_seconds", "From admission to a sequence slot", self.queue_time.clone());
        to.register("connections", "Open connections on the public listener", self.connections.clone());
        to.register(
            "connections_closed_slow",
            "Connections closed since the client sent or read too slowly",
            self.connections_closed_slow.clone(),
        );
        to.register("requests_running", "Generations that hold a slot", self.requests_running.clone());
        to.register("requests_queued", "Generations that wait for a slot", self.requests_queued.clone());
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
    }

    pub(crate) fn generation_ended(&self, outcome: &'static str) {
        self.generations.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn phase_took(&self, phase: &'static str, seconds: f64) {
        self.startup_seconds.get_or_create(&PhaseLabel { phase }).set(seconds);
    }

    /// The exposition text.
    pub(crate) fn text(&self, now: &Now, progress: &Progress) -> String {
        self.requests_running.set(now.running as i64);
        self.requests_queued.set(now.queued as i64);
        self.requests_in_flight.set(now.in_flight as i64);
        let phase = PhaseLabel { phase: progress.phase().name() };
        self.progress_bytes.get_or_create(&phase).set(progress.done_bytes() as i64);
        if let Some(total) = progress.total_bytes() {
            self.progress_total_bytes.get_or_create(&phase).set(total as i64);
        }
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            // Writing to a String fails only if a metric's own encoder does.
            let _ = text.write_str("# EOF\n");
        }
        text
    }
}

/// Media type of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Phase;

    #[test]
    fn the_text_has_our_prefix_and_values() {
        let metrics = Metrics::new();
        metrics.requests.get_or_create(&Answer { route: "/v1/models", status: 200 }).inc();
        metrics.generation_ended("stop");
        let progress = Progress::new(Phase::Load);
        progress.set(5, 9);
        let text = metrics.text(&Now { running: 1, queued: 2, in_flight: 3 }, &progress);
        for line in [
            "candela_server_requests_total{route=\"/v1/models\",status=\"200\"} 1",
            "candela_server_generations_total{outcome=\"stop\"} 1",
            "candela_server_requests_queued 2",
            "candela_server_progress_bytes{phase=\"Load\"} 5",
            "candela_server_progress_total_bytes{phase=\"Load\"} 9",
        ] {
            assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
        }
    }
}
