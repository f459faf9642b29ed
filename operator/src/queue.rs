//! A work queue of keys, in the manner of client-go: a key waits at most once, is never worked on twice at the same
//! time, and one that is added while it is worked on comes again afterwards. Delayed keys wake by the tokio clock.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// What is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Changes that somebody made or waits for.
    Normal,
    /// The sweep over everything after a start or a relist; must not delay an edit.
    Sweep,
}

/// See the module.
#[derive(Debug)]
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner<K> {
    normal: VecDeque<K>,
    sweep: VecDeque<K>,
    /// Waiting in one of the two, and where.
    waiting: HashMap<K, Priority>,
    running: HashMap<K, Instant>,
    /// Added while running.
    again: HashSet<K>,
    timers: BTreeSet<(Instant, u64)>,
    by_timer: HashMap<u64, K>,
    timer_of: HashMap<K, (Instant, u64)>,
    next_timer: u64,
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        let inner = Inner {
            normal: VecDeque::new(),
            sweep: VecDeque::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            again: HashSet::new(),
            timers: BTreeSet::new(),
            by_timer: HashMap::new(),
            timer_of: HashMap::new(),
            next_timer: 0,
        };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// As soon as possible.
    pub fn add(&self, key: K, priority: Priority) {
        self.inner.lock().push(key, priority);
        self.changed.notify_one();
    }

    /// Not before `when`, unless it is added otherwise; an earlier timer of the same key stays.
    pub fn add_at(&self, key: K, when: Instant) {
        let mut inner = self.inner.lock();
        if let Some(&timer) = inner.timer_of.get(&key) {
            if timer.0 <= when {
                return;
            }
            inner.drop_timer(&key);
        }
        let timer = (when, inner.next_timer);
        inner.next_timer += 1;
        inner.timers.insert(timer);
        inner.by_timer.insert(timer.1, key.clone());
        inner.timer_of.insert(key, timer);
        drop(inner);
        self.changed.notify_one();
    }

    /// Forgets a key that is gone: nobody need work on it, now or later.
    pub fn forget(&self, key: &K) {
        let mut inner = self.inner.lock();
        inner.drop_timer(key);
        if inner.waiting.remove(key).is_some() {
            inner.normal.retain(|other| other != key);
            inner.sweep.retain(|other| other != key);
        }
    }

    /// The next key; marks it as running until [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let sleep_until = {
                let mut inner = self.inner.lock();
                inner.fire_timers(Instant::now());
                if let Some(key) = inner.pop() {
                    // Another worker may be waiting for the rest.
                    if !inner.waiting.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                inner.timers.first().map(|timer| timer.0)
            };
            match sleep_until {
                None => changed.await,
                Some(when) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(when) => {}
                },
            }
        }
    }

    /// The work on a key has ended, well or not.
    pub fn done(&self, key: &K) {
        let mut inner = self.inner.lock();
        inner.running.remove(key);
        if inner.again.remove(key) {
            inner.push(key.clone(), Priority::Normal);
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Nothing waits and nothing runs; timers may be set.
    pub fn is_idle(&self) -> bool {
        let inner = self.inner.lock();
        inner.waiting.is_empty() && inner.running.is_empty()
    }

    /// Keys that wait, timers not counted.
    pub fn depth(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// Since when the longest-running key runs.
    pub fn oldest_running(&self) -> Option<Instant> {
        self.inner.lock().running.values().min().copied()
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    fn push(&mut self, key: K, priority: Priority) {
        if self.running.contains_key(&key) {
            self.again.insert(key);
            return;
        }
        match self.waiting.get(&key) {
            Some(&present) if present <= priority => return,
            Some(_) => self.sweep.retain(|other| other != &key),
            None => {}
        }
        self.waiting.insert(key.clone(), priority);
        match priority {
            Priority::Normal => self.normal.push_back(key),
            Priority::Sweep => self.sweep.push_back(key),
        }
    }

    fn pop(&mut self) -> Option<K> {
        let key = self.normal.pop_front().or_else(|| self.sweep.pop_front())?;
        self.waiting.remove(&key);
        // A pass decides anew when it wants to be called again.
        self.drop_timer(&key);
        self.running.insert(key.clone(), Instant::now());
        Some(key)
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(&timer) = self.timers.first() {
            if timer.0 > now {
                break;
            }
            self.timers.remove(&timer);
            if let Some(key) = self.by_timer.remove(&timer.1) {
                self.timer_of.remove(&key);
                self.push(key, Priority::Normal);
            }
        }
    }

    fn drop_timer(&mut self, key: &K) {
        if let Some(timer) = self.timer_of.remove(key) {
            self.timers.remove(&timer);
            self.by_timer.remove(&timer.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_runs_once_at_a_time_and_again_when_added_meanwhile() {
        let queue = Queue::default();
        queue.add("a", Priority::Normal);
        queue.add("a", Priority::Normal);
        assert_eq!(queue.next().await, "a");
        queue.add("a", Priority::Normal);
        let early = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(early.is_err(), "handed out twice at the same time");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn edits_overtake_the_sweep() {
        let queue = Queue::default();
        for key in ["a", "b", "c"] {
            queue.add(key, Priority::Sweep);
        }
        queue.add("c", Priority::Normal);
        assert_eq!(queue.next().await, "c");
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.depth(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn timers_wake_exactly_on_time_and_the_earlier_wins() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_at("late", start + Duration::from_secs(60));
        queue.add_at("late", start + Duration::from_secs(10));
        queue.add_at("late", start + Duration::from_secs(30));
        assert_eq!(queue.next().await, "late");
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        queue.done(&"late");
        queue.add_at("gone", Instant::now() + Duration::from_secs(5));
        queue.forget(&"gone");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }
}
