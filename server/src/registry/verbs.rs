//! Index, load and unload, and loading on demand: for routes. Nothing here blocks a thread of the runtime for longer than
//! a few assignments.

use std::{
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use candela_wire::openai::InvalidField;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::{
    Control, Lease, Missing, Registry,
    machine::{Event, Key, State},
    repository::{Folder, Refusal, Repository},
    snapshot::{Snapshot, versioned},
};
use crate::{api::ApiError, lifecycle::Stage};

/// A request does not try a model again that failed so recently.
const AGAIN: Duration = Duration::from_secs(10);

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) name: String,
    /// Empty for a folder that has no usable version.
    pub(crate) version: String,
    /// As Triton says it: `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
    pub(crate) state: &'static str,
    /// Empty where the state says everything.
    pub(crate) reason: String,
}

impl Registry {
    /// Every model of the configuration and of the repository, as the folder is now. `stage` is that of the process.
    ///
    /// # Errors
    /// Too many ask at the same time.
    pub(crate) async fn index(&self, stage: Stage) -> Result<Vec<Indexed>, ApiError> {
        if let Some(looker) = &self.0.looker {
            looker.all(self.clone()).await?;
        }
        let snapshot = self.snapshot();
        let going = stage >= Stage::Draining;
        let of = |entry: &super::Entry| {
            let (state, reason) = match entry.state {
                State::Ready if going => ("UNLOADING", "the server is shutting down"),
                State::Ready => ("READY", entry.reason.as_str()),
                State::Loading => ("LOADING", entry.reason.as_str()),
                State::Draining => ("UNLOADING", entry.reason.as_str()),
                State::Unavailable | State::Failed => ("UNAVAILABLE", entry.reason.as_str()),
            };
            let (name, version) = (entry.key.name.to_string(), entry.key.version.to_string());
            Indexed { name, version, state, reason: reason.to_owned() }
        };
        let refused = snapshot.refused.iter().map(|(name, why)| Indexed {
            name: name.clone(),
            version: String::new(),
            state: "UNAVAILABLE",
            reason: why.clone(),
        });
        Ok(snapshot.entries().map(of).chain(refused).collect())
    }

    /// Loads the versions that the model's policy chooses and unloads others; returns when they are ready.
    ///
    /// # Errors
    /// What the client is to do about it; [`ApiError::Loading`] = `patience` came first, and the load goes on.
    pub(crate) async fn load(&self, name: &str, patience: Duration) -> Result<(), ApiError> {
        self.check_verb("load", name)?;
        let folder = self.folder(name).await?.map_err(|refusal| self.refused(name, refusal))?;
        let keys: Vec<Key> =
            folder.wanted.iter().map(|version| Key { name: name.into(), version: *version }).collect();
        for key in &keys {
            self.0.apply(Event::Load(key.clone()));
        }
        let snapshot = self.settled(&keys, Instant::now() + patience).await;
        for key in &keys {
            let entry = snapshot.others.get(key);
            let state = entry.map_or(State::Unavailable, |entry| entry.state);
            if state != State::Ready {
                let reason = entry.map(|entry| entry.reason.clone()).unwrap_or_default();
                let missing = Missing::NotReady { key: key.clone(), state, reason };
                return Err(self.refusal(name, None, missing));
            }
        }
        for entry in snapshot.versions(name).filter(|entry| !keys.contains(&entry.key)) {
            self.0.apply(Event::Unload(entry.key.clone()));
        }
        Ok(())
    }

    /// Lets no new requests in to any version and returns; those inside end first.
    pub(crate) fn unload(&self, name: &str) -> Result<(), ApiError> {
        self.check_verb("unload", name)?;
        let snapshot = self.snapshot();
        let mut versions = snapshot.versions(name).peekable();
        if versions.peek().is_none() {
            return Err(self.refusal(name, None, Missing::Unknown));
        }
        for entry in versions {
            self.0.apply(Event::Unload(entry.key.clone()));
        }
        Ok(())
    }

