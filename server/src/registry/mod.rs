//! The models of one process: those of its configuration, loaded at the start and kept, and those of a repository, loaded
//! and unloaded while it runs.
//!
//! Requests read a snapshot and take a lease of what they find there. Who loads or unloads works on a thread of its own,
//! by the orders of a pure state machine, and publishes the next snapshot.

mod choice;
mod fixed;
mod lease;
mod looker;
mod machine;
mod metrics;
mod options;
mod repository;
mod settings;
mod snapshot;
mod verbs;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use candela_engine::EngineConfig;
use candela_wire::{config::ServerConfig, internal::RepositoryModel, openai::Model};
use tokio::sync::watch;

pub(crate) use choice::{Chosen, name_in};
pub(crate) use lease::{Hold, Lease, Uses};
use looker::Looker;
use machine::{Action, Counts, Event, Key, Machine, State, Usage};
pub(crate) use metrics::RegistryMetrics;
pub use options::{Alias, Control, RegistryOptions};
use repository::Repository;
pub(crate) use snapshot::{Entry, Snapshot};
pub(crate) use verbs::Indexed;
use work::Work;

use crate::{Fatal, api::ApiError, model::Served};

/// Loads of the repository's models at the same time, besides those that get no further.
const LOADS_AT_ONCE: usize = 2;

/// A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    options: RegistryOptions,
    repository: Option<Repository>,
    looker: Option<Looker>,
    /// Of a load without progress, from when on it counts as failed.
    stall: Duration,
    engine: EngineConfig,
    models_dir: PathBuf,
    aliases: Arc<BTreeMap<String, String>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    /// Held for moments only, by those who load and unload.
    book: Mutex<Book>,
    metrics: RegistryMetrics,
}

/// What the next snapshot is made from.
struct Book {
    machine: Machine,
    fixed: Vec<Entry>,
    loaded: BTreeMap<Key, Vec<Arc<Served>>>,
    /// What nobody can reach any more and still computes.
    draining: BTreeMap<Key, Vec<Arc<Served>>>,
    /// Versions that the last scan found.
    found: BTreeSet<Key>,
    refused: BTreeMap<String, String>,
    since: BTreeMap<Key, (State, SystemTime)>,
    /// The models of the configuration are loaded, and what they leave is known.
    begun: bool,
}

/// The requests at models that are loaded.
struct Requests<'a>(&'a BTreeMap<Key, Vec<Arc<Served>>>);

impl Usage for Requests<'_> {
    fn is_in_use(&self, key: &Key) -> bool {
        self.0.get(key).into_iter().flatten().any(|served| {
            let load = served.loaded.load();
            served.uses.count() > 0 || load.running > 0 || load.queued > 0
        })
    }

    fn last_used(&self, key: &Key) -> u64 {
        self.0.get(key).into_iter().flatten().map(|served| served.uses.last()).max().unwrap_or(0)
    }
}

/// Why a name leads to no model that answers.
pub(crate) enum Missing {
    /// There is none of this name.
    Unknown,
    /// It is there, and not ready.
    NotReady { key: Key, state: State, reason: String },
}

