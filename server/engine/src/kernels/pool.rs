//! Threads that share the tasks of one call at a time.
//!
//! A call hands out its tasks by a counter, so a thread that the machine takes away holds up one task, not a share.
//! Threads spin for some tens of microseconds after a call, since the next one follows within that in a forward pass,
//! and then sleep. A thread that wakes up late finds nothing to do and is not waited for.

use std::{
    any::Any,
    cell::Cell,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Rounds of spinning before a worker sleeps: about 50 µs.
const SPINS: u32 = 1500;
/// Rounds before the caller gives its core away while it waits for the last tasks.
const WAIT_SPINS: u32 = 20_000;
/// Pools so far.
static POOLS: AtomicUsize = AtomicUsize::new(0);

/// Threads of one engine; the caller of [`Pool::run`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    number: usize,
    workers: Vec<JoinHandle<()>>,
    /// One call at a time.
    gate: Mutex<()>,
}

/// Tells whether a [`Pool`] gets on with its work, without a cost to that work.
#[derive(Clone, Default)]
pub(crate) struct Pulse {
    shared: Arc<Shared>,
}

impl Pulse {
    /// Differs from what it was before if a task began, ended or beat in between.
    pub(crate) fn read(&self) -> [u64; 3] {
        let Shared { ticket, done, beats, .. } = &*self.shared;
        [ticket.load(Ordering::Relaxed), done.load(Ordering::Relaxed) as u64, beats.load(Ordering::Relaxed)]
    }
}

/// A call's tasks, as a worker reads them.
struct Job {
    task: *const (dyn Fn(usize) + Sync + 'static),
}

/// Bits of a ticket for the next task, and for the number of tasks.
const BITS: u32 = 20;
const MASK: u64 = (1 << BITS) - 1;

#[derive(Default)]
struct Shared {
    /// Number of the call, number of its tasks, and the next task. A worker that claims a task by exchanging all three
    /// at once knows that the job which it read just before belongs to this call.
    ticket: AtomicU64,
    /// Points to a [`Job`] on the caller's stack.
    job: AtomicPtr<Job>,
    done: AtomicUsize,
    /// Tasks that one thread did alone, and [`Pool::beat`].
    beats: AtomicU64,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    /// This thread is inside a task: a call from there runs on it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// It was started by a pool.
    static WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a thread of a pool, and not one that called it.
pub(crate) fn is_worker() -> bool {
    WORKER.get()
}

/// The name of all threads of an engine begins so, in the 15 bytes that the kernel keeps of a name: who looks at
/// `/proc` can tell one engine's threads from another's.
pub fn thread_name(engine: usize) -> String {
    format!("candela-{engine}-")
}

impl Pool {
    /// Starts `threads - 1` threads.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let number = POOLS.fetch_add(1, Ordering::Relaxed) + 1;
        let mut pool =
            Self { shared: Arc::clone(&shared), number, workers: Vec::new(), gate: Mutex::new(()) };
        for i in 1..threads {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("{}{i}", thread_name(number)));
            pool.workers.push(builder.spawn(move || {
                WORKER.set(true);
                shared.work();
            })?);
        }
        Ok(pool)
    }

    /// Of all pools of the process; the first is 1.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn pulse(&self) -> Pulse {
        Pulse { shared: Arc::clone(&self.shared) }
    }

    /// Says that a task gets on. For tasks of more than some tenths of a second on a slow machine: who watches the
    /// [`Pulse`] takes seconds of silence for a thread that is stuck.
    pub(crate) fn beat(&self) {
        self.shared.beats.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(i)` once for each `i` below `n`, on all threads, and returns when all have ended. If tasks panic, the
    /// first panic goes on here after that.
    pub(crate) fn run(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        if n <= 1 || self.workers.is_empty() || INSIDE.get() {
            for i in 0..n {
                task(i);
                self.beat();
            }
            return;
        }
        assert!(n as u64 <= MASK, "too many tasks");
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.call(n, task);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            panic::resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        for worker in self.workers.drain(..) {
            // Its panics were caught; there is nobody to tell of another.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn call(&self, n: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. This function returns after `done` has counted all `n` tasks, and nobody
        // reads the pointer without claiming one of them first.
        #[expect(unsafe_code, reason = "workers outlive the call, the task does not: see above")]
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        let mut job = Job { task };
        self.done.store(0, Ordering::SeqCst);
        self.job.store(&raw mut job, Ordering::SeqCst);
        let call = (self.ticket.load(Ordering::SeqCst) >> (2 * BITS)) + 1;
        // The shift drops what a count of calls outgrows.
        self.ticket.store(call << (2 * BITS) | (n as u64) << BITS, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_all();
        }
        while self.claim() {}
        let mut spins = 0;
        while self.done.load(Ordering::SeqCst) < n {
            spins += 1;
            if spins < WAIT_SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }

    /// Takes and runs one task. False = there is none.
    fn claim(&self) -> bool {
        loop {
            let ticket = self.ticket.load(Ordering::SeqCst);
            let (n, i) = (ticket >> BITS & MASK, ticket & MASK);
            if i >= n {
                return false;
            }
            let job = self.job.load(Ordering::SeqCst);
            if self.ticket.compare_exchange(ticket, ticket + 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                continue;
            }
            // SAFETY: the exchange succeeded, so the call that the ticket names has a task that is not done and its
            // caller still waits in `call`, with the job on its stack; `job` was stored before that ticket and is
            // stored again only after all of the call's tasks are done.
            #[expect(unsafe_code, reason = "reads the job of a call that waits")]
            let task = unsafe { &*(*job).task };
            let outside = INSIDE.replace(true);
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| task(i as usize)));
            INSIDE.set(outside);
            if let Err(payload) = outcome {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            self.done.fetch_add(1, Ordering::SeqCst);
            return true;
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            while self.claim() {}
            let mut spins = 0;
            loop {
                let call = self.ticket.load(Ordering::SeqCst) >> (2 * BITS);
                if call != seen {
                    seen = call;
                    break;
                }
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                spins += 1;
                if spins < SPINS { std::hint::spin_loop() } else { self.sleep(seen) }
            }
        }
    }

    /// Until a call other than `seen` begins.
    fn sleep(&self, seen: u64) {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.ticket.load(Ordering::SeqCst) >> (2 * BITS) == seen && !self.stop.load(Ordering::SeqCst) {
            lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        drop(lock);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_all(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }
}
