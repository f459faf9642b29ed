//! All models at one moment. Requests read it without waiting for whoever loads or unloads.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use candela_wire::openai::Model;

use super::{
    lease::Lease,
    machine::{Key, State},
};
use crate::model::{self, Served};

static TURN: AtomicUsize = AtomicUsize::new(0);

/// One version of one model.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) state: State,
    /// Why it is in that state; empty where that says everything.
    pub(crate) reason: String,
    /// When it entered it.
    pub(crate) since: SystemTime,
    /// What it takes, or may take while it is loaded.
    pub(crate) bytes: u64,
    /// Of the configuration: loaded as long as the process lives.
    pub(crate) fixed: bool,
    /// Its instances, while it is ready.
    pub(super) served: Vec<Arc<Served>>,
}

impl Entry {
    /// Of its instances the one with the least to do. `None` = it is not ready, or is being unloaded just now.
    pub(super) fn lease(&self) -> Option<Lease> {
        let busy = |served: &&Arc<Served>| {
            let load = served.loaded.load();
            served.uses.count().max(load.running + load.queued)
        };
        let served = match &self.served[..] {
            [only] => only,
            several => {
                // Of those that are as busy the next one, for requests that come at the same moment.
                let (before, from) = several.split_at(TURN.fetch_add(1, Relaxed) % several.len().max(1));
                from.iter().chain(before).min_by_key(busy)?
            }
        };
        Lease::of(served)
    }
}

#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    /// In the order of the configuration.
    pub(super) fixed: Vec<Entry>,
    /// Those of the repository.
    pub(super) others: BTreeMap<Key, Entry>,
    /// Engines of the repository that are being unloaded.
    pub(super) draining: Vec<Arc<Served>>,
    /// Folders of the repository that are no good, and why.
    pub(super) refused: BTreeMap<String, String>,
    pub(super) aliases: Arc<BTreeMap<String, String>>,
    /// All of the configuration are loaded, and others may be.
    pub(super) begun: bool,
    /// Those that are not loaded answer all the same, since a request loads them.
    pub(super) on_demand: bool,
}

impl Snapshot {
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.fixed.iter().chain(self.others.values())
    }

    /// The model that `asked` means: a name (then the newest version, of those that are ready if there are any),
    /// `NAME:VERSION`, or an alias of either.
    pub(super) fn find(&self, asked: &str, version: Option<u64>) -> Option<&Entry> {
        self.exact(asked, version).or_else(|| self.exact(self.aliases.get(asked)?, version))
    }

    fn exact(&self, text: &str, version: Option<u64>) -> Option<&Entry> {
        self.named(text, version).or_else(|| match (version, versioned(text)) {
            (None, (name, version @ Some(_))) => self.named(name, version),
            _ => None,
        })
    }

    fn named(&self, name: &str, version: Option<u64>) -> Option<&Entry> {
        if let Some(fixed) = self.fixed.iter().find(|entry| &*entry.key.name == name) {
            return version.is_none_or(|version| version == fixed.key.version).then_some(fixed);
        }
        match version {
            Some(version) => self.others.get(&Key { name: name.into(), version }),
            None => self.versions(name).max_by_key(|entry| (entry.state == State::Ready, entry.key.version)),
        }
    }

    /// Of a model of the repository, ascending.
    pub(super) fn versions(&self, name: &str) -> impl Iterator<Item = &Entry> {
        let of = |version| Key { name: name.into(), version };
        self.others.range(of(0)..=of(u64::MAX)).map(|(_, entry)| entry)
    }

    /// Each engine.
    pub(crate) fn engines(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.entries().flat_map(|entry| &entry.served)
    }

    /// Whether requests for it are answered, perhaps after it was loaded.
    fn answers(&self, entry: &Entry) -> bool {
        !entry.served.is_empty() || (self.on_demand && !entry.fixed && entry.state != State::Failed)
    }

    /// What `/v1/models` lists: names, and `NAME:VERSION` where there are several versions.
    pub(super) fn listed(&self) -> Vec<Model> {
        let mut listed = Vec::new();
        let mut seen = HashSet::new();
        for entry in self.entries().filter(|entry| self.answers(entry)) {
            let of = |id: String| match entry.served.first() {
                Some(served) => served.listed(id),
                None => model::listed(id, entry.since),
            };
            let name = &*entry.key.name;
            if entry.fixed {
                listed.push(of(name.to_owned()));
                continue;
            }
            if seen.insert(name) {
                listed.push(of(name.to_owned()));
            }
            if self.versions(name).filter(|entry| self.answers(entry)).count() > 1 {
                listed.push(of(entry.key.to_string()));
            }
        }
        listed
    }

    /// Names of models that answer, for those who ask for another.
    pub(super) fn names(&self) -> String {
        const MOST: usize = 50;
        let mut names: Vec<&str> =
            self.entries().filter(|entry| self.answers(entry)).map(|entry| &*entry.key.name).collect();
        names.dedup();
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        match more {
            0 => names.join("`, `"),
            more => format!("{}` and {more} more, such as `{}", names.join("`, `"), names[0]),
        }
    }
}

/// `NAME:VERSION` in two, where it is that.
pub(super) fn versioned(text: &str) -> (&str, Option<u64>) {
    match text.rsplit_once(':').map(|(name, version)| (name, version.parse())) {
        Some((name, Ok(version))) => (name, Some(version)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, version: u64, state: State, fixed: bool) -> Entry {
        let key = Key { name: name.into(), version };
        let since = SystemTime::UNIX_EPOCH;
        Entry { key, state, reason: String::new(), since, bytes: 0, fixed, served: Vec::new() }
    }

    #[test]
    fn names_versions_and_aliases_find_their_model() {
        use State::{Failed, Loading, Ready};
        let others = [("m", 1, Ready), ("m", 2, Ready), ("m", 3, Failed), ("n", 4, Loading)];
        let others = others.map(|(name, version, state)| entry(name, version, state, false));
        let aliases = [("chat", "m"), ("old", "m:1"), ("fix", "org/f:v1"), ("lost", "gone")];
        let snapshot = Snapshot {
            fixed: vec![entry("org/f:v1", 1, Ready, true), entry("f:7", 1, Ready, true)],
            others: others.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            draining: Vec::new(),
            refused: BTreeMap::new(),
            aliases: Arc::new(aliases.map(|(alias, of)| (alias.to_owned(), of.to_owned())).into()),
            begun: true,
            on_demand: false,
        };
        let found = |asked: &str, version| snapshot.find(asked, version).map(|entry| entry.key.to_string());
        for (asked, version, wanted) in [
            ("m", None, Some("m:2")),
            ("m", Some(1), Some("m:1")),
            ("m", Some(3), Some("m:3")),
            ("m", Some(9), None),
            ("m:1", None, Some("m:1")),
            ("m:1", Some(1), None),
            ("n", None, Some("n:4")),
            ("chat", None, Some("m:2")),
            ("chat", Some(1), Some("m:1")),
            ("old", None, Some("m:1")),
            ("fix", None, Some("org/f:v1:1")),
            ("org/f:v1", None, Some("org/f:v1:1")),
            ("org/f:v1", Some(2), None),
            ("f:7", None, Some("f:7:1")),
            ("lost", None, None),
            ("", None, None),
            (":1", None, None),
        ] {
            assert_eq!(found(asked, version).as_deref(), wanted, "{asked} {version:?}");
        }
    }
}
