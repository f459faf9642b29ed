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
    model::{BLOCK_TOKENS, Decoder, StepSequence},
    sequence::{self, Sequence},
    text::Text,
};

/// Owns the model and advances its sequences.
pub(crate) struct Worker {
    model: Decoder,
    text: Arc<Text>,
    admission: Arc<Admission>,
    limits: Limits,
    /// Blocks of keys and values that no sequence has.
    free: Vec<u32>,
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) context_length: usize,
    pub(crate) step_tokens: usize,
    pub(crate) n_blocks: usize,
}

impl Worker {
    pub(crate) fn new(model: Decoder, text: Arc<Text>, admission: Arc<Admission>, limits: Limits) -> Self {
        let free = (0..limits.n_blocks as u32).rev().collect();
        Self { model, text, admission, limits, free }
    }

    /// Until the engine is shut down.
    pub(crate) fn run(mut self) {
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
            let held: usize = running.iter().map(|sequence| sequence.n_cached).sum();
            self.admission.counters.kv_tokens.store(held as u64, Ordering::Relaxed);
        }
    }

    fn admit(&mut self, running: &mut Vec<Sequence>) -> Phase {
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
            // Admission has as many slots as there are blocks for at full context.
            let n = self.limits.context_length.div_ceil(BLOCK_TOKENS);
            let blocks = self.free.split_off(self.free.len() - n);
            running.push(Sequence::new(pending, blocks, self.limits.context_length));
        }
        taken.phase
    }

    /// Frees the slots and blocks of sequences that are over.
    fn leave(&mut self, running: &mut Vec<Sequence>) {
        running.retain(|sequence| {
            if sequence.is_over() {
                self.admission.served(sequence.service());
                self.free.extend(&sequence.blocks);
            }
            !sequence.is_over()
        });
    }

    /// A step whose failure, even by a panic in a library, ends the sequences that took part and nothing else: the
    /// weights are never written to.
    fn guarded_step(&mut self, running: &mut [Sequence]) {
        let outcome = contained::run(|| self.step(running));
        let message = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "a step panicked".to_owned(),
        };
        tracing::error!(message, "step failed");
        for sequence in running {
            sequence.finish(FinishReason::Error(message.clone()), &self.text);
        }
    }

    fn step(&mut self, running: &mut [Sequence]) -> Result<(), String> {
        let decoding = running.iter().filter(|sequence| !sequence.is_prefilling()).count();
        let mut budget = self.limits.step_tokens.saturating_sub(decoding);
        let mut taking_part = Vec::new();
        let mut rows = Vec::new();
        for (i, sequence) in running.iter().enumerate() {
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
            let start = sequence.n_cached;
            let n_logits = usize::from(n == sequence.n_pending());
            let Sequence { tokens, blocks, .. } = sequence;
            taking_part.push((i, n, n_logits == 1));
            rows.push(StepSequence { tokens: &tokens[start..start + n], start, blocks, n_logits });
        }
        let logits = self.model.forward(&rows)?;
        drop(rows);
        let mut logits = logits.rows();
        for (i, n, wants_logits) in taking_part {
            running[i].n_cached += n;
            if wants_logits && let Some(logits) = logits.next() {
                // Counted first: whoever hears of a token finds it in the figures.
                Counters::add(&self.admission.counters.completion_tokens, 1);
                running[i].advance(logits, &self.text);
            }
        }
        self.admission.counters.steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
