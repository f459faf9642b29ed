//! The thread of an encoder: whose texts are computed next, and what becomes of them.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    body::Body,
    engine::{Door, Encoded, EncoderTask, Output, Phase, Results},
    entities::TokenLabels,
    graph::Row,
    input::Input,
    pooling::Recipe,
};
use crate::{CancelToken, contained};

/// Requests that take turns. Further ones wait in the queue, so that a batch is put together quickly.
const SEATS: usize = 64;

/// One request.
pub(super) struct Job {
    pub(super) inputs: Vec<Input>,
    /// Of all inputs.
    pub(super) tokens: usize,
    /// Of the first inputs.
    pub(super) outputs: Vec<Output>,
    pub(super) results: Option<Results>,
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancelToken,
}

impl Job {
    pub(super) fn end(&mut self, how: Encoded) {
        if let Some(results) = self.results.take()
            && contained::run(|| results(how)).is_err()
        {
            tracing::error!("a sink panicked");
        }
    }

    /// How it ends although it is not done.
    pub(super) fn is_over(&self, now: Instant) -> Option<Encoded> {
        if self.cancel.is_cancelled() {
            return Some(Encoded::Cancelled);
        }
        self.deadline.is_some_and(|deadline| deadline <= now).then_some(Encoded::Deadline)
    }

    /// Tokens that are still to be computed.
    fn rest(&self) -> usize {
        self.inputs.iter().skip(self.outputs.len()).map(Input::n_tokens).sum()
    }
}

pub(super) struct Worker {
    pub(super) body: Body,
    /// Of a model that labels tokens.
    pub(super) n_labels: usize,
    pub(super) recipe: Recipe,
    pub(super) task: EncoderTask,
    pub(super) batch_tokens: usize,
    pub(super) door: Arc<Door>,
}

impl Worker {
    pub(super) fn run(mut self) {
        // Requests that take turns: each batch has an input of every one of them, and another, until it is full.
        let mut under_way: VecDeque<Job> = VecDeque::new();
        while let Some(phase) = self.take(&mut under_way) {
            let now = Instant::now();
            under_way.retain_mut(|job| {
                let over = if phase == Phase::Stopping { Some(Encoded::Cancelled) } else { job.is_over(now) };
                let Some(how) = over else { return true };
                job.end(how);
                false
            });
            self.batch(&mut under_way);
        }
    }

    /// Waits for work, then gives those that wait a seat. `None` = the engine stops.
    fn take(&self, under_way: &mut VecDeque<Job>) -> Option<Phase> {
        let mut state = self.door.lock();
        state.rests = under_way.iter().map(Job::rest).collect();
        state.heartbeat = Instant::now();
        loop {
            let gone = state.sweep();
            if !gone.is_empty() {
                drop(state);
                gone.into_iter().for_each(|(mut job, how)| job.end(how));
                state = self.door.lock();
            } else if under_way.is_empty() && state.queue.is_empty() {
                state.idle = true;
                self.door.idle.notify_all();
                if state.phase == Phase::Stopping {
                    return None;
                }
                state = self.door.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                break;
            }
        }
        (state.idle, state.heartbeat) = (false, Instant::now());
        let mut tokens: usize = under_way.iter().map(Job::rest).sum();
        while under_way.len() < SEATS || tokens < self.batch_tokens || state.phase == Phase::Stopping {
            let Some(job) = state.queue.pop_front() else { break };
            state.queued_tokens -= job.tokens;
            tokens += job.tokens;
            under_way.push_back(job);
        }
        state.rests = under_way.iter().map(Job::rest).collect();
        Some(state.phase)
    }

