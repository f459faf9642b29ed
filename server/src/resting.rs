//! The connections of one listener and what each is doing, so that one that only rests can make room for another.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// Parts of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Accepted, and silent so far.
    Fresh,
    /// Some of a request's head has arrived.
    Head,
    /// From the end of a request's head to the end of its answer.
    Answering,
    /// Between two requests.
    Resting,
}

/// The open connections.
#[derive(Default)]
pub(crate) struct Open {
    connections: Mutex<BTreeMap<u64, Arc<Life>>>,
    next: AtomicU64,
    /// Signals that a connection began to rest.
    pub(crate) rested: Notify,
}

/// One connection.
pub(crate) struct Life {
    /// With its place in the order in which connections began to rest.
    part: Mutex<(Part, u64)>,
    close: Notify,
    /// Whether it has been told to.
    told: AtomicBool,
    open: Arc<Open>,
}

/// Holds a connection's entry until it is dropped.
pub(crate) struct Entry {
    id: u64,
    gauge: Gauge,
    pub(crate) life: Arc<Life>,
}

impl Open {
    pub(crate) fn add(self: &Arc<Self>, gauge: &Gauge) -> Entry {
        let part = Mutex::new((Part::Fresh, 0));
        let life = Arc::new(Life {
            part,
            close: Notify::new(),
            told: AtomicBool::new(false),
            open: Arc::clone(self),
        });
        let id = self.next.fetch_add(1, Relaxed);
        self.connections().insert(id, Arc::clone(&life));
        gauge.inc();
        Entry { id, gauge: gauge.clone(), life }
    }

    /// Tells the connection to close that has rested for longest and was not told before. False = there is none.
    pub(crate) fn close_longest_resting(&self) -> bool {
        let connections = self.connections();
        let resting = connections.values().filter_map(|life| match life.get() {
            (Part::Resting, since) if !life.told.load(Relaxed) => Some((since, life)),
            _ => None,
        });
        let longest = resting.min_by_key(|(since, _)| *since);
        if let Some((_, life)) = longest {
            life.told.store(true, Relaxed);
            life.close.notify_one();
        }
        longest.is_some()
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Life>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Life {
    pub(crate) fn part(&self) -> Part {
        self.get().0
    }

    pub(crate) fn enter(&self, part: Part) {
        let order = self.open.next.fetch_add(1, Relaxed);
        *self.part.lock().unwrap_or_else(PoisonError::into_inner) = (part, order);
        if part == Part::Resting {
            self.open.rested.notify_one();
        }
    }

    /// Returns when this connection is to make room.
    pub(crate) async fn told_to_close(&self) {
        self.close.notified().await;
    }

    fn get(&self) -> (Part, u64) {
        *self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.life.open.connections().remove(&self.id);
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_one_that_rests_longest_makes_room_and_busy_ones_never() {
        let (open, gauge) = (Arc::new(Open::default()), Gauge::default());
        let [first, second, busy] = [0; 3].map(|_| open.add(&gauge));
        busy.life.enter(Part::Answering);
        assert!(!open.close_longest_resting());
        second.life.enter(Part::Resting);
        first.life.enter(Part::Resting);
        assert!(open.close_longest_resting());
        assert!(second.life.told_to_close().now_or_never().is_some());
        assert!(open.close_longest_resting(), "who does not go when told holds up nobody");
        assert!(!open.close_longest_resting());
        drop(second);
        assert!(first.life.told_to_close().now_or_never().is_some());
        assert!(busy.life.told_to_close().now_or_never().is_none());
        drop((first, busy));
        assert_eq!(gauge.get(), 0);
    }
}
