//! The engine's thread: asks the scheduler what to compute, has it computed, and tells the sequences.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use rand::Rng;

use crate::{
    FinishReason,
    admission::{Admission, Counters, Pending, Phase},
    contained,
    model::{Decoder, StepSequence},
    schedule::{self, Id, Part, Salt, Scheduler},
    sequence::{self, Sequence},
    text::Text,
};

/// Owns the model and advances its sequences.
pub(crate) struct Worker {
    model: Decoder,
    text: Arc<Text>,
    admission: Arc<Admission>,
    context_length: usize,
    scheduler: Scheduler,
    sequences: BTreeMap<Id, Sequence>,
    last_id: Id,
    /// Of requests that bring none.
    salt: Salt,
}

#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) context_length: usize,
    pub(crate) step_tokens: usize,
    pub(crate) n_blocks: usize,
}

impl Worker {
    pub(crate) fn new(model: Decoder, text: Arc<Text>, admission: Arc<Admission>, limits: Limits) -> Self {
        let Limits { context_length, step_tokens, n_blocks } = limits;
        let scheduler = Scheduler::new(schedule::Limits { n_blocks, step_tokens });
        admission.show(scheduler.figures());
        Self {
            model,
            text,
            admission,
            context_length,
            scheduler,
            sequences: BTreeMap::new(),
            last_id: 0,
            salt: rand::rng().random(),
        }
    }

    /// Until the engine is shut down.
    pub(crate) fn run(mut self) {
        while !self.sequences.is_empty() || self.admission.wait_for_work() {
            let phase = self.admit();
            for sequence in self.sequences.values_mut() {
                if phase == Phase::Stopping {
                    sequence.finish(FinishReason::Cancelled, &self.text);
                } else {
                    sequence.check(&self.text);
                }
            }
            self.leave();
            let parts = self.scheduler.plan();
            if !parts.is_empty() {
                // Before anybody hears of a token, as with the counters.
                self.admission.show(self.scheduler.figures());
                for part in &parts {
                    if let Some(sequence) = self.sequences.get_mut(&part.id) {
                        sequence.computed_from(part.start);
                    }
                }
                self.guarded_step(&parts);
                self.leave();
            }
            self.admission.show(self.scheduler.figures());
        }
    }

    fn admit(&mut self) -> Phase {
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
        let has_room = !self.scheduler.is_short_of_blocks();
        let taken = self
            .admission
            .take(self.sequences.len(), has_room, |pending, phase| ended(pending, phase).is_some());
        for pending in taken.over {
            let reason = ended(&pending, taken.phase).unwrap_or(FinishReason::Cancelled);
            sequence::refuse(pending, reason);
        }
        for pending in taken.started {
            Counters::add(&self.admission.counters.prompt_tokens, pending.request.prompt_tokens.len());
            self.last_id += 1;
            let (mut sequence, work) = Sequence::new(pending, self.context_length, self.salt);
            // Loading made sure that a whole context fits, so nobody should hear of this.
            if let Err(what) = self.scheduler.submit(self.last_id, work) {
                sequence.finish(FinishReason::Error(what), &self.text);
            }
            self.sequences.insert(self.last_id, sequence);
        }
        taken.phase
    }

    /// Frees the slots and blocks of sequences that are over.
    fn leave(&mut self) {
        self.sequences.retain(|id, sequence| {
            if sequence.is_over() {
                self.admission.served(sequence.service(), sequence.n_generated());
                self.scheduler.remove(*id);
            }
            !sequence.is_over()
        });
    }

    /// A step whose failure, even by a panic in a library, ends the sequences that took part and nothing else: the
    /// weights are never written to, and blocks that such a step wrote are not used again.
    fn guarded_step(&mut self, parts: &[Part]) {
        let outcome = contained::run(|| self.step(parts));
        let message = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => "a step panicked".to_owned(),
        };
        tracing::error!(message, "step failed");
        for part in parts {
            if let Some(sequence) = self.sequences.get_mut(&part.id) {
                sequence.finish(FinishReason::Error(message.clone()), &self.text);
            }
        }
    }

    fn step(&mut self, parts: &[Part]) -> Result<(), String> {
        let began = Instant::now();
        #[cfg(test)]
        crate::tests::faults::in_step(&self.model.pool(), parts)?;
        self.compute(parts)?;
        for part in parts {
            let chosen = match self.sequences.get_mut(&part.id) {
                Some(sequence) if part.n_logits > 0 => {
                    sequence.deliver(&self.text, &self.admission.counters.completion_tokens)
                }
                _ => Vec::new(),
            };
            self.scheduler.complete(part, &chosen);
        }
        self.admission.counters.steps.fetch_add(1, Ordering::Relaxed);
        let n_rows = |is_prefill: bool| -> usize {
            parts.iter().filter(|part| part.is_prefill == is_prefill).map(|part| part.tokens.len()).sum()
        };
        let (n_prefill, n_decode) = (n_rows(true), n_rows(false));
        Counters::add(&self.admission.counters.step_tokens, n_prefill + n_decode);
        self.admission.stepped(began.elapsed(), n_prefill, n_decode);
        Ok(())
    }

    /// One forward pass, after which every sequence has chosen its next tokens, on all threads.
    fn compute(&mut self, parts: &[Part]) -> Result<(), String> {
        let Self { model, scheduler, sequences, text, .. } = self;
        let rows: Vec<StepSequence<'_>> = parts
            .iter()
            .map(|part| StepSequence {
                tokens: &part.tokens,
                start: part.start,
                blocks: scheduler.blocks(part.id),
                n_logits: part.n_logits,
            })
            .collect();
        let text: &Text = text;
        let pool = model.pool();
        let logits = model.forward(&rows)?;
        let vocabulary = logits.vocabulary;
        let mut left = logits.values;
        let mut wanted = HashMap::new();
        for part in parts.iter().filter(|part| part.n_logits > 0) {
            let (own, others) = std::mem::take(&mut left).split_at_mut(part.n_logits * vocabulary);
            left = others;
            wanted.insert(part.id, (part, own));
        }
        let tasks: Vec<_> = sequences
            .iter_mut()
            .filter_map(|(id, sequence)| {
                wanted.remove(id).map(|(part, logits)| Mutex::new((sequence, part, logits)))
            })
            .collect();
        pool.run(tasks.len(), &|i| {
            let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, part, logits) = &mut *task;
            sequence.choose(logits, vocabulary, part.draft(), text);
        });
        Ok(())
    }
}
