//! Panics that end one request instead of the process. A panic hook runs before anything unwinds, so a hook that
//! ends the process must be able to tell those that somebody catches: that is [`panic_is_contained`].

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

thread_local! {
    /// Calls of [`run`] on this thread's stack.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Calls of [`run`] on any thread's stack.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Undone by unwinding as well.
struct Mark;

impl Mark {
    fn new() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        RUNNING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `work`, or what it panicked with. Whoever calls must leave nothing half-changed behind that is used again.
pub(crate) fn run<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    panic::catch_unwind(AssertUnwindSafe(|| {
        let _mark = Mark::new();
        work()
    }))
}

/// For a panic hook: whether the panic under way on this thread is caught and ends no more than one request or
/// one load. A worker of a pool hands its panic to the thread that waits for it, which cannot be told from here; while
/// any contained work runs, the worker is taken to work for that.
pub fn panic_is_contained() -> bool {
    DEPTH.get() > 0 || (is_pool_worker() && RUNNING.load(Ordering::SeqCst) > 0)
}

/// Of the engine's own pools, of rayon, or of candle's pool, which has no other mark than its threads' names.
fn is_pool_worker() -> bool {
    let is_candles = |name: &str| name.starts_with("candle-bp-");
    crate::kernels::is_worker()
        || rayon::current_thread_index().is_some()
        || thread::current().name().is_some_and(is_candles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail() {
        panic!("on purpose");
    }

    #[test]
    fn the_mark_ends_with_the_work_also_when_it_panics() {
        assert!(!panic_is_contained());
        let inside = run(panic_is_contained).unwrap();
        assert!(inside);
        assert!(run(|| run(fail).is_err() && panic_is_contained()).unwrap());
        assert!(run(fail).is_err());
        assert!(!panic_is_contained());
    }

    #[test]
    fn workers_of_contained_work_are_contained_and_other_threads_are_not() {
        let (worker, stranger) = run(|| {
            let worker = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let stranger = thread::spawn(panic_is_contained).join().unwrap();
            let candle = thread::Builder::new().name("candle-bp-0".to_owned());
            let candle = candle.spawn(panic_is_contained).unwrap().join().unwrap();
            (worker.install(panic_is_contained) && candle, stranger)
        })
        .unwrap();
        assert!(worker);
        assert!(!stranger);
    }
}
