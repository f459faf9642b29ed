//! Delays between attempts. The only retry layer of the operator: the client below never repeats a call.

use std::{collections::HashMap, hash::Hash};

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Duration;

/// How a failed attempt is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The cache was behind: look again at once. Repeated conflicts slow down too.
    Soon,
    /// The object itself, or what the API server thinks of it: 1 s doubling to 5 min.
    Backoff,
    /// The API server as a whole: 1 s doubling to 20 s, so that everything is back soon after an outage.
    Outage,
    /// Nothing will change until the object does.
    OnChange,
}

const SOON: Duration = Duration::from_millis(100);
const FIRST: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(300);
const MAX_OUTAGE: Duration = Duration::from_secs(20);
/// So many conflicts in a row are no longer a late cache.
const SOON_ATTEMPTS: u32 = 5;

/// Attempts that failed in a row, per key.
#[derive(Debug)]
pub struct Backoff<K> {
    failures: Mutex<HashMap<K, u32>>,
}

impl<K: Eq + Hash> Default for Backoff<K> {
    fn default() -> Self {
        Self { failures: Mutex::default() }
    }
}

impl<K: Eq + Hash> Backoff<K> {
    /// Delay before the next attempt, or `None` to wait for a change. `at_least` is what the server asked for.
    pub fn after_failure(&self, key: K, retry: Retry, at_least: Option<Duration>) -> Option<Duration> {
        let mut failures = self.failures.lock();
        let n_failures = failures.entry(key).or_insert(0);
        *n_failures = n_failures.saturating_add(1);
        let delay = match retry {
            Retry::OnChange => return None,
            Retry::Soon if *n_failures <= SOON_ATTEMPTS => SOON,
            Retry::Soon => doubled(*n_failures - SOON_ATTEMPTS, MAX_OUTAGE),
            Retry::Backoff => doubled(*n_failures, MAX_BACKOFF),
            Retry::Outage => doubled(*n_failures, MAX_OUTAGE),
        };
        Some(jittered(delay).max(at_least.unwrap_or(Duration::ZERO).min(MAX_BACKOFF)))
    }

    /// After a success, and when the object is gone.
    pub fn reset(&self, key: &K) {
        self.failures.lock().remove(key);
    }

    /// How often this key failed in a row.
    pub fn n_failures(&self, key: &K) -> u32 {
        self.failures.lock().get(key).copied().unwrap_or(0)
    }

    /// Keys that are failing now.
    pub fn failing(&self) -> usize {
        self.failures.lock().len()
    }
}

/// 1 s for the first failure, then doubling up to `max`.
pub(crate) fn doubled(n_failures: u32, max: Duration) -> Duration {
    let exponent = n_failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << exponent).min(max)
}

/// Between 75 % and 125 %, so that what failed together does not come back together.
pub(crate) fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(delay: Option<Duration>) -> f64 {
        delay.expect("a delay").as_secs_f64()
    }

    #[test]
    fn doubles_to_five_minutes_and_starts_over_after_a_success() {
        let backoff = Backoff::default();
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0] {
            let got = secs(backoff.after_failure("a", Retry::Backoff, None));
            assert!((0.75 * expected..=1.25 * expected).contains(&got), "{got} s, wanted about {expected} s");
        }
        backoff.reset(&"a");
        assert!(secs(backoff.after_failure("a", Retry::Backoff, None)) <= 1.25);
        assert_eq!(backoff.failing(), 1);
    }

    #[test]
    fn conflicts_are_looked_at_again_at_once_but_not_for_ever() {
        let backoff = Backoff::default();
        for _ in 0..SOON_ATTEMPTS {
            assert!(secs(backoff.after_failure("a", Retry::Soon, None)) < 0.2);
        }
        assert!(secs(backoff.after_failure("a", Retry::Soon, None)) >= 0.75);
    }

    #[test]
    fn the_server_may_ask_for_more_and_outages_are_capped() {
        let backoff = Backoff::default();
        assert!(secs(backoff.after_failure("a", Retry::Outage, Some(Duration::from_secs(30)))) >= 30.0);
        for _ in 0..20 {
            assert!(secs(backoff.after_failure("a", Retry::Outage, None)) <= 25.0);
        }
        assert_eq!(backoff.after_failure("a", Retry::OnChange, None), None);
    }
}
