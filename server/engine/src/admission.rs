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

use crate::{CancelToken, GenerateRequest, Sink, SubmitError};

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
    /// The thread waits for work, so its heartbeat stands still for a good reason.
    idle: bool,
    heartbeat: Instant,
    /// Exponentially weighted mean of how long a request holds a slot.
    mean_service: Duration,
}

pub(crate) struct Admission {
    state: Mutex<State>,
    /// Work arrived or the phase changed: for the engine's thread.
    work: Condvar,
    /// The engine became idle: for those who drain.
    idle: Condvar,
    max_queue: usize,
    max_sequences: usize,
    pub(crate) counters: Counters,
}

/// Totals since the engine was loaded.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) steps: AtomicU64,
    /// Tokens whose keys and values are held now.
    pub(crate) kv_tokens: AtomicU64,
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
    pub(crate) heartbeat_age: Duration,
    pub(crate) phase: Phase,
}

impl Admission {
    pub(crate) fn new(max_sequences: usize, max_queue: usize) -> Self {
        Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                phase: Phase::Open,
                running: 0,
                idle: true,
                heartbeat: Instant::now(),
                mean_service: Duration::from_secs(1),
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            max_queue,
            max_sequences,
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
        let free_slots = self.max_sequences.saturating_sub(state.running);
        let queued = state.queue.len();
        if queued >= self.max_queue + free_slots {
            let rounds = (queued + 1).div_ceil(self.max_sequences);
            let wait = state.mean_service.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
            // Whole seconds, since that is what `Retry-After` can say.
            let retry_after = Duration::from_secs(wait.as_secs_f64().ceil().clamp(1.0, 60.0) as u64);
            return Err(SubmitError::QueueFull { queued, retry_after });
        }
        if state.idle {
            state.heartbeat = Instant::now();
        }
        state.queue.push_back(pending);
        self.work.notify_one();
        Ok(())
    }

    /// The engine's thread, between steps: beats the heart, takes as many requests as there are free slots, and
    /// hands out those waiting ones that `is_over` says have ended before they began.
    pub(crate) fn take(&self, running: usize, is_over: impl Fn(&Pending, Phase) -> bool) -> Taken {
        let mut state = self.lock();
        state.heartbeat = Instant::now();
        state.idle = false;
        let (mut over, mut waiting) = (Vec::new(), VecDeque::with_capacity(state.queue.len()));
        let queue = std::mem::take(&mut state.queue);
        for pending in queue {
            if is_over(&pending, state.phase) { over.push(pending) } else { waiting.push_back(pending) }
        }
        let n_free = self.max_sequences.saturating_sub(running).min(waiting.len());
        let started: Vec<_> = waiting.drain(..n_free).collect();
        state.queue = waiting;
        state.running = running + started.len();
        Taken { started, over, phase: state.phase }
    }

    /// The engine's thread, with nothing to do: sleeps until there is. False = the engine stops.
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut state = self.lock();
        state.running = 0;
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

    /// A request left its slot after `service`.
    pub(crate) fn served(&self, service: Duration) {
        let mut state = self.lock();
        state.mean_service = (state.mean_service * 7 + service) / 8;
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

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let resting = state.idle && state.queue.is_empty();
        Snapshot {
            running: state.running,
            queued: state.queue.len(),
            heartbeat_age: if resting { Duration::ZERO } else { state.heartbeat.elapsed() },
            phase: state.phase,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    fn pending() -> Pending {
        Pending {
            request: GenerateRequest::default(),
            sink: Box::new(|_| ControlFlow::Continue(())),
            cancel: CancelToken::default(),
            submitted: Instant::now(),
        }
    }

    #[test]
    fn a_full_queue_says_when_to_retry() {
        let door = Admission::new(1, 2);
        // One goes straight to the free slot, two wait.
        for _ in 0..3 {
            door.submit(pending()).unwrap();
        }
        let refused = door.submit(pending()).unwrap_err();
        assert!(
            matches!(refused, SubmitError::QueueFull { queued: 3, retry_after } if retry_after.as_secs() >= 1),
            "{refused:?}"
        );
        let taken = door.take(0, |_, _| false);
        assert_eq!((taken.started.len(), taken.over.len()), (1, 0));
        assert!(door.submit(pending()).is_err(), "slot is taken, both places in the queue too");
    }

    #[test]
    fn requests_that_ended_in_the_queue_take_no_slot() {
        let door = Admission::new(1, 4);
        let dead = pending();
        dead.cancel.cancel();
        door.submit(dead).unwrap();
        door.submit(pending()).unwrap();
        let taken = door.take(0, |p, _| p.cancel.is_cancelled());
        assert_eq!((taken.started.len(), taken.over.len()), (1, 1));
        assert!(!taken.started[0].cancel.is_cancelled());
    }

    #[test]
    fn draining_admits_nothing_and_does_not_go_back() {
        let door = Admission::new(1, 1);
        door.advance(Phase::Stopping);
        door.advance(Phase::Draining);
        assert_eq!(door.submit(pending()), Err(SubmitError::ShuttingDown));
        assert_eq!(door.snapshot().phase, Phase::Stopping);
        assert!(!door.wait_for_work());
        assert!(door.wait_idle(Instant::now() + Duration::from_secs(1)));
    }
}
