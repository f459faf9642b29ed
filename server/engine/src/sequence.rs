//! One running request: its tokens, cache, sampling and the events it sends.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    CancelToken, Event, FinishReason, Finished, Sink, Timings, Token, TokenLogprob, TopLogprob, Usage,
    admission::Pending,
    constraint::Tracker,
    contained,
    sampler::{self, Sampler},
    schedule::{Salt, Work},
    text::{Grown, Output, Text},
};

/// A request that holds a slot.
pub(crate) struct Sequence {
    n_prompt: usize,
    /// Output tokens at most, from the request and the context.
    max_output: usize,
    ignore_eos: bool,
    logprobs: Option<u32>,
    deadline: Option<Instant>,
    sampler: Sampler,
    tracker: Option<Tracker>,
    min_tokens: usize,
    /// Stop strings that are not looked for until `min_tokens` are there.
    later_stop: Vec<String>,
    output: Output,
    sink: Sink,
    cancel: CancelToken,
    submitted: Instant,
    started: Instant,
    first_token: Option<Instant>,
    /// Set once: nothing more is sent.
    over: bool,
    /// An end-of-text token is not part of the output, but it was generated.
    n_generated: usize,
    n_accepted: u32,
    n_rejected: u32,
    /// Tokens of the prompt that were there already; known once it has blocks.
    n_cached: Option<usize>,
    /// Chosen in this step and not yet delivered; then what went wrong.
    chosen: Vec<Chosen>,
    failed: Option<String>,
}

/// A token before it becomes an event.
struct Chosen {
    id: u32,
    /// It is an end-of-text token.
    is_end: bool,
    /// The constraint leaves nothing that could follow.
    is_whole: bool,
    /// Of the token, and of the likeliest ones.
    logprobs: Option<(f32, Vec<(u32, f32)>)>,
}

