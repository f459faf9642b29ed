//! The states of a process and who waits for them: `Loading → Ready → Draining`, then streams are ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use candela_wire::internal::State;
use tokio::sync::watch;

/// Shared by everything that lives as long as the process.
#[derive(Clone)]
pub(crate) struct Lifecycle {
    stage: Arc<watch::Sender<Stage>>,
    in_flight: Arc<AtomicU64>,
}

/// In order: a later stage implies the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Loading,
    Ready,
    /// Not ready any more, but requests that still arrive are answered: endpoints take time to forget a pod.
    Draining,
    /// No new connections; those that rest are closed.
    Closing,
    /// The grace period is over: streams end with an error event.
    Ending,
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Loading)), in_flight: Arc::default() }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Moves on; a stage that has passed is not entered again (a model may be loaded after SIGTERM).
    pub(crate) fn enter(&self, next: Stage) {
        self.stage.send_if_modified(|stage| {
            let later = next > *stage;
            if later {
                *stage = next;
            }
            later
        });
    }

    /// Returns once `stage` or a later one is entered.
    pub(crate) async fn reached(&self, stage: Stage) {
        let mut watch = self.stage.subscribe();
        // We hold a sender, so waiting cannot fail.
        let _ = watch.wait_for(|now| *now >= stage).await;
    }

    pub(crate) fn state(&self) -> State {
        match self.stage() {
            Stage::Loading => State::Loading,
            Stage::Ready => State::Ready,
            Stage::Draining | Stage::Closing | Stage::Ending => State::Draining,
        }
    }

    /// Counts a generation until the guard is dropped.
    pub(crate) fn begin(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.in_flight))
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// One generation that is not answered to the end.
pub(crate) struct InFlight(Arc<AtomicU64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_only_move_forward_and_late_waiters_return() {
        let lifecycle = Lifecycle::new();
        lifecycle.enter(Stage::Draining);
        lifecycle.enter(Stage::Ready);
        assert_eq!(lifecycle.stage(), Stage::Draining);
        assert_eq!(lifecycle.state(), State::Draining);
        lifecycle.reached(Stage::Draining).await;
        lifecycle.reached(Stage::Ready).await;
    }
}