impl Registry {
    /// `engine` is what engines of the repository's models have in common.
    pub(crate) fn new(
        config: &ServerConfig,
        options: RegistryOptions,
        models_dir: PathBuf,
        engine: EngineConfig,
        metrics: RegistryMetrics,
    ) -> Result<Self, Fatal> {
        options.check(config, &engine)?;
        let repository = options.repository.as_ref().map(|root| {
            Repository::open(root)
                .map_err(|err| Fatal::config(format!("`--model-repository {}`: {err}", root.display())))
        });
        let fixed = config.models.iter().map(|model| Entry {
            key: Key { name: model.served_name.as_str().into(), version: 1 },
            state: State::Loading,
            reason: String::new(),
            since: SystemTime::now(),
            bytes: 0,
            fixed: true,
            served: Vec::new(),
        });
        let aliases = options.aliases.iter().map(|Alias { name, of }| (name.clone(), of.clone()));
        let repository = repository.transpose()?;
        let looker = repository.as_ref().map(Looker::new).transpose().map_err(|err| {
            Fatal::config(format!("no thread can be started to look at the model repository: {err}"))
        })?;
        let inner = Inner {
            repository,
            looker,
            stall: Duration::from_secs(config.startup_stall_seconds.into()),
            aliases: Arc::new(aliases.collect()),
            snapshot: watch::Sender::new(Arc::default()),
            book: Mutex::new(Book {
                // Nothing is loaded before the models of the configuration are.
                machine: Machine::new(Some(0), LOADS_AT_ONCE),
                fixed: fixed.collect(),
                loaded: BTreeMap::new(),
                draining: BTreeMap::new(),
                found: BTreeSet::new(),
                refused: BTreeMap::new(),
                since: BTreeMap::new(),
                begun: false,
            }),
            options,
            engine,
            models_dir,
            metrics,
        };
        inner.publish(&mut inner.book());
        Ok(Self(Arc::new(inner)))
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.snapshot.borrow())
    }

    /// Each engine that answers, those of the configuration first.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = Arc<Served>> {
        let engines: Vec<_> = self.snapshot().engines().cloned().collect();
        engines.into_iter()
    }

    /// Each engine that computes: those that answer, and those that are being unloaded.
    pub(crate) fn computing(&self) -> impl Iterator<Item = Arc<Served>> {
        let snapshot = self.snapshot();
        let engines: Vec<_> = snapshot.engines().chain(&snapshot.draining).cloned().collect();
        engines.into_iter()
    }

    /// The models of the configuration that are loaded; all of them when the process is ready.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = Arc<Served>> {
        let fixed: Vec<_> = self.snapshot().fixed.iter().flat_map(|entry| entry.served.clone()).collect();
        fixed.into_iter()
    }

    pub(crate) fn are_all_loaded(&self) -> bool {
        self.snapshot().begun
    }

    /// The model that is called `asked`, in this version if one is given.
    pub(crate) fn get(&self, asked: &str, version: Option<u64>) -> Result<Lease, Missing> {
        let snapshot = self.snapshot();
        let entry = snapshot.find(asked, version).ok_or(Missing::Unknown)?;
        entry.lease().ok_or_else(|| Missing::NotReady {
            key: entry.key.clone(),
            state: if entry.served.is_empty() { entry.state } else { State::Draining },
            reason: entry.reason.clone(),
        })
    }

    /// As [`Registry::get`], with what a client is told otherwise.
    pub(crate) fn named(&self, asked: &str, version: Option<u64>) -> Result<Lease, ApiError> {
        self.get(asked, version).map_err(|missing| self.refusal(asked, version, missing))
    }

    pub(super) fn refusal(&self, asked: &str, version: Option<u64>, missing: Missing) -> ApiError {
        let snapshot = self.snapshot();
        match missing {
            Missing::Unknown => {
                let mut asked: String = asked.chars().take(100).collect();
                if let Some(why) = snapshot.refused.get(&asked) {
                    return ApiError::Unavailable { model: asked, why: why.clone(), passes: false };
                }
                if let Some(version) = version {
                    asked = format!("{asked} in version {version}");
                }
                ApiError::NoSuchModel { asked, served: snapshot.names() }
            }
            Missing::NotReady { state: State::Loading, .. } => ApiError::Loading { phase: "Load" },
            Missing::NotReady { key, state, reason } => {
                let mut why = match state {
                    State::Draining => "it is being unloaded".to_owned(),
                    State::Failed => "it could not be loaded".to_owned(),
                    _ => "it is not loaded".to_owned(),
                };
                if !reason.is_empty() && state != State::Unavailable {
                    why = format!("{why}: {reason}");
                }
                ApiError::Unavailable { model: key.to_string(), why, passes: state != State::Failed }
            }
        }
    }

    /// Versions of this model that answer, as text.
    pub(crate) fn versions(&self, served: &Served) -> Vec<String> {
        let snapshot = self.snapshot();
        let ready =
            snapshot.entries().filter(|entry| *entry.key.name == *served.name && !entry.served.is_empty());
        ready.map(|entry| entry.key.version.to_string()).collect()
    }

    /// For `/v1/models`.
    pub(crate) fn listed(&self) -> Vec<Model> {
        self.snapshot().listed()
    }

    pub(crate) fn names(&self) -> String {
        self.snapshot().names()
    }

    /// What the status says of each model, those of the repository included.
    pub(crate) fn status(&self) -> Vec<RepositoryModel> {
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let of = |entry: &Entry| RepositoryModel {
            name: entry.key.name.to_string(),
            version: entry.key.version,
            state: entry.state.name().to_owned(),
            reason: entry.reason.clone(),
            since_unix_seconds: seconds(entry.since),
            memory_bytes: entry.bytes,
            instances: entry.served.len(),
        };
        self.snapshot().entries().map(of).collect()
    }
}

