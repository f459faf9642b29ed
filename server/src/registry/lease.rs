//! Who uses a model: counted without a lock, and waited for by whoever unloads it.

use std::{
    ops::Deref,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::model::Served;

/// Of one loaded model.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    holds: AtomicUsize,
    /// No further holds.
    closed: AtomicBool,
    /// A number that grows with each use, of all models.
    last: AtomicU64,
    lock: Mutex<()>,
    idle: Condvar,
}

/// Order of all uses in this process.
static CLOCK: AtomicU64 = AtomicU64::new(1);

impl Uses {
    /// `None` = it is being unloaded.
    pub(crate) fn hold(this: &Arc<Self>) -> Option<Hold> {
        // First counted, then looked: whoever closes does it the other way round, so one of the two sees the other.
        let hold = Hold::counted(this);
        (!this.closed.load(SeqCst)).then_some(hold)
    }

    /// For those who have a lease: also when the model is being unloaded, which waits for them as well.
    pub(crate) fn again(this: &Arc<Self>) -> Hold {
        Hold::counted(this)
    }

    pub(super) fn touch(&self) {
        self.last.store(CLOCK.fetch_add(1, SeqCst), SeqCst);
    }

    pub(super) fn count(&self) -> usize {
        self.holds.load(SeqCst)
    }

    /// 0 = never.
    pub(super) fn last(&self) -> u64 {
        self.last.load(SeqCst)
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    /// After [`Uses::close`]: until the last hold is gone. False = `deadline` came first.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.count() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            let (again, _) = self.idle.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
            guard = again;
        }
        true
    }
}

/// Keeps a model loaded.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Uses>);

impl Hold {
    fn counted(uses: &Arc<Uses>) -> Self {
        uses.holds.fetch_add(1, SeqCst);
        Self(Arc::clone(uses))
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::counted(&self.0)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.touch();
        if self.0.holds.fetch_sub(1, SeqCst) == 1 && self.0.closed.load(SeqCst) {
            // Under the lock, so that it does not fall between a look at the count and the wait.
            let _guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.idle.notify_all();
        }
    }
}

/// A model that stays loaded as long as this lives.
#[derive(Clone)]
pub(crate) struct Lease {
    served: Arc<Served>,
    _hold: Hold,
}

impl Lease {
    /// `None` = it is being unloaded.
    pub(super) fn of(served: &Arc<Served>) -> Option<Self> {
        let hold = Uses::hold(&served.uses)?;
        Some(Self { served: Arc::clone(served), _hold: hold })
    }
}

impl Deref for Lease {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_waits_for_holds_and_lets_no_new_ones_in() {
        let uses = Arc::new(Uses::default());
        let first = Uses::hold(&uses).unwrap();
        let second = first.clone();
        drop(first);
        uses.close();
        assert!(Uses::hold(&uses).is_none());
        assert_eq!(uses.count(), 1);
        assert!(!uses.wait(Instant::now()), "one is left");
        let waiter = Arc::clone(&uses);
        let waits = std::thread::spawn(move || waiter.wait(Instant::now() + Duration::from_secs(20)));
        drop(second);
        assert!(waits.join().unwrap(), "the last one wakes it");
        assert!(uses.last() > 0);
    }

    #[test]
    fn however_they_meet_nobody_holds_what_is_closed_and_idle() {
        for _ in 0..200 {
            let uses = Arc::new(Uses::default());
            let shared = Arc::clone(&uses);
            let taker = std::thread::spawn(move || Uses::hold(&shared));
            uses.close();
            let idle = uses.wait(Instant::now());
            // Either it came in time and was waited for, or it is refused.
            let hold = taker.join().unwrap();
            assert!(!(idle && hold.is_some()), "held after it was found idle");
        }
    }
}
