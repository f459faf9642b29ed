//! What happens to models that are loaded and unloaded while the server runs, as a pure state machine: events in,
//! actions out. It knows no files, threads or engines.
//!
//! Memory counts from the moment when a load may begin to take it until an unloaded model has given all of it back, so the
//! sum never passes the budget. Loads begin in the order in which they were asked for.

mod room;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use room::Room;

/// One version of one model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) name: Arc<str>,
    pub(crate) version: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.name, self.version)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Not loaded.
    Unavailable,
    /// Being loaded, or waiting for its turn or for memory.
    Loading,
    Ready,
    /// Answers what it has begun, then it is unloaded.
    Draining,
    Failed,
}

impl State {
    pub(crate) const ALL: [Self; 5] =
        [Self::Unavailable, Self::Loading, Self::Ready, Self::Draining, Self::Failed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "Unavailable",
            Self::Loading => "Loading",
            Self::Ready => "Ready",
            Self::Draining => "Draining",
            Self::Failed => "Failed",
        }
    }
}

/// What is known of requests.
pub(super) trait Usage {
    fn is_in_use(&self, key: &Key) -> bool;
    /// Grows with each use; the least recently used model goes first.
    fn last_used(&self, key: &Key) -> u64;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody wants it.
    Load(Key),
    /// Nobody wants it any more.
    Unload(Key),
    /// A load under way is done; with what it takes.
    Loaded { key: Key, bytes: u64 },
    /// A load under way found that its limit is too low, and took nothing.
    Needs { key: Key, bytes: u64 },
    /// A load under way failed and gave everything back.
    Failed { key: Key, reason: String },
    /// A drain is over and the memory given back.
    Drained(Key),
    /// A load under way has got no further for a while: others do not wait for it.
    Quiet(Key),
    /// It has got no further for so long that nobody should count on it.
    Stalled { key: Key, reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Load it in at most so many bytes; `None` = no bound.
    Load { key: Key, limit: Option<u64> },
    /// Let nobody in, wait for those inside, end it.
    Drain(Key),
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) state: State,
    /// Why it is in this state; empty where that says everything.
    pub(super) reason: String,
    /// What it takes, or may take while it is loaded.
    pub(super) bytes: u64,
    under_way: bool,
    /// It gets no further, and may never end.
    quiet: bool,
    /// Known after a first attempt with too little.
    needs: Option<u64>,
    /// Of the load under way.
    limit: Option<u64>,
    /// What was asked for while it could not be done.
    next: Option<Next>,
}

impl Model {
    /// Under way, and to be counted on.
    fn is_loading(&self) -> bool {
        self.under_way && !self.quiet
    }
}

/// Loads that get no further and hold a thread, beyond those that may run at the same time.
const QUIET_AT_MOST: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Load,
    Unload,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) loaded: u64,
    pub(super) failed: u64,
    pub(super) unloaded: u64,
    /// Unloaded to make room.
    pub(super) evicted: u64,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Machine {
    budget: Option<u64>,
    at_once: usize,
    models: BTreeMap<Key, Model>,
    /// Wait for their turn.
    queue: VecDeque<Key>,
    pub(super) counts: Counts,
}

impl Machine {
    /// `budget` in bytes, for all models together; `at_once` loads at the same time.
    pub(super) fn new(budget: Option<u64>, at_once: usize) -> Self {
        let (models, queue) = (BTreeMap::new(), VecDeque::new());
        Self { budget, at_once: at_once.max(1), models, queue, counts: Counts::default() }
    }

    /// Before the first load.
    pub(super) fn set_budget(&mut self, budget: Option<u64>) {
        self.budget = budget;
    }

    pub(super) fn models(&self) -> impl Iterator<Item = (&Key, &Model)> {
        self.models.iter()
    }

    #[cfg(test)]
    fn state(&self, key: &Key) -> State {
        self.models.get(key).map_or(State::Unavailable, |model| model.state)
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.models.values().fold(0, |sum, model| sum.saturating_add(model.bytes))
    }

    /// Forgets what is not loaded and not among `known`: its folder is gone.
    pub(super) fn forget_others(&mut self, known: &dyn Fn(&Key) -> bool) {
        self.models
            .retain(|key, model| known(key) || !matches!(model.state, State::Unavailable | State::Failed));
    }

