//! One watch: history from a resource version on, then what happens, with all that can go wrong on the way.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::answer::ApiError;
use super::reads::Selection;
use super::route::Target;
use super::server::FakeCluster;
use super::service::Broken;

/// Time between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// State of one watch request.
#[derive(Debug)]
pub struct WatchStream {
    cluster: FakeCluster,
    client: String,
    selection: Selection,
    ticks: watch::Receiver<u64>,
    /// Everything up to here was sent.
    at: u64,
    /// Lines to send before anything new.
    initial: VecDeque<Value>,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    closed: u64,
    expired: u64,
    done: bool,
}

impl WatchStream {
    pub(super) fn start(cluster: FakeCluster, client: &str, target: &Target) -> Result<Self, ApiError> {
        let selection = Selection::of(target)?;
        let seconds = target.number("timeoutSeconds")?.unwrap_or(290);
        let ticks = cluster.ticks();
        let mut inner = cluster.lock();
        let link = inner.faults.link(client).clone();
        let now = link.frozen_at.unwrap_or(inner.store.rv);
        let wanted = target.text("resourceVersion").unwrap_or("0");
        let from: u64 = wanted.parse().map_err(|_| ApiError::bad_request("invalid resource version"))?;
        let bookmarks = target.flag("allowWatchBookmarks");
        let mut initial = VecDeque::new();
        let mut at = from;
        if target.flag("sendInitialEvents") || from == 0 {
            at = now;
            for (key, object) in inner.store.of_kind_at(selection.kind, now) {
                if selection.has(&key, &object) {
                    initial.push_back(json!({"type": "ADDED", "object": object}));
                }
            }
            if target.flag("sendInitialEvents") {
                initial.push_back(bookmark(&selection, now, true));
            }
        } else if from < inner.store.compacted {
            let error =
                ApiError::expired(&format!("too old resource version: {from} ({})", inner.store.compacted));
            initial.push_back(json!({"type": "ERROR", "object": error.to_json()}));
        }
        drop(inner);
        let start = Instant::now();
        Ok(Self {
            cluster,
            client: client.to_owned(),
            selection,
            ticks,
            at,
            initial,
            bookmarks,
            next_bookmark: start + BOOKMARK_EVERY,
            ends: start + Duration::from_secs(seconds),
            closed: link.closed,
            expired: link.expired,
            done: false,
        })
    }

    pub(super) fn into_body(self) -> UnsyncBoxBody<Bytes, Broken> {
        let lines =
            stream::unfold(self, |mut watch| async move { watch.next().await.map(|line| (line, watch)) });
        UnsyncBoxBody::new(StreamBody::new(lines))
    }

    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Broken>> {
        loop {
            if self.done {
                return None;
            }
            match self.step() {
                Step::Line(line) => {
                    self.done = line["type"] == "ERROR";
                    return Some(Ok(Frame::data(Bytes::from(format!("{line}\n")))));
                }
                Step::End => return None,
                Step::Broken => {
                    self.done = true;
                    return Some(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Step::Wait => {
                    let until = if self.bookmarks { self.next_bookmark.min(self.ends) } else { self.ends };
                    match timeout_at(until, self.ticks.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return None,
                        Err(_) if Instant::now() >= self.ends => return None,
                        Err(_) => {
                            self.next_bookmark += BOOKMARK_EVERY;
                            let line = bookmark(&self.selection, self.at, false);
                            return Some(Ok(Frame::data(Bytes::from(format!("{line}\n")))));
                        }
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        self.ticks.mark_unchanged();
        let mut inner = self.cluster.lock();
        let inner = &mut *inner;
        let link = inner.faults.links.entry(self.client.clone()).or_default();
        if link.dead {
            return Step::Broken;
        }
        if link.closed > self.closed {
            return Step::End;
        }
        if link.expired > self.expired {
            let error = ApiError::expired("too old resource version");
            return Step::Line(json!({"type": "ERROR", "object": error.to_json()}));
        }
        if let Some(line) = self.initial.pop_front() {
            return Step::Line(line);
        }
        if link.frozen_at.is_some() {
            return Step::Wait;
        }
        let start = inner.store.history.partition_point(|event| event.rv <= self.at);
        for event in &inner.store.history[start..] {
            self.at = event.rv;
            if let Some((change, object)) = self.selection.sees(event) {
                let hidden = link.hide.get_mut(event.kind.kind).filter(|left| **left > 0);
                if let Some(left) = hidden {
                    *left -= 1;
                    continue;
                }
                return Step::Line(json!({"type": change, "object": object}));
            }
        }
        Step::Wait
    }
}

enum Step {
    Line(Value),
    End,
    Broken,
    Wait,
}

fn bookmark(selection: &Selection, rv: u64, initial_end: bool) -> Value {
    let mut meta = json!({"resourceVersion": rv.to_string(), "creationTimestamp": null});
    if initial_end {
        meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    json!({"type": "BOOKMARK", "object": {
        "apiVersion": selection.kind.api_version(), "kind": selection.kind.kind, "metadata": meta}})
}
