//! Objects, their history and the counters. Every change goes through [`Store::commit`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::Kind;

/// Where an object is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub group: &'static str,
    pub plural: &'static str,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(kind: &Kind, namespace: &str, name: &str) -> Self {
        Self {
            group: kind.group,
            plural: kind.plural,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// `deployments/ns/name`.
    pub fn path(&self) -> String {
        format!("{}/{}/{}", self.plural, self.namespace, self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One committed change.
#[derive(Clone, Debug)]
pub struct Event {
    pub rv: u64,
    pub kind: &'static Kind,
    pub key: Key,
    pub change: Change,
    pub object: Value,
    /// The object before, from which a selector tells "left the selection".
    pub before: Option<Value>,
}

/// Everything the server holds.
#[derive(Debug, Default)]
pub struct Store {
    pub(super) objects: BTreeMap<Key, (&'static Kind, Value)>,
    pub(super) history: Vec<Event>,
    pub(super) rv: u64,
    pub(super) compacted: u64,
    serial: u64,
    /// Custom objects as created: defaults of the schema are added on reading, and stored by the first update, which
    /// therefore is a change even if it changes nothing.
    pub(super) fresh: BTreeSet<Key>,
    /// The object that is being created gets no field owners.
    pub(super) unowned: bool,
    /// OpenAPI schema of the custom kind.
    pub(super) crd: Value,
}

impl Store {
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key).map(|(_, object)| object)
    }

    /// All objects of a kind, in the order of lists.
    pub fn of_kind(&self, kind: &Kind) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.group == kind.group && key.plural == kind.plural)
            .map(|(key, (_, object))| (key, object))
    }

    pub fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Stores `object` (or removes it, with `None`) under a new resource version, and returns what watchers see.
    pub fn commit(&mut self, kind: &'static Kind, key: &Key, object: Option<Value>) -> Value {
        self.rv += 1;
        let before = self.objects.get(key).map(|(_, object)| object.clone());
        let (change, mut seen) = match (&before, object) {
            (None, Some(object)) => (Change::Added, object),
            (Some(_), Some(object)) => (Change::Modified, object),
            (_, None) => (Change::Deleted, before.clone().unwrap_or(Value::Null)),
        };
        seen["metadata"]["resourceVersion"] = json!(self.rv.to_string());
        if change == Change::Deleted {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.clone(), (kind, seen.clone()));
        }
        self.history.push(Event {
            rv: self.rv,
            kind,
            key: key.clone(),
            change,
            object: seen.clone(),
            before,
        });
        seen
    }

    /// The objects of a kind as they were at `rv`.
    pub fn of_kind_at(&self, kind: &Kind, rv: u64) -> BTreeMap<Key, Value> {
        let mut out = BTreeMap::new();
        for event in self.history.iter().filter(|e| e.rv <= rv && e.kind == kind) {
            match event.change {
                Change::Deleted => out.remove(&event.key),
                _ => out.insert(event.key.clone(), event.object.clone()),
            };
        }
        out
    }

    /// Forgets events up to `rv` for watchers: older watches get 410.
    pub fn compact(&mut self, rv: u64) {
        self.compacted = self.compacted.max(rv.min(self.rv));
    }
}

/// RFC 3339 to the second, as object metadata has it.
pub fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// A stable uid for the nth object.
pub fn uid(serial: u64) -> String {
    format!("00000000-0000-4000-8000-{serial:012x}")
}

pub fn text<'v>(object: &'v Value, pointer: &str) -> Option<&'v str> {
    object.pointer(pointer).and_then(Value::as_str)
}