    pub(super) fn step(&mut self, event: Event, usage: &dyn Usage) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Load(key) => self.load(key),
            Event::Unload(key) => self.unload(&key, &mut actions),
            Event::Loaded { key, bytes } => self.loaded(&key, bytes, &mut actions),
            Event::Needs { key, bytes } => self.needs(key, bytes),
            Event::Failed { key, reason } => {
                if self.ended(&key).is_some() {
                    self.failed(&key, reason);
                }
            }
            Event::Drained(key) => self.drained(key),
            Event::Quiet(key) => {
                if let Some(model) = self.models.get_mut(&key).filter(|model| model.under_way) {
                    model.quiet = true;
                }
            }
            Event::Stalled { key, reason } => {
                if let Some(model) = self.models.get_mut(&key).filter(|model| model.under_way) {
                    // Its memory still counts; when it comes round, it is ready.
                    (model.quiet, model.state, model.reason) = (true, State::Failed, reason);
                }
            }
        }
        self.begin(usage, &mut actions);
        actions
    }

    fn load(&mut self, key: Key) {
        let model = self.models.entry(key.clone()).or_insert_with(|| Model {
            state: State::Unavailable,
            reason: String::new(),
            bytes: 0,
            under_way: false,
            quiet: false,
            needs: None,
            limit: None,
            next: None,
        });
        match model.state {
            State::Ready => {}
            State::Loading => model.next = None,
            State::Draining => model.next = Some(Next::Load),
            // Stalled. There is a thread at it still.
            _ if model.under_way => model.next = None,
            State::Unavailable | State::Failed => {
                (model.state, model.needs) = (State::Loading, None);
                model.reason = "waits for its turn".to_owned();
                self.queue.push_back(key);
            }
        }
    }

    fn unload(&mut self, key: &Key, actions: &mut Vec<Action>) {
        let Some(model) = self.models.get_mut(key) else { return };
        match model.state {
            State::Ready => {
                self.counts.unloaded += 1;
                Self::drain(key, model, "unloaded", actions);
            }
            State::Loading | State::Failed if model.under_way => model.next = Some(Next::Unload),
            State::Loading => {
                self.queue.retain(|queued| queued != key);
                (model.state, model.reason) = (State::Unavailable, "unloaded".to_owned());
            }
            State::Draining => model.next = None,
            State::Failed => (model.state, model.reason) = (State::Unavailable, "unloaded".to_owned()),
            State::Unavailable => {}
        }
    }

    fn drain(key: &Key, model: &mut Model, reason: &str, actions: &mut Vec<Action>) {
        (model.state, model.reason, model.next) = (State::Draining, reason.to_owned(), None);
        actions.push(Action::Drain(key.clone()));
    }

    /// The load under way is over; `None` = there is none, and nothing is to be done.
    fn ended(&mut self, key: &Key) -> Option<&mut Model> {
        let model = self.models.get_mut(key).filter(|model| model.under_way)?;
        (model.under_way, model.quiet) = (false, false);
        Some(model)
    }

    fn loaded(&mut self, key: &Key, bytes: u64, actions: &mut Vec<Action>) {
        let Some(model) = self.ended(key) else { return };
        model.bytes = bytes;
        let unwanted = model.next.take() == Some(Next::Unload);
        (model.state, model.reason) = (State::Ready, String::new());
        self.counts.loaded += 1;
        if unwanted {
            self.unload(key, actions);
        }
    }

    fn needs(&mut self, key: Key, bytes: u64) {
        let Some(model) = self.ended(&key) else { return };
        model.bytes = 0;
        if model.next == Some(Next::Unload) {
            (model.state, model.reason, model.next) = (State::Unavailable, "unloaded".to_owned(), None);
            return;
        }
        if model.limit.is_none_or(|limit| bytes <= limit) {
            // Else it would go on like this for ever.
            let reason = format!("it needs {bytes} bytes, and refuses to be loaded in more");
            return self.failed(&key, reason);
        }
        (model.state, model.needs) = (State::Loading, Some(bytes));
        model.reason = format!("waits for {bytes} bytes of memory");
        // It had its turn already.
        self.queue.push_front(key);
    }

    fn failed(&mut self, key: &Key, reason: String) {
        let Some(model) = self.models.get_mut(key) else { return };
        model.bytes = 0;
        self.counts.failed += 1;
        (model.state, model.reason) = match model.next.take() {
            Some(Next::Unload) => (State::Unavailable, "unloaded".to_owned()),
            _ => (State::Failed, reason),
        };
    }

    fn drained(&mut self, key: Key) {
        let Some(model) = self.models.get_mut(&key) else { return };
        if model.state != State::Draining {
            return;
        }
        (model.state, model.bytes) = (State::Unavailable, 0);
        if model.next.take() == Some(Next::Load) {
            self.load(key);
        }
    }

    /// Begins what waits and has room.
    fn begin(&mut self, usage: &dyn Usage, actions: &mut Vec<Action>) {
        let count = |models: &BTreeMap<Key, Model>, of: &dyn Fn(&Model) -> bool| {
            models.values().filter(|model| of(model)).count()
        };
        while count(&self.models, &Model::is_loading) < self.at_once
            && count(&self.models, &|model| model.under_way) < self.at_once + QUIET_AT_MOST
        {
            let Some(key) = self.queue.front().cloned() else { return };
            match self.room(&key, usage) {
                Room::Later(evicted) => {
                    for other in evicted {
                        if let Some(model) = self.models.get_mut(&other) {
                            self.counts.evicted += 1;
                            Self::drain(
                                &other,
                                model,
                                &format!("unloaded to make room for `{key}`"),
                                actions,
                            );
                        }
                    }
                    // Those behind it wait as well: they would take its room.
                    return;
                }
                Room::Now(limit) => {
                    self.queue.pop_front();
                    if let Some(model) = self.models.get_mut(&key) {
                        (model.under_way, model.limit) = (true, limit);
                        model.bytes = limit.unwrap_or(0);
                        model.reason = String::new();
                    }
                    actions.push(Action::Load { key, limit });
                }
                Room::Never(reason) => {
                    self.queue.pop_front();
                    self.failed(&key, reason);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
