//! `candela_operator_*`: few metrics, bounded labels.

use std::{fmt::Write as _, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// HTTP status, or `timeout`, `fenced`, `error`.
    pub code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `ok` or the class of the error.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    pub kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    pub kind: &'static str,
    /// `apply`, `delete`, `status`, `event`.
    pub action: &'static str,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub calls: Family<CallLabels, Counter>,
    pub call_seconds: Histogram,
    pub passes: Family<OutcomeLabels, Counter>,
    pub pass_seconds: Histogram,
    pub writes: Family<WriteLabels, Counter>,
    pub events_failed: Counter,
    pub pulls: Family<OutcomeLabels, Counter>,
    pub key_reads: Family<OutcomeLabels, Counter>,
    pub watch_errors: Family<KindLabels, Counter>,
    pub cached_objects: Family<KindLabels, Gauge>,
    pub queue_depth: Gauge,
    pub failing_objects: Gauge,
    pub leader: Gauge,
    pub lease_failures: Counter,
}

impl Metrics {
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("candela_operator");
        let metrics = Self {
            calls: Family::default(),
            call_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            passes: Family::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            writes: Family::default(),
            events_failed: Counter::default(),
            pulls: Family::default(),
            key_reads: Family::default(),
            watch_errors: Family::default(),
            cached_objects: Family::default(),
            queue_depth: Gauge::default(),
            failing_objects: Gauge::default(),
            leader: Gauge::default(),
            lease_failures: Counter::default(),
            registry: Registry::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of this binary", build);
        registry.register("api_calls", "Calls to the API server by verb and answer", metrics.calls.clone());
        registry.register_with_unit(
            "api_call_duration",
            "Time of a call to the API server, watches not counted",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        registry.register("passes", "Passes over a resource by outcome", metrics.passes.clone());
        registry.register_with_unit(
            "pass_duration",
            "Time of a pass over a resource",
            Unit::Seconds,
            metrics.pass_seconds.clone(),
        );
        registry.register("writes", "Objects written, by kind and action", metrics.writes.clone());
        registry.register(
            "events_failed",
            "Events that could not be published",
            metrics.events_failed.clone(),
        );
        registry.register(
            "status_pulls",
            "Pulls of a pod's internal status by outcome",
            metrics.pulls.clone(),
        );
        registry.register(
            "key_reads",
            "Reads of the keys of the cluster's tokens by outcome",
            metrics.key_reads.clone(),
        );
        registry.register("watch_errors", "Errors of a watch by kind", metrics.watch_errors.clone());
        registry.register("cached_objects", "Objects in a cache by kind", metrics.cached_objects.clone());
        registry.register("queue_depth", "Resources that wait for a pass", metrics.queue_depth.clone());
        registry.register(
            "failing_objects",
            "Resources whose last pass failed",
            metrics.failing_objects.clone(),
        );
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register(
            "lease_failures",
            "Reads and writes of the Lease that failed",
            metrics.lease_failures.clone(),
        );
        Arc::new(Self { registry, ..metrics })
    }

    /// The text format of OpenMetrics.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            out.clear();
            // Writing to a `String` cannot fail; a metric that refuses to encode would be our bug.
            let _ = writeln!(out, "# EOF");
        }
        out
    }

    pub(crate) fn wrote(&self, kind: &'static str, action: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, action }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.wrote("Service", "apply");
        metrics.leader.set(1);
        let text = metrics.encode();
        for name in
            ["writes_total{kind=\"Service\",action=\"apply\"} 1", "leader 1", "api_call_duration_seconds"]
        {
            assert!(text.contains(&format!("candela_operator_{name}")), "{name} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
