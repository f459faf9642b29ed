//! What is counted of one model's requests, by those who serve them. What its engine counts is not here: it is read when
//! someone asks ([`super::seen`]).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use candela_engine::Finished;
use prometheus_client::metrics::{
    counter::Counter,
    histogram::{Histogram, exponential_buckets},
};

/// Handles are cheap to clone and lock-free or nearly so.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    pub(crate) prompt_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) inter_token: Histogram,
    pub(super) time_per_output_token: Histogram,
    pub(crate) latency: Histogram,
    pub(super) queue: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) prompt_size: Histogram,
    pub(super) output_size: Histogram,
    /// Generations by how they ended.
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let tokens = || Histogram::new(exponential_buckets(1.0, 2.0, 18));
        Self {
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            time_to_first_token: seconds(),
            inter_token: seconds(),
            time_per_output_token: seconds(),
            latency: seconds(),
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            prompt_size: tokens(),
            output_size: tokens(),
            outcomes: Mutex::default(),
        }
    }
}

impl ModelMetrics {
    pub(crate) fn ended(&self, outcome: &'static str) {
        *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    /// A generation came to its end, so long after its request arrived.
    pub(crate) fn finished(&self, finished: &Finished, latency: Duration) {
        let (took, usage) = (finished.timings, finished.usage);
        self.latency.observe(latency.as_secs_f64());
        self.queue.observe(took.queue.as_secs_f64());
        self.prefill.observe(took.prefill.as_secs_f64());
        self.decode.observe(took.decode.as_secs_f64());
        self.prompt_size.observe(usage.prompt_tokens.into());
        self.output_size.observe(usage.completion_tokens.into());
        // The first token is the prompt's, not the decoding's.
        if usage.completion_tokens > 1 {
            let each = took.decode.as_secs_f64() / f64::from(usage.completion_tokens - 1);
            self.time_per_output_token.observe(each);
        }
    }

    pub(super) fn outcomes(&self) -> BTreeMap<&'static str, u64> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