    /// Computes the next inputs, as many as a batch holds.
    fn batch(&mut self, under_way: &mut VecDeque<Job>) {
        let (turns, tokens) = turns(under_way, self.batch_tokens);
        if turns.is_empty() {
            return;
        }
        let mut next: Vec<usize> = under_way.iter().map(|job| job.outputs.len()).collect();
        let inputs: Vec<&Input> = turns
            .iter()
            .map(|&whose| {
                next[whose] += 1;
                &under_way[whose].inputs[next[whose] - 1]
            })
            .collect();
        let began = Instant::now();
        let outcome = contained::run(|| {
            #[cfg(test)]
            crate::tests::faults::in_batch(
                self.body.pool(),
                &inputs.iter().map(|input| &input.ids[..]).collect::<Vec<_>>(),
            )?;
            self.compute(&inputs)
        });
        let n_inputs = inputs.len();
        drop(inputs);
        match outcome {
            Ok(Ok(outputs)) => {
                for (&whose, output) in turns.iter().zip(outputs) {
                    let job = &mut under_way[whose];
                    if output.is_finite() {
                        job.outputs.push(output);
                    } else {
                        tracing::error!(
                            "the model gave numbers that are not finite: its weights are damaged"
                        );
                        job.end(Encoded::Error("the result is not finite".to_owned()));
                    }
                }
            }
            failed => {
                let message = match failed {
                    Ok(Err(message)) => message,
                    _ => "a batch panicked".to_owned(),
                };
                tracing::error!(message, "a batch failed");
                turns.iter().for_each(|&whose| under_way[whose].end(Encoded::Error(message.clone())));
            }
        }
        self.count(n_inputs, tokens, began.elapsed());
        // Who had the last turn comes last the next time.
        let last = turns.last().map_or(0, |whose| (whose + 1) % under_way.len());
        under_way.rotate_left(last);
        under_way.retain_mut(|job| {
            if job.results.is_some() && job.outputs.len() == job.inputs.len() {
                let outputs = std::mem::take(&mut job.outputs);
                job.end(Encoded::Done(outputs));
            }
            job.results.is_some()
        });
    }

    fn compute(&mut self, inputs: &[&Input]) -> Result<Vec<Output>, String> {
        let rows: Vec<Row<'_>> =
            inputs.iter().map(|input| Row { tokens: &input.ids, types: &input.types }).collect();
        match self.task {
            EncoderTask::Embed => {
                let vectors = self.body.vectors(&rows, self.recipe)?;
                Ok(vectors.into_iter().map(Output::Embedding).collect())
            }
            EncoderTask::Rerank => Ok(self.body.logits(&rows)?.into_iter().map(Output::Score).collect()),
            EncoderTask::TokenClassify => {
                let logits = self.body.logits(&rows)?;
                let mut rows = logits.chunks_exact(self.n_labels.max(1));
                let labels = |input: &&Input| {
                    let own = rows.by_ref().take(input.n_tokens());
                    Output::Labels(TokenLabels::of(own, &input.ids, &input.spans))
                };
                Ok(inputs.iter().map(labels).collect())
            }
        }
    }

    /// Counted before the results go out: whoever hears of them finds them in the figures.
    fn count(&self, inputs: usize, tokens: usize, took: Duration) {
        let mut state = self.door.lock();
        state.inputs += inputs as u64;
        state.tokens += tokens as u64;
        state.batches += 1;
        let speed = tokens as f64 / took.as_secs_f64().max(1e-6);
        state.tokens_per_second = state.tokens_per_second.mul_add(0.75, 0.25 * speed);
    }
}

/// Whose next input is computed, input by input, and the tokens of all: one of each request, then another of each, until
/// the batch is full. One input is always computed, however long it is.
fn turns(under_way: &VecDeque<Job>, batch_tokens: usize) -> (Vec<usize>, usize) {
    let mut rests: Vec<_> =
        under_way.iter().map(|job| job.inputs.iter().skip(job.outputs.len()).map(Input::n_tokens)).collect();
    let (mut turns, mut tokens) = (Vec::new(), 0);
    loop {
        let before = turns.len();
        for (whose, rest) in rests.iter_mut().enumerate() {
            let Some(n) = rest.next() else { continue };
            if !turns.is_empty() && tokens + n > batch_tokens {
                return (turns, tokens);
            }
            tokens += n;
            turns.push(whose);
        }
        if turns.len() == before {
            return (turns, tokens);
        }
    }
}
