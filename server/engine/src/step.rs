//! The engine's thread. Each step computes one token for every running sequence, and with the rest of its token
//! budget the next pieces of prompts, first come first served.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use crate::{
    FinishReason,
    admission::{Admission, Counters, Pending, Phase},
    contained,
    model::{Chunk, KvCache, Llama},
    sequence::{self, Sequence},
    text::Text,
};

/// Owns the model and advances its sequences.
pub(crate) struct Worker {
    model: Llama,
    text: Arc<Text>,
    admission: Arc<Admission>,
    limits: Limits,
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) context_length: usize,
    pub(crate) step_tokens: usize,
}

impl Worker {
    pub(crate) fn new(model: Llama, text: Arc<Text>, admission: Arc<Admission>, limits: Limits) -> Self {
        Self { model, text, admission, limits }
    }

    /// Until the engine is shut down.
    pub(crate) fn run(self) {
        let mut running: Vec<Sequence> = Vec::new();
        while !running.is_empty() || self.admission.wait_for_work() {
            let phase = self.admit(&mut running);
            for sequence in &mut running {
                if phase == Phase::Stopping {
                    sequence.finish(FinishReason::Cancelled, &self.text);
                } else {
                    sequence.check(&self.text);
                }
            }
            self.leave(&mut running);
            if !running.is_empty() {
                self.guarded_step(&mut running);
            }
            self.leave(&mut running);
            let held: usize = running.iter().map(|sequence| sequence.cache.len()).sum();
            self.admission.counters.kv_tokens.store(held as u64, Ordering::Relaxed);
        }
    }

    fn admit(&self, running: &mut Vec<Sequence>) -> Phase {
        let now = Instant::now();
        let ended = |pending: &Pending, phase: Phase| {
            if phase == Phase::Stopping || pending.cancel.is_cancelled() {
                Some(FinishReason::Cancelled)
            } else if pending.request.deadline.is_some_and(|deadline| deadline <= now) {
                Some(FinishReason::Deadline)
            } else {
                None
            }
        };
        let taken = self.admission.take(running.len(), |pending, phase| ended(pending, phase).is_some());
        for pending in taken.over {
            let reason = ended(&pending, taken.phase).unwrap_or(FinishReason::Cancelled);
            sequence::refuse(pending, reason);
        }
        for pending in taken.started {
            Counters::add(&self.admission.counters.prompt_tokens, pending.request.prompt_tokens.len());
            let cache = KvCache::new(&self.model.shape, self.limits.context_length);
            running.push(Sequence::new(pending, cache, self.limits.context_length));
        }
        taken.phase
    }

    /// Frees the slots (and caches) of sequences that are over.
    fn leave(&self, running: &mut Vec<Sequence>) {
        running.retain(|sequence| {
            if sequence.is_over() {
                self.admission.served(sequence.service());
            }
            !sequence.is_over()
        });
    }

    /// A step whose failure, even by a panic in a library, ends the sequences that took part and nothing else: the
    /// weights are never written to.
    fn guarded_step(&self, running: &mut [Sequence]) {
        let outcome = contained::run(|| self.step(running));
        let message = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                self.check_pools();
                "a step panicked".to_owned()
            }
        };
        tracing::error!(message, "step failed");
        for sequence in running {
            sequence.finish(FinishReason::Error(message.clone()), &self.text);
        }
    }

    /// A panic poisons the lock of candle's pool, and then every product that needs it panics as well. Whether that
    /// came to pass shows in one more token, which nothing contains: better a restart than an engine that fails each
    /// request.
    fn check_pools(&self) {
        let mut cache = KvCache::new(&self.model.shape, self.limits.context_length);
        let mut chunks = [Chunk { tokens: &[0], cache: &mut cache, wants_logits: true }];
        if let Err(error) = self.model.forward(&mut chunks) {
            tracing::error!(%error, "the step after a panic failed as well");
        }
    }

    fn step(&self, running: &mut [Sequence]) -> candle_core::Result<()> {
        let decoding = running.iter().filter(|sequence| !sequence.is_prefilling()).count();
        let mut budget = self.limits.step_tokens.saturating_sub(decoding);
        let mut taking_part = Vec::new();
        let mut chunks = Vec::new();
        for (i, sequence) in running.iter_mut().enumerate() {
            let n = match sequence.is_prefilling() {
                false => 1,
                true => sequence.n_pending().min(budget),
            };
            if n == 0 {
                continue;
            }
            if sequence.is_prefilling() {
                budget -= n;
            }
            let done = sequence.cache.len();
            let wants_logits = n == sequence.n_pending();
            let Sequence { tokens, cache, .. } = sequence;
            taking_part.push(i);
            chunks.push(Chunk { tokens: &tokens[done..done + n], cache, wants_logits });
        }
        let logits = self.model.forward(&mut chunks)?;
        drop(chunks);
        for (i, logits) in taking_part.into_iter().zip(logits) {
            if let Some(logits) = logits {
                // Counted first: whoever hears of a token finds it in the figures.
                Counters::add(&self.admission.counters.completion_tokens, 1);
                running[i].advance(logits, &self.text);
            }
        }
        self.admission.counters.steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
