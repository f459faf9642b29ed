//! Caches of what the API server holds, filled by watches (`watches.rs`) and by the answers to our own writes: a
//! pass never acts on a state older than what this process wrote itself. Not kube's `Store`, because that one is
//! behind one's own writes, says nothing about what a relist removed, and has no index by owner.

mod entry;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kube::api::ObjectMeta;
use parking_lot::RwLock;
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

pub use entry::{Entry, Key, Raw, controller};

/// One object came, went or differs.
#[derive(Debug)]
pub struct Change<T> {
    pub old: Option<Arc<T>>,
    pub new: Option<Arc<T>>,
}

/// How long an own write is believed before the watch has shown it.
const BELIEVED: Duration = Duration::from_secs(30);

/// One kind of objects.
#[derive(Debug)]
pub struct Cache<T> {
    inner: RwLock<Inner<T>>,
    synced: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner<T> {
    objects: BTreeMap<Key, Slot<T>>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    /// Uids that we deleted, and when: late events about them are not news.
    gone: HashMap<String, Instant>,
    relist: Option<Relist<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    object: Arc<T>,
    /// Set while the object comes from the answer to an own write that the watch has not shown yet.
    written: Option<Instant>,
}

#[derive(Debug)]
struct Relist<T> {
    since: Instant,
    objects: BTreeMap<Key, Arc<T>>,
}

impl<T: Entry> Default for Cache<T> {
    fn default() -> Self {
        let inner =
            Inner { objects: BTreeMap::new(), by_owner: HashMap::new(), gone: HashMap::new(), relist: None };
        Self { inner: RwLock::new(inner), synced: watch::Sender::new(false) }
    }
}

impl<T: Entry> Cache<T> {
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        let inner = self.inner.read();
        inner.objects.get(key).filter(|slot| slot.believed()).map(|slot| Arc::clone(&slot.object))
    }

    /// Whether there is an object that is not to be acted upon: an own write that the watch should have shown long ago.
    pub fn is_doubtful(&self, key: &Key) -> bool {
        self.inner.read().objects.get(key).is_some_and(|slot| !slot.believed())
    }