impl Sequence {
    /// The state of a request that got a slot, and its prompt with what the scheduler is to know.
    pub(crate) fn new(pending: Pending, context_length: usize, salt: Salt) -> (Self, Work) {
        let Pending { request, sink, cancel, submitted } = pending;
        let n_prompt = request.prompt_tokens.len();
        let room = context_length.saturating_sub(n_prompt);
        let max_output = request.max_tokens.map_or(room, |n| room.min(n as usize));
        let (stop, later_stop) =
            if request.min_tokens == 0 { (request.stop, Vec::new()) } else { (Vec::new(), request.stop) };
        let sequence = Self {
            sampler: Sampler::new(request.sampling, &request.prompt_tokens),
            tracker: request.constraint.map(Tracker::new),
            min_tokens: request.min_tokens as usize,
            later_stop,
            output: Output::new(&request.prompt_tokens, stop),
            n_prompt,
            max_output,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            deadline: request.deadline,
            sink,
            cancel,
            submitted,
            started: Instant::now(),
            first_token: None,
            over: false,
            n_generated: 0,
            n_accepted: 0,
            n_rejected: 0,
            n_cached: None,
            chosen: Vec::new(),
            failed: None,
        };
        let work = Work {
            prompt: request.prompt_tokens,
            max_len: n_prompt + max_output,
            salt: request.salt.unwrap_or(salt),
            speculation: request.speculation,
        };
        (sequence, work)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn service(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// The position of its first token that is computed. What is computed again after a preemption changes nothing.
    pub(crate) fn computed_from(&mut self, start: usize) {
        self.n_cached.get_or_insert(start);
    }

    /// Ends the sequence if its client left or its time is up.
    pub(crate) fn check(&mut self, text: &Text) {
        if self.cancel.is_cancelled() {
            self.finish(FinishReason::Cancelled, text);
        } else if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.finish(FinishReason::Deadline, text);
        }
    }

    /// Chooses tokens from rows of logits, `(1 + drafts, vocabulary)`: one after each draft that turns out to be right,
    /// and one more. Neither sends nor counts, so it may run beside other sequences.
    pub(crate) fn choose(&mut self, logits: &mut [f32], vocabulary: usize, draft: &[u32], text: &Text) {
        self.chosen.clear();
        self.choose_all(logits, vocabulary, draft, text);
        let n_accepted = self.chosen.len().saturating_sub(1);
        self.n_accepted += n_accepted as u32;
        self.n_rejected += (draft.len() - n_accepted) as u32;
    }

    fn choose_all(&mut self, logits: &mut [f32], vocabulary: usize, draft: &[u32], text: &Text) {
        for (i, row) in logits.chunks_exact_mut(vocabulary).enumerate() {
            match self.choose_one(row, text) {
                Ok(chosen) => {
                    let is_last = chosen.is_end
                        || chosen.is_whole
                        || draft.get(i) != Some(&chosen.id)
                        || self.n_generated + self.chosen.len() + 1 >= self.max_output;
                    self.chosen.push(chosen);
                    if is_last {
                        return;
                    }
                }
                Err(what) => {
                    self.failed = Some(what);
                    return;
                }
            }
        }
    }

    fn choose_one(&mut self, logits: &mut [f32], text: &Text) -> Result<Chosen, String> {
        let plain = self.logprobs.map(|n| (logits.to_vec(), n as usize));
        self.restrict(logits, text)?;
        let id = self.sampler.sample(logits).map_err(|bad| bad.to_string())?;
        let is_end = !self.ignore_eos && text.end_of_text.contains(&id);
        let is_whole = match &mut self.tracker {
            Some(tracker) if !is_end => tracker.advance(id)?,
            _ => false,
        };
        let logprobs = plain.filter(|_| !is_end).map(|(plain, n)| sampler::logprobs(&plain, id, n));
        Ok(Chosen { id, is_end, is_whole, logprobs })
    }

    /// Sends what was chosen, and counts each token before; returns them, as far as the output goes.
    pub(crate) fn deliver(&mut self, text: &Text, counter: &AtomicU64) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.chosen.len());
        for Chosen { id, is_end, is_whole, logprobs } in std::mem::take(&mut self.chosen) {
            if self.over {
                return ids;
            }
            ids.push(id);
            counter.fetch_add(1, Ordering::Relaxed);
            self.first_token.get_or_insert_with(Instant::now);
            if self.n_generated >= self.min_tokens && !self.later_stop.is_empty() {
                self.output.watch(std::mem::take(&mut self.later_stop));
            }
            self.n_generated += 1;
            if is_end {
                self.finish(FinishReason::Stop, text);
                return ids;
            }
            let logprob = logprobs.map(|logprobs| logprob(logprobs, id, text));
            let (piece, stop) = match self.output.push(id, text) {
                Grown::Text(piece) => (piece, None),
                Grown::Stopped { text, stop } => (text, Some(stop)),
            };
            self.send(Event::Token(Token { id, text: piece, logprob }));
            if let Some(stop) = stop {
                self.end(FinishReason::Stop, String::new(), Some(stop));
            } else if is_whole {
                self.finish(FinishReason::Stop, text);
            } else if self.n_generated >= self.max_output {
                self.finish(FinishReason::Length, text);
            }
        }
        if let Some(what) = self.failed.take() {
            self.finish(FinishReason::Error(what), text);
        }
        ids
    }

    /// Makes tokens impossible that may not come next.
    fn restrict(&mut self, logits: &mut [f32], text: &Text) -> Result<(), String> {
        if let Some(tracker) = &mut self.tracker {
            tracker.restrict(logits)?;
        }
        if self.n_generated + self.chosen.len() < self.min_tokens {
            let possible = |logits: &[f32]| logits.iter().any(|x| *x != f32::NEG_INFINITY);
            let ends = text.end_of_text.iter().map(|id| *id as usize).filter(|id| *id < logits.len());
            let before: Vec<(usize, f32)> = ends.map(|id| (id, logits[id])).collect();
            before.iter().for_each(|(id, _)| logits[*id] = f32::NEG_INFINITY);
            if !possible(logits) {
                // The constraint leaves nothing but the end.
                before.into_iter().for_each(|(id, x)| logits[id] = x);
            }
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self, reason: FinishReason, text: &Text) {
        let rest = self.output.finish(text);
        self.end(reason, rest, None);
    }

    fn end(&mut self, reason: FinishReason, text: String, stop_string: Option<String>) {
        let now = Instant::now();
        let prefilled = self.first_token.unwrap_or(now);
        self.send(Event::Finished(Finished {
            reason,
            text,
            stop_string,
            usage: Usage {
                prompt_tokens: self.n_prompt as u32,
                completion_tokens: self.n_generated as u32,
                accepted_draft_tokens: self.n_accepted,
                rejected_draft_tokens: self.n_rejected,
                cached_tokens: self.n_cached.unwrap_or(0) as u32,
            },
            timings: Timings {
                queue: self.started - self.submitted,
                prefill: prefilled - self.started,
                decode: now - prefilled,
            },
        }));
        self.over = true;
    }

    fn send(&mut self, event: Event) {
        if !self.over && deliver(&mut self.sink, event).is_break() {
            self.over = true;
        }
    }
}

/// Ends a request that never got a slot.
pub(crate) fn refuse(mut pending: Pending, reason: FinishReason) {
    let finished = Finished {
        reason,
        text: String::new(),
        stop_string: None,
        usage: Usage { prompt_tokens: pending.request.prompt_tokens.len() as u32, ..Usage::default() },
        timings: Timings { queue: pending.submitted.elapsed(), ..Timings::default() },
    };
    // Nothing follows that a `Break` could prevent.
    let _ = deliver(&mut pending.sink, Event::Finished(finished));
}

/// A sink is a caller's code: if it panics, its request ends, not the engine.
fn deliver(sink: &mut Sink, event: Event) -> ControlFlow<()> {
    contained::run(|| sink(event)).unwrap_or_else(|_| {
        tracing::error!("a sink panicked; its request is cancelled");
        ControlFlow::Break(())
    })
}

fn logprob((logprob, top): (f32, Vec<(u32, f32)>), id: u32, text: &Text) -> TokenLogprob {
    let written = |id| {
        let token = text.token_text(id);
        (text.token_bytes(id, &token), token)
    };
    let top = top.into_iter().map(|(id, logprob)| {
        let (bytes, token) = written(id);
        TopLogprob { id, token, bytes, logprob }
    });
    let (bytes, token) = written(id);
    TokenLogprob { logprob, token, bytes, top: top.collect() }
}
