//! What the registry counts. Labels are states and outcomes only.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use super::{
    machine::{Counts, State},
    snapshot::Snapshot,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

const LOAD_SECONDS: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// Handles are cheap to clone.
#[derive(Clone)]
pub(crate) struct RegistryMetrics {
    models: Family<StateLabel, Gauge>,
    loads: Family<Outcome, Counter>,
    unloads: Counter,
    evictions: Counter,
    memory: Gauge,
    pub(super) load_seconds: Histogram,
}

impl Default for RegistryMetrics {
    fn default() -> Self {
        Self {
            models: Family::default(),
            loads: Family::default(),
            unloads: Counter::default(),
            evictions: Counter::default(),
            memory: Gauge::default(),
            load_seconds: Histogram::new(LOAD_SECONDS),
        }
    }
}

impl RegistryMetrics {
    pub(crate) fn register(&self, to: &mut Registry) {
        to.register("models", "Versions of models by state", self.models.clone());
        to.register("model_loads", "Loads of the repository's models by how they ended", self.loads.clone());
        to.register(
            "model_unloads",
            "Models of the repository that were unloaded on request",
            self.unloads.clone(),
        );
        to.register(
            "model_evictions",
            "Models of the repository that were unloaded to make room for others",
            self.evictions.clone(),
        );
        to.register(
            "repository_memory_bytes",
            "What the repository's models take, as estimated from their files",
            self.memory.clone(),
        );
        to.register(
            "model_load_seconds",
            "How long loads of the repository's models took",
            self.load_seconds.clone(),
        );
    }

    /// `counts` only grow.
    pub(super) fn see(&self, snapshot: &Snapshot, counts: Counts, bytes: u64) {
        for state in State::ALL {
            let n = snapshot.entries().filter(|entry| entry.state == state).count();
            self.models.get_or_create(&StateLabel { state: state.name() }).set(n as i64);
        }
        let raise = |counter: &Counter, to: u64| {
            counter.inc_by(to.saturating_sub(counter.get()));
        };
        let outcome = |outcome| self.loads.get_or_create_owned(&Outcome { outcome });
        raise(&outcome("loaded"), counts.loaded);
        raise(&outcome("failed"), counts.failed);
        raise(&self.unloads, counts.unloaded);
        raise(&self.evictions, counts.evicted);
        self.memory.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