    fn check_verb(&self, verb: &str, name: &str) -> Result<(), ApiError> {
        let refuse = |what: String| Err(ApiError::Invalid(InvalidField::unsupported("model_name", what)));
        let shown: String = name.chars().take(100).collect();
        if self.snapshot().fixed.iter().any(|entry| &*entry.key.name == name) {
            return refuse(format!(
                "cannot {verb} `{shown}`: it is a model of this server's configuration, which is loaded from start to end"
            ));
        }
        if self.0.repository.is_none() {
            return Err(self.refusal(name, None, Missing::Unknown));
        }
        if self.0.options.control == Control::None {
            return refuse(format!(
                "cannot {verb} `{shown}`: this server loads its repository once; start it with `--model-control explicit`"
            ));
        }
        if !self.are_all_loaded() {
            return Err(ApiError::Loading { phase: "Load" });
        }
        Ok(())
    }

    /// Whether requests may load models.
    pub(crate) fn loads_on_demand(&self) -> bool {
        self.0.options.control == Control::OnDemand && self.0.repository.is_some()
    }

    /// Where requests may load models: makes this one ready, or says why it is not. What it returns is to be kept until
    /// the request has its own lease. `None` = there is no such model to be loaded.
    ///
    /// # Errors
    /// [`ApiError::Loading`] = the server's patience came first, and the load goes on.
    pub(crate) async fn demanded(
        &self,
        asked: &str,
        version: Option<u64>,
    ) -> Result<Option<Lease>, ApiError> {
        if !self.loads_on_demand() {
            return Ok(None);
        }
        let deadline = Instant::now() + self.0.options.wait;
        // It may be unloaded again before it is looked at, to make room for another.
        loop {
            match self.get(asked, version) {
                Ok(lease) => return Ok(Some(lease)),
                Err(Missing::NotReady { key, .. }) if self.is_fixed(&key) => return Ok(None),
                Err(_) => {}
            }
            let Some(key) = self.in_repository(asked, version).await? else { return Ok(None) };
            if let Some(failed) = self.failed_just_now(&key) {
                return Err(self.refusal(asked, version, failed));
            }
            self.0.apply(Event::Load(key.clone()));
            let snapshot = self.settled(std::slice::from_ref(&key), deadline).await;
            if let Some(entry) = snapshot.others.get(&key).filter(|entry| entry.state == State::Failed) {
                let reason = entry.reason.clone();
                let missing = Missing::NotReady { key, state: State::Failed, reason };
                return Err(self.refusal(asked, version, missing));
            }
            if Instant::now() >= deadline {
                return Err(ApiError::Loading { phase: "Load" });
            }
        }
    }

    fn is_fixed(&self, key: &Key) -> bool {
        self.snapshot().fixed.iter().any(|entry| entry.key == *key)
    }

    fn failed_just_now(&self, key: &Key) -> Option<Missing> {
        let snapshot = self.snapshot();
        let entry = snapshot.others.get(key).filter(|entry| entry.state == State::Failed)?;
        // A clock that was set back counts as long ago.
        let age = SystemTime::now().duration_since(entry.since).unwrap_or(AGAIN);
        let reason = entry.reason.clone();
        (age < AGAIN).then(|| Missing::NotReady { key: key.clone(), state: State::Failed, reason })
    }

    /// The version that a request means of a model that is not loaded.
    async fn in_repository(&self, asked: &str, version: Option<u64>) -> Result<Option<Key>, ApiError> {
        let asked = self.0.aliases.get(asked).map_or(asked, String::as_str);
        // Names of folders have no colon.
        let (name, version) = match (version, versioned(asked)) {
            (None, (name, version)) => (name, version),
            (Some(_), _) => (asked, version),
        };
        let folder = match self.folder(name).await? {
            Ok(folder) => folder,
            Err(Refusal::NotFound) => return Ok(None),
            Err(refusal) => return Err(self.refused(name, refusal)),
        };
        let version = match version {
            None => folder.wanted.last(),
            Some(version) => folder.wanted.iter().find(|wanted| **wanted == version),
        };
        Ok(version.map(|version| Key { name: name.into(), version: *version }))
    }