impl Inner {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic ends the process.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other names of a model.
    fn aliases_of(&self, key: &Key) -> Vec<String> {
        let (name, versioned) = (&*key.name, key.to_string());
        let of = self.aliases.iter().filter(|(_, of)| **of == name || **of == versioned);
        of.map(|(alias, _)| alias.clone()).collect()
    }

    /// Tells the machine, and does what it says.
    fn apply(self: &Arc<Self>, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut book = self.book();
            let work = book.step(event);
            self.publish(&mut book);
            drop(book);
            for work in work {
                events.extend(work.start(self).err());
            }
        }
    }

    /// A load is done.
    fn arrived(self: &Arc<Self>, key: Key, served: Vec<Served>) {
        let bytes = served.iter().map(|served| served.loaded.facts().memory.total_bytes()).sum();
        let served: Vec<_> = served.into_iter().map(Arc::new).collect();
        self.book().loaded.insert(key.clone(), served);
        self.apply(Event::Loaded { key, bytes });
    }

    fn publish(&self, book: &mut Book) {
        let snapshot = book.snapshot(&self.aliases, self.options.control == Control::OnDemand);
        self.metrics.see(&snapshot, book.counts(), book.machine.used_bytes());
        self.snapshot.send_replace(Arc::new(snapshot));
    }
}

impl Book {
    fn step(&mut self, event: Event) -> Vec<Work> {
        if let Event::Drained(key) = &event {
            self.draining.remove(key);
        }
        let actions = self.machine.step(event, &Requests(&self.loaded));
        let work = actions.into_iter().map(|action| match action {
            Action::Load { key, limit } => Work::Load { key, limit },
            Action::Drain(key) => {
                let served = self.loaded.remove(&key).unwrap_or_default();
                served.iter().for_each(|served| served.uses.close());
                self.draining.insert(key.clone(), served.clone());
                Work::Drain { key, served }
            }
        });
        work.collect()
    }

    fn counts(&self) -> Counts {
        self.machine.counts
    }

    fn snapshot(&mut self, aliases: &Arc<BTreeMap<String, String>>, on_demand: bool) -> Snapshot {
        let mut others = BTreeMap::new();
        let known = self
            .machine
            .models()
            .map(|(key, model)| (key.clone(), (model.state, model.reason.clone(), model.bytes)));
        let mut all: BTreeMap<Key, _> = known.collect();
        for key in &self.found {
            let unloaded = || (State::Unavailable, "not loaded".to_owned(), 0);
            all.entry(key.clone()).or_insert_with(unloaded);
        }
        self.since.retain(|key, _| all.contains_key(key));
        for (key, (state, reason, bytes)) in all {
            let since = self.since.entry(key.clone()).or_insert_with(|| (state, SystemTime::now()));
            if since.0 != state {
                *since = (state, SystemTime::now());
            }
            let served = match state {
                State::Ready => self.loaded.get(&key).cloned().unwrap_or_default(),
                _ => Vec::new(),
            };
            let entry =
                Entry { key: key.clone(), state, reason, since: since.1, bytes, fixed: false, served };
            others.insert(key, entry);
        }
        Snapshot {
            fixed: self.fixed.clone(),
            others,
            draining: self.draining.values().flatten().cloned().collect(),
            refused: self.refused.clone(),
            begun: self.begun,
            on_demand,
            aliases: Arc::clone(aliases),
        }
    }
}
