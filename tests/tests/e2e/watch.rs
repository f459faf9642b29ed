//! What the API server said about one kind of object, in order and with the moment of arrival: states that pass are
//! seen, and two moments can be compared.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

/// One state of one object.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) object: Arc<Value>,
    pub(crate) gone: bool,
}

impl Seen {
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }
}

/// A watch that remembers. It ends when dropped.
pub(crate) struct Watch {
    kind: String,
    history: Arc<RwLock<Vec<Seen>>>,
    /// Of the history; none until the first list is whole.
    length: watch::Receiver<Option<usize>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Everything of that kind in a namespace, from its present state on.
    pub(crate) fn open(client: &Client, kind: &ApiResource, namespace: &str) -> Self {
        Self::follow(Api::namespaced_with(client.clone(), namespace, kind), kind)
    }

    pub(crate) fn everywhere(client: &Client, kind: &ApiResource) -> Self {
        Self::follow(Api::all_with(client.clone(), kind), kind)
    }

    fn follow(api: Api<DynamicObject>, kind: &ApiResource) -> Self {
        let history = Arc::new(RwLock::new(Vec::new()));
        let (sender, length) = watch::channel(None);
        let shared = Arc::clone(&history);
        let task = tokio::spawn(async move {
            // With pauses after errors: once the cluster has gone, errors come without end, and a task that never waits
            // cannot be aborted either.
            let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
            let mut events = std::pin::pin!(events);
            // What was there before a list and was not in it has gone unseen.
            let mut listed = HashSet::new();
            while let Some(event) = events.next().await {
                let mut all = shared.write().unwrap_or_else(PoisonError::into_inner);
                let mut push = |object: Value, gone| {
                    all.push(Seen { at: Instant::now(), object: Arc::new(object), gone });
                };
                match event {
                    Ok(Event::Init) => listed.clear(),
                    Ok(Event::InitApply(object)) => {
                        listed.extend(object.metadata.uid.clone());
                        push(json!(object), false);
                    }
                    Ok(Event::InitDone) => {
                        for seen in present(&all) {
                            if !seen.object["metadata"]["uid"]
                                .as_str()
                                .is_some_and(|uid| listed.contains(uid))
                            {
                                all.push(Seen { at: Instant::now(), gone: true, ..seen });
                            }
                        }
                        sender.send_replace(Some(all.len()));
                    }
                    Ok(Event::Apply(object)) => push(json!(object), false),
                    Ok(Event::Delete(object)) => push(json!(object), true),
                    // The watcher lists and watches anew.
                    Err(_) => {}
                }
                sender.send_if_modified(|length| {
                    let longer = length.is_some_and(|length| length != all.len());
                    if longer {
                        *length = Some(all.len());
                    }
                    longer
                });
            }
        });
        Self { kind: kind.kind.clone(), history, length, task }
    }

    /// The place in the history where the present ends.
    pub(crate) fn mark(&self) -> usize {
        self.history.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All that was seen from a mark on.
    pub(crate) fn since(&self, mark: usize) -> Vec<Seen> {
        let all = self.history.read().unwrap_or_else(PoisonError::into_inner);
        all.get(mark..).unwrap_or_default().to_vec()
    }

    /// The objects that exist, in their last state, in the order of their first appearance.
    pub(crate) fn present(&self) -> Vec<Seen> {
        present(&self.history.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first state from `mark` on that fits, waited for until `limit`.
    pub(crate) async fn until(
        &self,
        mark: usize,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Seen) -> bool,
    ) -> Result<Seen> {
        let mut next = mark;
        let found = self.wait(limit, || {
            let fresh = self.since(next);
            next += fresh.len();
            fresh.into_iter().find(&fits)
        });
        match found.await {
            Some(found) => Ok(found),
            None => bail!("{what}: not seen within {limit:?}; the last states were {}", self.last(mark)),
        }
    }

    /// Returns once the objects that exist, taken together, fit.
    pub(crate) async fn until_all(
        &self,
        what: &str,
        limit: Duration,
        fit: impl Fn(&[Seen]) -> bool,
    ) -> Result<Vec<Seen>> {
        let found = self.wait(limit, || Some(self.present()).filter(|present| fit(present)));
        match found.await {
            Some(found) => Ok(found),
            None => bail!("{what}: not so within {limit:?}; the last states were {}", self.last(0)),
        }
    }

    async fn wait<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut length = self.length.clone();
        let looking = async {
            loop {
                let complete = length.borrow_and_update().is_some();
                if let Some(found) = complete.then(&mut look).flatten() {
                    return Some(found);
                }
                // An error says that the watch has ended, which it does when its runtime does.
                length.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, looking).await.ok().flatten()
    }

    fn last(&self, mark: usize) -> String {
        let all = self.since(mark);
        let tail = all.iter().rev().take(3).rev();
        let states = tail.map(|seen| {
            let (name, gone) = (seen.name(), if seen.gone { " (gone)" } else { "" });
            format!(
                "{} {name}{gone}: spec {} status {}",
                self.kind, seen.object["spec"], seen.object["status"]
            )
        });
        let states: Vec<_> = states.collect();
        if states.is_empty() { format!("none of {}", self.kind) } else { states.join("\n") }
    }
}

fn present(history: &[Seen]) -> Vec<Seen> {
    let mut present: Vec<Seen> = Vec::new();
    for seen in history {
        let uid = &seen.object["metadata"]["uid"];
        match present.iter_mut().find(|known| known.object["metadata"]["uid"] == *uid) {
            Some(known) => *known = seen.clone(),
            None => present.push(seen.clone()),
        }
    }
    present.retain(|seen| !seen.gone);
    present
}