    fn refused(&self, name: &str, refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::NotFound => self.refusal(name, None, Missing::Unknown),
            Refusal::Bad(why) => {
                ApiError::Unavailable { model: name.chars().take(100).collect(), why, passes: false }
            }
        }
    }

    /// Looks at a model's folder.
    async fn folder(&self, name: &str) -> Result<Result<Folder, Refusal>, ApiError> {
        let Some(looker) = &self.0.looker else { return Ok(Err(Refusal::NotFound)) };
        let folder = looker.model(name).await?;
        Ok(folder.and_then(|folder| match clash(&self.snapshot().fixed, name, &folder) {
            Some(why) => Err(Refusal::Bad(why)),
            None => Ok(folder),
        }))
    }

    /// Waits until nothing is under way for these.
    async fn settled(&self, keys: &[Key], deadline: Instant) -> Arc<Snapshot> {
        let mut watch = self.0.snapshot.subscribe();
        let at_rest = |key: &Key, snapshot: &Snapshot| {
            let state = snapshot.others.get(key).map(|entry| entry.state);
            !matches!(state, Some(State::Loading | State::Draining))
        };
        let all = watch.wait_for(|snapshot| keys.iter().all(|key| at_rest(key, snapshot)));
        if let Ok(Ok(snapshot)) = timeout_at(deadline, all).await {
            return Arc::clone(&snapshot);
        }
        self.snapshot()
    }

    /// Begins what is to be loaded at the start, once the models of the configuration are there.
    pub(super) fn begin(&self) {
        let Some(repository) = self.0.repository.clone() else { return };
        let registry = self.clone();
        // A volume that hangs keeps the models of the configuration from nothing.
        let scan = thread::Builder::new().name("registry-scan".to_owned()).spawn(move || {
            registry.scan(&repository);
            if registry.0.options.control == Control::None {
                let keys: Vec<Key> = registry.0.book().found.iter().cloned().collect();
                info!(models = keys.len(), "loading the repository");
                keys.into_iter().for_each(|key| registry.0.apply(Event::Load(key)));
            }
        });
        if let Err(err) = scan {
            warn!(%err, "no thread can be started to look at the model repository");
        }
    }

    pub(super) fn scan(&self, repository: &Repository) {
        let (names, all) = match repository.names() {
            Ok(found) => found,
            Err(err) => return warn!(%err, "cannot list the model repository"),
        };
        if !all {
            warn!(listed = names.len(), "the model repository holds more than is listed");
        }
        let fixed = self.snapshot().fixed.clone();
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for name in names {
            if fixed.iter().any(|entry| *entry.key.name == *name) {
                let why = "a model of the configuration has this name";
                refused.push((name, why.to_owned()));
                continue;
            }
            match repository.model(&name) {
                Ok(folder) => match clash(&fixed, &name, &folder) {
                    Some(why) => refused.push((name, why)),
                    None => {
                        let key = |version| Key { name: name.as_str().into(), version };
                        found.extend(folder.wanted.into_iter().map(key));
                    }
                },
                Err(Refusal::Bad(why)) => refused.push((name, why)),
                Err(Refusal::NotFound) => {}
            }
        }
        let mut book = self.0.book();
        book.found = found.into_iter().collect();
        book.refused = refused.into_iter().collect();
        let super::Book { machine, found, .. } = &mut *book;
        machine.forget_others(&|key| found.contains(key));
        self.0.publish(&mut book);
    }
}

/// Whether a version of a folder would have the name of a model of the configuration, and what is said then.
fn clash(fixed: &[super::Entry], name: &str, folder: &Folder) -> Option<String> {
    let key = |version: &u64| Key { name: name.into(), version: *version }.to_string();
    let names: Vec<String> = folder.wanted.iter().map(key).collect();
    let entry = fixed.iter().find(|entry| names.iter().any(|name| **name == *entry.key.name))?;
    Some(format!("a model of the configuration is called `{}`", entry.key.name))
}
