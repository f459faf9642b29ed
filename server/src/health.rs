//! Whether the engines get on. An engine that has work and shows no progress for seconds is stuck: `/readyz` fails, then
//! `/livez`, and the kubelet restarts the pod (`candela_wire::health` has the numbers).
//!
//! Progress is any of the thousands of tasks of a step, so no step is too long. What is left to confuse with a stuck
//! thread is one that the machine gives no time: that time is taken off.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use candela_engine::thread_name;
use candela_wire::health::LIVE_FACTOR;
use tokio::time::{self, MissedTickBehavior};
use tracing::{error, info};

use crate::{app::App, lifecycle::Stage, loaded::Load, model::Served};

/// Between two looks. An engine's silence is counted from the look that saw its last progress.
const LOOK: Duration = Duration::from_millis(500);
/// Silence from which on it is asked whether the machine gives our threads time.
const QUIET: Duration = Duration::from_secs(1);
/// Time without a CPU counts up to this part of a silence only: a thread that spins on a full machine is stuck all the
/// same, and is found out some times later.
const MOST_STARVED: f64 = 0.9;

/// What all looks together have found.
#[derive(Default)]
pub(crate) struct Health {
    /// Of each engine that is silent, by its number: how long of that silence a thread of it waited for a CPU.
    starved: Mutex<BTreeMap<usize, Duration>>,
}

impl Health {
    fn starved(&self, engine: usize) -> Duration {
        let starved = self.starved.lock().unwrap_or_else(PoisonError::into_inner);
        starved.get(&engine).copied().unwrap_or_default()
    }
}

/// After which silence a probe fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Ready,
    Live,
}

/// Says which engine is stuck; one is enough, since a restart is what mends it.
pub(crate) fn stuck(app: &App, probe: Probe) -> Option<String> {
    let limit = match probe {
        Probe::Ready => app.limits.heartbeat,
        Probe::Live => app.limits.heartbeat * LIVE_FACTOR,
    };
    // A model of the repository that is stuck keeps no traffic from those of the configuration, but nothing short of a
    // restart ends it, also where it is being unloaded.
    let mut engines: Vec<_> = match probe {
        Probe::Ready => app.models.fixed().collect(),
        Probe::Live => Vec::new(),
    };
    if engines.is_empty() {
        engines = app.models.computing().collect();
    }
    stuck_among(app, engines, limit)
}

fn stuck_among(app: &App, engines: Vec<Arc<Served>>, limit: Duration) -> Option<String> {
    engines.into_iter().find_map(|served| {
        let load = served.loaded.load();
        let stuck = stuck_in(&load, app.health.starved(load.engine), limit)?;
        Some(format!("model `{}`: {stuck}\n", served.name))
    })
}

/// Why an engine counts as stuck. Silence while there is nothing to do is no sign of that.
fn stuck_in(load: &Load, starved: Duration, limit: Duration) -> Option<String> {
    let silence = load.heartbeat_age;
    let starved = starved.min(silence.mul_f64(MOST_STARVED));
    let idle = load.running == 0 && load.queued == 0;
    (!idle && silence - starved > limit).then(|| {
        format!(
            "the engine has got no further for {} s with {} running and {} waiting",
            silence.as_secs(),
            load.running,
            load.queued
        )
    })
}

/// Looks at the engines until the process ends; says so when one gets stuck or moves again.
pub(crate) async fn watch(app: Arc<App>) {
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut silences, mut was_stuck) = (BTreeMap::<usize, Waits>::new(), false);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = app.lifecycle.reached(Stage::Ending) => return,
        }
        let loads = app.models.computing().map(|served| served.loaded.load());
        let silent: Vec<usize> =
            loads.filter(|load| load.heartbeat_age >= QUIET).map(|load| load.engine).collect();
        silences.retain(|engine, _| silent.contains(engine));
        for engine in silent {
            silences.entry(engine).or_insert_with(|| Waits::of(engine));
        }
        let starved =
            silences.iter().map(|(engine, before)| (*engine, Waits::of(*engine).longest_since(before)));
        *app.health.starved.lock().unwrap_or_else(PoisonError::into_inner) = starved.collect();
        match (stuck_among(&app, app.models.computing().collect(), app.limits.heartbeat), was_stuck) {
            (Some(what), false) => {
                was_stuck = true;
                error!("{}: this process ends unless it comes round", what.trim());
            }
            (None, true) => {
                was_stuck = false;
                info!("the engine moves again");
            }
            _ => {}
        }
    }
}

/// Nanoseconds that each thread of an engine has waited for a CPU so far, by its id.
struct Waits(BTreeMap<String, u64>);

impl Waits {
    /// As of now; of no thread, where the kernel does not say.
    fn of(engine: usize) -> Self {
        let name = thread_name(engine);
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let waits = tasks.filter_map(|task| {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).ok();
            // Of others, that they wait says nothing of its step.
            if !read("comm")?.starts_with(&name) {
                return None;
            }
            // Time on a CPU, time of waiting for one, and times that it got one.
            let waited = read("schedstat")?.split_whitespace().nth(1)?.parse().ok()?;
            Some((task.file_name().to_string_lossy().into_owned(), waited))
        });
        Self(waits.collect())
    }

    fn longest_since(&self, before: &Self) -> Duration {
        let since =
            self.0.iter().map(|(thread, waited)| waited.saturating_sub(*before.0.get(thread)?).into());
        Duration::from_nanos(since.max().flatten().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_does_not_move_means_stuck() {
        let load = |running, queued, seconds| Load {
            engine: 1,
            running,
            queued,
            heartbeat_age: Duration::from_secs(seconds),
        };
        let (limit, fed) = (Duration::from_secs(10), Duration::ZERO);
        assert_eq!(stuck_in(&load(0, 0, 1000), fed, limit), None);
        assert_eq!(stuck_in(&load(1, 0, 9), fed, limit), None);
        assert!(stuck_in(&load(1, 0, 11), fed, limit).is_some());
        assert!(stuck_in(&load(0, 1, 11), fed, limit).is_some());
    }

    #[test]
    fn time_without_a_cpu_is_no_silence_but_not_for_ever() {
        let load =
            |seconds| Load { engine: 1, running: 1, queued: 0, heartbeat_age: Duration::from_secs(seconds) };
        let limit = Duration::from_secs(5);
        assert_eq!(stuck_in(&load(12), Duration::from_secs(8), limit), None);
        assert!(stuck_in(&load(12), Duration::from_secs(6), limit).is_some());
        assert_eq!(stuck_in(&load(49), Duration::from_secs(49), limit), None);
        assert!(stuck_in(&load(52), Duration::from_secs(52), limit).is_some());
    }

    #[test]
    fn the_kernel_says_how_long_threads_that_compute_wait() {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let computes = std::thread::Builder::new().name(format!("{}engine", thread_name(1234)));
        let computes = computes
            .spawn(move || {
                let _ = ready.send(());
                let _ = held.recv();
            })
            .unwrap();
        is_ready.recv().unwrap();
        let waits = Waits::of(1234);
        assert_eq!(waits.0.len(), 1, "/proc tells of no thread of this engine, or of others");
        assert!(Waits::of(123).0.is_empty() && Waits::of(12345).0.is_empty());
        let later = Waits(waits.0.iter().map(|(thread, waited)| (thread.clone(), waited + 5)).collect());
        assert_eq!(later.longest_since(&waits), Duration::from_nanos(5));
        assert_eq!(Waits(BTreeMap::new()).longest_since(&waits), Duration::ZERO);
        drop(release);
        computes.join().unwrap();
    }
}
