//! The door between callers and the engine's thread: a bounded queue, the running count and the heartbeat.
//! Knows nothing of models.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    CancelToken, EngineConfig, GenerateRequest, Sink, SubmitError, kernels::Pulse, schedule::Figures,
};

/// A request that was admitted and waits for a sequence slot.
pub(crate) struct Pending {
    pub(crate) request: GenerateRequest,
    pub(crate) sink: Sink,
    pub(crate) cancel: CancelToken,
    pub(crate) submitted: Instant,
}

/// Where the engine is in its life; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Nothing new is admitted; what was, finishes.
    Draining,
    /// What was admitted is cancelled.
    Stopping,
}

struct State {
    queue: VecDeque<Pending>,
    phase: Phase,
    running: usize,
    /// Slots that the next requests will have at once.
    free: usize,
    /// Prompt tokens in the queue.
    queued_tokens: usize,
    /// The thread waits for work, so its heartbeat stands still for a good reason.
    idle: bool,
    heartbeat: Instant,
    /// Of the threads that compute, as they were then.
    pulse: [u64; 3],
    speed: Speed,
    figures: Figures,
}

/// What work takes, as exponentially weighted means.
struct Speed {
    /// Seconds that a request holds a slot.
    service: f64,
    /// Tokens that a request generates.
    output: Option<f64>,
    /// Seconds of the engine for a token of a prompt, and for a generated one, beside whatever else is in the step.
    prefill: Option<f64>,
    decode: Option<f64>,
}

fn follow(mean: &mut Option<f64>, value: f64) {
    *mean = Some(mean.map_or(value, |mean| (mean * 7.0 + value) / 8.0));
}

pub(crate) struct Admission {
    state: Mutex<State>,
    /// Work arrived or the phase changed: for the engine's thread.
    work: Condvar,
    /// The engine became idle: for those who drain.
    idle: Condvar,
    limits: Limits,
    pulse: Pulse,
    pub(crate) counters: Counters,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    max_sequences: usize,
    max_queue: usize,
    max_queue_tokens: Option<usize>,
    max_wait: Option<Duration>,
}

impl From<&EngineConfig> for Limits {
    fn from(config: &EngineConfig) -> Self {
        let EngineConfig { max_sequences, max_queue, max_queue_tokens, max_wait, .. } = *config;
        Self { max_sequences, max_queue, max_queue_tokens, max_wait }
    }
}

/// Totals since the engine was loaded.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) step_tokens: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// What the engine's thread took from the queue.
pub(crate) struct Taken {
    pub(crate) started: Vec<Pending>,
    pub(crate) over: Vec<Pending>,
    pub(crate) phase: Phase,
}

/// A look at the door.
pub(crate) struct Snapshot {
    pub(crate) running: usize,
    pub(crate) queued: usize,
    pub(crate) queued_tokens: usize,
    pub(crate) figures: Figures,
    pub(crate) heartbeat_age: Duration,
    pub(crate) phase: Phase,
}

