//! What waits in front of an encoder, and for whom it is full.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{super::worker::Job, Encoded};
use crate::kernels::Pulse;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Phase {
    Open,
    Draining,
    Stopping,
}

pub(in super::super) struct State {
    pub(in super::super) queue: VecDeque<Job>,
    pub(in super::super) queued_tokens: usize,
    /// Tokens that are still to be computed of each request under way.
    pub(in super::super) rests: Vec<usize>,
    pub(in super::super) phase: Phase,
    pub(in super::super) idle: bool,
    pub(in super::super) heartbeat: Instant,
    /// Of the threads that compute, as they were then.
    pub(in super::super) beats: [u64; 3],
    /// Exponentially weighted.
    pub(in super::super) tokens_per_second: f64,
    pub(in super::super) inputs: u64,
    pub(in super::super) tokens: u64,
    pub(in super::super) batches: u64,
}

impl State {
    /// Takes those out of the queue whose clients left or whose time is up. They are to be ended without the lock.
    pub(in super::super) fn sweep(&mut self) -> Vec<(Job, Encoded)> {
        let now = Instant::now();
        let (gone, left) = self.queue.drain(..).partition(|job: &Job| job.is_over(now).is_some());
        self.queue = left;
        let gone: VecDeque<Job> = gone;
        self.queued_tokens -= gone.iter().map(|job| job.tokens).sum::<usize>();
        gone.into_iter().filter_map(|job| job.is_over(now).map(|how| (job, how))).collect()
    }

    /// Tokens that are computed before a request of so many is done: all take turns, so that a long one holds a
    /// short one up by no more than the short one's own length.
    pub(in super::super) fn before(&self, tokens: usize) -> usize {
        let queued = self.queue.iter().map(|job| job.tokens);
        self.rests.iter().copied().chain(queued).map(|n| n.min(tokens)).sum()
    }

    pub(in super::super) fn is_full(&self, door: &Door, tokens: usize) -> bool {
        let waiting = self.queued_tokens + self.rests.iter().sum::<usize>();
        let wait = self.before(tokens) as f64 / self.tokens_per_second.max(1.0);
        // One request alone is always admitted: the limits are for what waits behind others.
        waiting > 0
            && (self.queue.len() >= door.max_queue
                || waiting + tokens > door.max_queue_tokens
                || door.max_wait.is_some_and(|most| wait > most.as_secs_f64()))
    }
}

pub(in super::super) struct Door {
    pub(in super::super) state: Mutex<State>,
    pub(in super::super) work: Condvar,
    pub(in super::super) idle: Condvar,
    pub(in super::super) pulse: Pulse,
    pub(in super::super) max_queue: usize,
    pub(in super::super) max_queue_tokens: usize,
    pub(in super::super) max_wait: Option<Duration>,
}

impl Door {
    pub(in super::super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every section is a few assignments: a panic cannot leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in super::super) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        self.work.notify_all();
    }
}