    /// Objects whose controller has this uid.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<T>> {
        let inner = self.inner.read();
        let keys = inner.by_owner.get(uid).into_iter().flatten();
        keys.filter_map(|key| inner.objects.get(key))
            .filter(|slot| slot.believed())
            .map(|slot| Arc::clone(&slot.object))
            .collect()
    }

    /// Objects called NAME or NAME-something.
    pub fn named_after(&self, key: &Key) -> Vec<Arc<T>> {
        let inner = self.inner.read();
        let prefix = format!("{}-", key.name);
        inner
            .objects
            .range(key.clone()..)
            .take_while(|(other, _)| other.namespace == key.namespace && other.name.starts_with(&key.name))
            .filter(|(other, slot)| {
                (other.name == key.name || other.name.starts_with(&prefix)) && slot.believed()
            })
            .map(|(_, slot)| Arc::clone(&slot.object))
            .collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let inner = self.inner.read();
        inner
            .objects
            .range(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, slot)| Arc::clone(&slot.object))
            .collect()
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.inner.read().objects.values().map(|slot| Arc::clone(&slot.object)).collect()
    }

    pub fn len(&self) -> usize {
        self.inner.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True once the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub async fn wait_until_synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// An event of the watch; `None` if it is no news.
    pub fn applied(&self, object: T) -> Option<Change<T>> {
        let mut inner = self.inner.write();
        if inner.is_gone(object.meta()) {
            return None;
        }
        let key = Key::of(object.meta());
        if let Some(slot) = inner.objects.get_mut(&key) {
            let known = slot.object.meta();
            if slot.written.is_some() && is_older(object.meta(), known) && slot.believed() {
                return None;
            }
            if known.resource_version.is_some() && known.resource_version == object.meta().resource_version {
                let doubted = !slot.believed();
                slot.written = None;
                if doubted {
                    // Whoever looked meanwhile was told to come again.
                    let object = Arc::clone(&slot.object);
                    return Some(Change { old: Some(Arc::clone(&object)), new: Some(object) });
                }
                return None;
            }
        }
        let new = Arc::new(object);
        let old = inner.insert(key, Slot { object: Arc::clone(&new), written: None });
        Some(Change { old, new: Some(new) })
    }

    /// A deletion seen by the watch.
    pub fn deleted(&self, object: &T) -> Option<Change<T>> {
        let mut inner = self.inner.write();
        let key = Key::of(object.meta());
        let slot = inner.objects.get(&key)?;
        let other = slot.object.meta().uid != object.meta().uid;
        let outdated = slot.written.is_some() && is_older(object.meta(), slot.object.meta());
        if other || outdated {
            return None;
        }
        let old = inner.remove(&key);
        Some(Change { old, new: None })
    }

    pub fn relist_started(&self) {
        self.inner.write().relist = Some(Relist { since: Instant::now(), objects: BTreeMap::new() });
    }

    pub fn relisted(&self, object: T) {
        if let Some(relist) = &mut self.inner.write().relist {
            relist.objects.insert(Key::of(object.meta()), Arc::new(object));
        }
    }

    /// The list is complete: it replaces everything, except what we wrote after it began. Returns what differs,
    /// vanished objects included.
    pub fn relist_finished(&self) -> Vec<Change<T>> {
        let mut changes = Vec::new();
        {
            let mut inner = self.inner.write();
            let Some(relist) = inner.relist.take() else { return changes };
            let mut listed = relist.objects;
            let keys: Vec<Key> = inner.objects.keys().cloned().collect();
            for key in keys {
                let Some(slot) = inner.objects.get(&key) else { continue };
                let newer = slot.written.is_some_and(|at| at >= relist.since)
                    && listed.get(&key).is_none_or(|object| is_older(object.meta(), slot.object.meta()));
                let same = listed.get(&key).is_some_and(|object| {
                    object.meta().uid == slot.object.meta().uid
                        && object.meta().resource_version == slot.object.meta().resource_version
                });
                if newer || same {
                    listed.remove(&key);
                    if same && let Some(slot) = inner.objects.get_mut(&key) {
                        if !slot.believed() {
                            let object = Arc::clone(&slot.object);
                            changes.push(Change { old: Some(Arc::clone(&object)), new: Some(object) });
                        }
                        // The server has said it: no event will come to confirm the write any more.
                        slot.written = None;
                    }
                } else if !listed.contains_key(&key) {
                    let old = inner.remove(&key);
                    changes.push(Change { old, new: None });
                }
            }
            for (key, new) in listed {
                if inner.is_gone(new.meta()) {
                    continue;
                }
                let old = inner.insert(key, Slot { object: Arc::clone(&new), written: None });
                changes.push(Change { old, new: Some(new) });
            }
        }
        self.synced.send_replace(true);
        changes
    }

    /// The answer to an own write.
    pub fn wrote(&self, object: T) {
        let mut inner = self.inner.write();
        let key = Key::of(object.meta());
        if let Some(slot) = inner.objects.get_mut(&key) {
            // The watch was faster, or the server was asked again and has still the same.
            let same = slot.object.meta().resource_version == object.meta().resource_version;
            if same && slot.written.is_some() {
                slot.written = Some(Instant::now());
            }
            if same || is_older(object.meta(), slot.object.meta()) {
                return;
            }
        }
        inner.insert(key, Slot { object: Arc::new(object), written: Some(Instant::now()) });
    }

    /// An own delete that took effect at once.
    pub fn wrote_deletion(&self, key: &Key, uid: &str) {
        let mut inner = self.inner.write();
        inner.gone.retain(|_, at| at.elapsed() < 2 * BELIEVED);
        inner.gone.insert(uid.to_owned(), Instant::now());
        if inner.objects.get(key).is_some_and(|slot| slot.object.meta().uid.as_deref() == Some(uid)) {
            inner.remove(key);
        }
    }

    /// Forgets an object that turned out not to be there.
    pub fn forget(&self, key: &Key) {
        self.inner.write().remove(key);
    }
}

impl<T> Slot<T> {
    fn believed(&self) -> bool {
        self.written.is_none_or(|at| at.elapsed() < BELIEVED)
    }
}

impl<T: Entry> Inner<T> {
    fn insert(&mut self, key: Key, slot: Slot<T>) -> Option<Arc<T>> {
        let old = self.remove(&key);
        if let Some(owner) = controller(slot.object.meta()) {
            self.by_owner.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        self.objects.insert(key, slot);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<T>> {
        let slot = self.objects.remove(key)?;
        if let Some(owner) = controller(slot.object.meta())
            && let Some(keys) = self.by_owner.get_mut(&owner.uid)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.by_owner.remove(&owner.uid);
            }
        }
        Some(slot.object)
    }

    fn is_gone(&self, meta: &ObjectMeta) -> bool {
        let uid = meta.uid.as_deref().unwrap_or_default();
        self.gone.get(uid).is_some_and(|at| at.elapsed() < 2 * BELIEVED)
    }
}

/// Compares resourceVersions as numbers, which Kubernetes 1.35 allows; what is no number is never older.
fn is_older(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    let number =
        |meta: &ObjectMeta| meta.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a < b,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