impl Admission {
    /// `pulse` is that of the threads which compute the steps.
    pub(crate) fn new(limits: Limits, pulse: Pulse) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                phase: Phase::Open,
                running: 0,
                free: limits.max_sequences,
                queued_tokens: 0,
                idle: true,
                heartbeat: Instant::now(),
                pulse: pulse.read(),
                speed: Speed { service: 1.0, output: None, prefill: None, decode: None },
                figures: Figures::default(),
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            limits,
            pulse,
            counters: Counters::default(),
        }
    }

    // A panic while the lock is held cannot leave the state half-changed: every section below is a few
    // assignments. So a poisoned lock is taken over.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request, or says why not. A request that a free slot will take at once does not count as waiting.
    pub(crate) fn submit(&self, pending: Pending) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(SubmitError::ShuttingDown);
        }
        let (queued, tokens) = (state.queue.len(), pending.request.prompt_tokens.len());
        if queued >= state.free {
            let wait = state.wait(&self.limits);
            let Limits { max_queue, max_queue_tokens, max_wait, .. } = self.limits;
            let too_many = queued >= max_queue + state.free;
            let too_long =
                max_queue_tokens.is_some_and(|max| queued > 0 && state.queued_tokens + tokens > max);
            if too_many || too_long || max_wait.is_some_and(|max| wait > max.as_secs_f64()) {
                // When what waits now will have been taken; whole seconds, since that is what `Retry-After` can say.
                let retry_after = Duration::from_secs(wait.ceil().clamp(1.0, 3600.0) as u64);
                return Err(SubmitError::QueueFull { queued, retry_after });
            }
        }
        if state.idle {
            state.heartbeat = Instant::now();
        }
        state.queued_tokens += tokens;
        state.queue.push_back(pending);
        self.work.notify_one();
        Ok(())
    }

    /// The engine's thread, between steps: beats the heart, takes as many requests as there are free slots (none, if
    /// `has_room` is false), and hands out those waiting ones that `is_over` says have ended before they began.
    pub(crate) fn take(
        &self,
        running: usize,
        has_room: bool,
        is_over: impl Fn(&Pending, Phase) -> bool,
    ) -> Taken {
        let mut state = self.lock();
        state.heartbeat = Instant::now();
        state.idle = false;
        let (mut over, mut waiting) = (Vec::new(), VecDeque::with_capacity(state.queue.len()));
        let queue = std::mem::take(&mut state.queue);
        for pending in queue {
            if is_over(&pending, state.phase) { over.push(pending) } else { waiting.push_back(pending) }
        }
        let free = if has_room { self.limits.max_sequences.saturating_sub(running) } else { 0 };
        let started: Vec<_> = waiting.drain(..free.min(waiting.len())).collect();
        state.queued_tokens = waiting.iter().map(|pending| pending.request.prompt_tokens.len()).sum();
        state.queue = waiting;
        state.running = running + started.len();
        state.free = free - started.len();
        Taken { started, over, phase: state.phase }
    }

    /// The engine's thread, with nothing to do: sleeps until there is. False = the engine stops.
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        (state.running, state.free) = (0, self.limits.max_sequences);
        while state.queue.is_empty() && state.phase != Phase::Stopping {
            state.idle = true;
            self.idle.notify_all();
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.heartbeat = Instant::now();
        let go_on = !(state.queue.is_empty() && state.phase == Phase::Stopping);
        state.idle = !go_on;
        if !go_on {
            self.idle.notify_all();
        }
        go_on
    }

    /// A request left its slot after `service`, with so many tokens generated.
    pub(crate) fn served(&self, service: Duration, n_generated: usize) {
        let mut state = self.lock();
        state.speed.service = (state.speed.service * 7.0 + service.as_secs_f64()) / 8.0;
        follow(&mut state.speed.output, n_generated as f64);
    }

    /// A step computed so many tokens of prompts and so many that follow generated ones.
    pub(crate) fn stepped(&self, took: Duration, n_prefill: usize, n_decode: usize) {
        let each = took.as_secs_f64() / (n_prefill + n_decode).max(1) as f64;
        let mut state = self.lock();
        if n_prefill > 0 {
            follow(&mut state.speed.prefill, each);
        } else if n_decode > 0 {
            follow(&mut state.speed.decode, each);
        }
    }

    /// What the scheduler holds now.
    pub(crate) fn show(&self, figures: Figures) {
        self.lock().figures = figures;
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        self.work.notify_all();
    }

    /// Waits until nothing runs or waits. False = `deadline` came first.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while !(state.idle && state.queue.is_empty()) {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            (state, _) = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Asked again and again, its heartbeat is as fine as the tasks of a step: a step may take as long as it likes.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut state = self.lock();
        let pulse = self.pulse.read();
        if pulse != state.pulse {
            (state.pulse, state.heartbeat) = (pulse, Instant::now());
        }
        let resting = state.idle && state.queue.is_empty();
        Snapshot {
            running: state.running,
            queued: state.queue.len(),
            queued_tokens: state.queued_tokens,
            figures: state.figures,
            heartbeat_age: if resting { Duration::ZERO } else { state.heartbeat.elapsed() },
            phase: state.phase,
        }
    }
}

impl State {
    /// Seconds until a request that came now would have a slot, all slots being taken: until a running one ends, and as
    /// long as those take that wait already.
    fn wait(&self, limits: &Limits) -> f64 {
        let speed = &self.speed;
        let per_slot = speed.service / limits.max_sequences as f64;
        let queued = self.queue.len() as f64;
        let before = match (speed.prefill, speed.decode.or(speed.prefill), speed.output) {
            (Some(prefill), Some(decode), Some(output)) => {
                self.queued_tokens as f64 * prefill + queued * output * decode
            }
            // Nothing is measured yet.
            _ => queued * per_slot,
        };
        per_slot + before
    }
}

#[cfg(test)]
mod tests;
