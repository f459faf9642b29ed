//! How far a start is, written by whoever does the work, read by probes, metrics and the stall watchdog.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use candela_wire::internal;
use tokio::time::Instant;

/// What a start is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Fetch,
    Load,
    Warmup,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Fetch, Self::Load, Self::Warmup];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fetch => "Fetch",
            Self::Load => "Load",
            Self::Warmup => "Warmup",
        }
    }
}

/// One start.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    phase: AtomicU8,
    done_bytes: AtomicU64,
    /// 0 = not known.
    total_bytes: AtomicU64,
    /// Milliseconds after `began` of the last move.
    moved: AtomicU64,
}

impl Progress {
    pub(crate) fn new(phase: Phase) -> Self {
        Self {
            began: Instant::now(),
            phase: AtomicU8::new(phase as u8),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    /// Begins the next phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.done_bytes.store(0, Relaxed);
        self.total_bytes.store(0, Relaxed);
        self.touch();
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Relaxed);
        self.touch();
    }

    /// A file had to be begun again: its bytes do not count.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.done_bytes.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Relaxed);
        if self.done_bytes.swap(done_bytes, Relaxed) != done_bytes {
            self.touch();
        }
    }

    pub(crate) fn set_total(&self, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Relaxed))]
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Relaxed)
    }

    pub(crate) fn total_bytes(&self) -> Option<u64> {
        Some(self.total_bytes.load(Relaxed)).filter(|total| *total > 0)
    }

    /// Time without a move.
    pub(crate) fn still_for(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.moved.load(Relaxed)))
    }

    pub(crate) fn report(&self) -> internal::Progress {
        internal::Progress {
            phase: self.phase().name().to_owned(),
            done_bytes: self.done_bytes(),
            total_bytes: self.total_bytes(),
        }
    }

    fn touch(&self) {
        self.moved.store(self.began.elapsed().as_millis() as u64, Relaxed);
    }

    /// Returns once nothing has moved for `limit`; otherwise never.
    pub(crate) async fn stalled(&self, limit: Duration) {
        loop {
            let still = self.still_for();
            if still >= limit {
                return;
            }
            tokio::time::sleep(limit - still).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_movement_puts_the_stall_off() {
        let progress = Progress::new(Phase::Fetch);
        let limit = Duration::from_secs(10);
        let began = Instant::now();
        let work = async {
            for done in [1, 2, 2, 2] {
                tokio::time::sleep(Duration::from_secs(6)).await;
                progress.set(done, 9);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => unreachable!("pends for ever"),
            () = progress.stalled(limit) => {}
        }
        // Moves at 6 and 12 s, then the same number twice.
        assert_eq!(began.elapsed().as_secs(), 22);
        assert_eq!(progress.report().done_bytes, 2);
    }
}
