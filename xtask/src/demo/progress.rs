//! Waiting that a person can watch: one line per change, with the time since the start.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::say;

const PERIOD: Duration = Duration::from_millis(250);

pub(super) struct Progress {
    started: Instant,
    deadline: Duration,
    /// What was last said of each subject.
    shown: BTreeMap<String, String>,
}

impl Progress {
    pub(super) fn new(deadline: Duration) -> Self {
        Self { started: Instant::now(), deadline, shown: BTreeMap::new() }
    }

    /// Prints if it differs from what was last said of the subject.
    pub(super) fn show(&mut self, subject: &str, state: &str) -> Result<()> {
        if self.shown.get(subject).is_none_or(|last| last != state) {
            say(&format!("   {:>5.1} s  {subject}: {state}\n", self.started.elapsed().as_secs_f64()))?;
            self.shown.insert(subject.to_owned(), state.to_owned());
        }
        Ok(())
    }

    /// Until the next look; fails past the deadline with what was last said.
    pub(super) fn wait(&self, failure: &str) -> Result<()> {
        if self.started.elapsed() > self.deadline {
            let last: Vec<_> =
                self.shown.iter().map(|(subject, state)| format!("{subject}: {state}")).collect();
            bail!("{failure} within {} s; last seen: {}", self.deadline.as_secs(), last.join("; "));
        }
        thread::sleep(PERIOD);
        Ok(())
    }

    pub(super) fn done(&self) -> Result<()> {
        say(&format!("   done in {:.1} s\n", self.started.elapsed().as_secs_f64()))
    }
}
