//! One running request: its tokens, cache, sampling and the events it sends.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use crate::{
    CancelToken, Event, FinishReason, Finished, Sink, Timings, Token, TokenLogprob, TopLogprob, Usage,
    admission::Pending,
    constraint::Tracker,
    contained,
    sampler::{self, Sampler},
    text::{Grown, Output, Text},
};

/// A request that holds a slot.
pub(crate) struct Sequence {
    /// Prompt and output.
    pub(crate) tokens: Vec<u32>,
    n_prompt: usize,
    /// Where the keys and values of its tokens lie.
    pub(crate) blocks: Vec<u32>,
    /// Tokens whose keys and values are there.
    pub(crate) n_cached: usize,
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
}

impl Sequence {
    pub(crate) fn new(pending: Pending, blocks: Vec<u32>, context_length: usize) -> Self {
        let Pending { request, sink, cancel, submitted } = pending;
        let n_prompt = request.prompt_tokens.len();
        let room = context_length.saturating_sub(n_prompt);
        let max_output = request.max_tokens.map_or(room, |n| room.min(n as usize));
        let (stop, later_stop) =
            if request.min_tokens == 0 { (request.stop, Vec::new()) } else { (Vec::new(), request.stop) };
        Self {
            sampler: Sampler::new(request.sampling, &request.prompt_tokens),
            tracker: request.constraint.map(Tracker::new),
            min_tokens: request.min_tokens as usize,
            later_stop,
            output: Output::new(&request.prompt_tokens, stop),
            tokens: request.prompt_tokens,
            n_prompt,
            blocks,
            n_cached: 0,
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
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn service(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tokens whose keys and values are still to be computed.
    pub(crate) fn n_pending(&self) -> usize {
        self.tokens.len() - self.n_cached
    }

    pub(crate) fn is_prefilling(&self) -> bool {
        self.n_cached < self.n_prompt
    }

    /// Ends the sequence if its client left or its time is up.
    pub(crate) fn check(&mut self, text: &Text) {
        if self.cancel.is_cancelled() {
            self.finish(FinishReason::Cancelled, text);
        } else if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.finish(FinishReason::Deadline, text);
        }
    }

    /// Chooses a token from the logits after the last one, and sends what became of it.
    pub(crate) fn advance(&mut self, logits: &mut [f32], text: &Text) {
        let plain = self.logprobs.map(|_| logits.to_vec());
        if let Err(what) = self.restrict(logits, text) {
            return self.finish(FinishReason::Error(what), text);
        }
        let id = match self.sampler.sample(logits) {
            Ok(id) => id,
            Err(bad) => return self.finish(FinishReason::Error(bad.to_string()), text),
        };
        self.first_token.get_or_insert_with(Instant::now);
        self.n_generated += 1;
        if !self.ignore_eos && text.end_of_text.contains(&id) {
            return self.finish(FinishReason::Stop, text);
        }
        let whole = match self.tracker.as_mut().map(|tracker| tracker.advance(id)) {
            Some(Err(what)) => return self.finish(FinishReason::Error(what), text),
            Some(Ok(whole)) => whole,
            None => false,
        };
        self.tokens.push(id);
        let logprob = plain.zip(self.logprobs).map(|(plain, n)| logprob(&plain, id, n, text));
        let (piece, stop) = match self.output.push(id, text) {
            Grown::Text(piece) => (piece, None),
            Grown::Stopped { text, stop } => (text, Some(stop)),
        };
        self.send(Event::Token(Token { id, text: piece, logprob }));
        if let Some(stop) = stop {
            self.end(FinishReason::Stop, String::new(), Some(stop));
        } else if whole {
            self.finish(FinishReason::Stop, text);
        } else if self.n_generated >= self.max_output {
            self.finish(FinishReason::Length, text);
        }
    }

    /// Makes tokens impossible that may not come next.
    fn restrict(&mut self, logits: &mut [f32], text: &Text) -> Result<(), String> {
        if let Some(tracker) = &mut self.tracker {
            tracker.restrict(logits)?;
        }
        if self.n_generated < self.min_tokens {
            let possible = |logits: &[f32]| logits.iter().any(|x| *x != f32::NEG_INFINITY);
            let ends = text.end_of_text.iter().map(|id| *id as usize).filter(|id| *id < logits.len());
            let before: Vec<(usize, f32)> = ends.map(|id| (id, logits[id])).collect();
            before.iter().for_each(|(id, _)| logits[*id] = f32::NEG_INFINITY);
            if !possible(logits) {
                // The constraint leaves nothing but the end.
                before.into_iter().for_each(|(id, x)| logits[id] = x);
            }
        } else if !self.later_stop.is_empty() {
            self.output.watch(std::mem::take(&mut self.later_stop));
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
            usage: Usage { prompt_tokens: self.n_prompt as u32, completion_tokens: self.n_generated as u32 },
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
        usage: Usage { prompt_tokens: pending.request.prompt_tokens.len() as u32, completion_tokens: 0 },
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

fn logprob(logits: &[f32], id: u32, n: u32, text: &Text) -> TokenLogprob {
    let (logprob, top) = sampler::logprobs(logits, id, n as usize);
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
