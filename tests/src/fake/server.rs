//! The API server in memory: its state, its faults, and how a request is answered.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::answer::ApiError;
use super::discovery;
use super::dispatch::dispatch;
use super::faults::{Fault, Faults, On, Rule};
use super::record::Record;
use super::registry::{KINDS, Kind};
use super::route::{self, Route, Target};
use super::service::{Answer, ApiService};
use super::store::{Event, Key, Store};
use super::watch::WatchStream;

/// Something that happens just before a request is handled.
struct Interruption {
    client: String,
    on: On,
    nth: u64,
    act: Box<dyn FnOnce(&FakeCluster) + Send>,
}

impl fmt::Debug for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "before request {} of {} on {:?}", self.nth, self.client, self.on)
    }
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    interruptions: Vec<Interruption>,
    pub store: Store,
    pub faults: Faults,
    pub log: Vec<Record>,
    token_keys: Option<Value>,
    token_reads: usize,
}

/// `iss` of the cluster's tokens.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// An API server in memory. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct FakeCluster {
    inner: Arc<Mutex<Inner>>,
    tick: Arc<watch::Sender<u64>>,
}

impl FakeCluster {
    /// An empty cluster with the namespace `default`; `crd` is the OpenAPI schema of LlmDeployment.
    pub fn new(crd: Value) -> Self {
        let mut inner = Inner::default();
        inner.store.crd = crd;
        inner.token_keys = Some(
            json!([{"kid": "first", "kty": "RSA", "alg": "RS256", "use": "sig", "n": "AQ", "e": "AQAB"}]),
        );
        let cluster = Self { inner: Arc::new(Mutex::new(inner)), tick: Arc::new(watch::Sender::new(0)) };
        cluster.must("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "default"}}));
        cluster
    }

    /// The same, with the schema of this build's LlmDeployment.
    pub fn candela() -> Self {
        let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap_or_default();
        Self::new(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
    }

    /// A kube client whose requests carry this name in faults and in the log.
    pub fn client(&self, name: &str) -> kube::Client {
        kube::Client::new(self.service(name), "default")
    }

    /// The same as a service, to put layers on.
    pub fn service(&self, name: &str) -> ApiService {
        ApiService { cluster: self.clone(), client: name.to_owned() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics while it changes the store")
    }

    pub(super) fn ticks(&self) -> watch::Receiver<u64> {
        self.tick.subscribe()
    }

    pub(super) fn wake(&self) {
        self.tick.send_modify(|n| *n += 1);
    }

    /// Changes faults or links, and wakes watches so that they notice.
    pub fn disturb<T>(&self, change: impl FnOnce(&mut Faults) -> T) -> T {
        let out = change(&mut self.lock().faults);
        self.wake();
        out
    }

    pub fn add_fault(&self, rule: Rule) {
        self.disturb(|faults| faults.add(rule));
    }

    /// Lets something happen just before the nth matching request of a client is handled.
    pub fn interrupt(&self, client: &str, on: On, nth: u64, act: impl FnOnce(&FakeCluster) + Send + 'static) {
        let entry = Interruption { client: client.to_owned(), on, nth, act: Box::new(act) };
        self.lock().interruptions.push(entry);
    }

    fn due_interruptions(&self, client: &str, verb: &str, target: &Target) -> Vec<Interruption> {
        let mut inner = self.lock();
        let mut due = Vec::new();
        let mut waiting = Vec::new();
        for mut entry in std::mem::take(&mut inner.interruptions) {
            if entry.client == client && entry.on.matches(verb, target) {
                entry.nth -= 1;
            }
            if entry.nth == 0 { due.push(entry) } else { waiting.push(entry) }
        }
        inner.interruptions = waiting;
        due
    }

    /// Everything that was ever stored, in order.
    pub fn history(&self) -> Vec<Event> {
        self.lock().store.history.clone()
    }

    /// Stops a client's watches and pins what its caches may read to this moment.
    pub fn freeze(&self, client: &str) {
        let rv = self.version();
        self.disturb(|faults| faults.link(client).frozen_at = Some(rv));
    }

    pub fn thaw(&self, client: &str) {
        self.disturb(|faults| faults.link(client).frozen_at = None);
    }

    /// Resolves when a fault has killed the client.
    pub async fn killed(&self, client: &str) {
        let mut ticks = self.ticks();
        let dead = || self.lock().faults.links.get(client).is_some_and(|link| link.dead);
        while !dead() {
            if ticks.changed().await.is_err() {
                return;
            }
        }
    }

    pub fn version(&self) -> u64 {
        self.lock().store.rv
    }

    /// Watches from before this moment get 410.
    pub fn compact(&self) {
        let mut inner = self.lock();
        let rv = inner.store.rv;
        inner.store.compact(rv);
    }

    pub fn log(&self) -> Vec<Record> {
        self.lock().log.clone()
    }

    /// How many requests were like that.
    pub fn count(&self, like: impl Fn(&Record) -> bool) -> usize {
        self.lock().log.iter().filter(|record| like(record)).count()
    }

    /// A mark in the log, for [`FakeCluster::since`].
    pub fn mark(&self) -> usize {
        self.lock().log.len()
    }

    pub fn since(&self, mark: usize) -> Vec<Record> {
        self.lock().log[mark..].to_vec()
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let inner = self.lock();
        let known = KINDS.iter().filter(|k| k.kind == kind);
        known
            .flat_map(|k| inner.store.of_kind(k).map(|(_, object)| object.clone()).collect::<Vec<_>>())
            .collect()
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = KINDS.iter().find(|k| k.kind == kind)?;
        self.lock().store.get(&Key::new(kind, namespace, name)).cloned()
    }

    /// A request by nobody in particular, outside of all faults.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.call_as("test", method, path, body)
    }

    /// A request by a client of this name. `apply=1` in the query makes a patch an apply.
    pub fn call_as(&self, client: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let content = match method {
            "PATCH" if path.contains("apply=1") => "application/apply-patch+yaml",
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        self.request(client, method, path, content, body)
    }

    /// A request with a content type; code 0 when it was not an ordinary one.
    pub fn request(
        &self,
        client: &str,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> (u16, Value) {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .header("user-agent", client)
            .body(bytes);
        match request.map(|request| self.handle(client, &request)) {
            Ok(Answer::Json(code, value)) => (code, value),
            other => (0, json!({"message": format!("not an ordinary request: {}", other.is_ok())})),
        }
    }

    /// The same, for what cannot fail.
    ///
    /// # Panics
    /// When it fails.
    #[expect(clippy::panic, reason = "test code states what cannot fail")]
    pub fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (code, value) = self.call(method, path, body);
        if code >= 300 {
            panic!("{method} {path}: {code} {value}");
        }
        value
    }

    /// The last step of the namespace controller.
    pub(super) fn remove_namespace(&self, name: &str) {
        if let Some(kind) = Kind::find("", "v1", "namespaces") {
            self.lock().store.commit(kind, &Key::new(kind, "", name), None);
            self.wake();
        }
    }

    /// What `/openid/v1/jwks` answers from now on; `None` = it is unavailable.
    pub fn set_token_keys(&self, keys: Option<Value>) {
        self.lock().token_keys = keys;
    }

    fn discover(&self, path: &str) -> Answer {
        let mut inner = self.lock();
        match path {
            "/.well-known/openid-configuration" | "/openid/v1/jwks" => inner.token_reads += 1,
            _ => return Answer::of(discovery::answer(path)),
        }
        match (&inner.token_keys, path) {
            (None, _) => Answer::error(&ApiError::injected(503)),
            (Some(keys), "/openid/v1/jwks") => Answer::Json(200, json!({"keys": keys})),
            (Some(_), _) => {
                Answer::Json(200, json!({"issuer": TOKEN_ISSUER, "jwks_uri": "https://outside.example/"}))
            }
        }
    }

    /// How often anybody asked how tokens are checked.
    pub fn token_reads(&self) -> usize {
        self.lock().token_reads
    }

    pub(super) fn handle(&self, client: &str, request: &Request<Bytes>) -> Answer {
        let target = match route::parse(request.uri()) {
            Route::Resource(target) => target,
            Route::Discovery(path) => return self.discover(&path),
            Route::Missing => return Answer::error(&ApiError::injected(404)),
        };
        let verb = target.verb(request.method());
        if verb == "watch" {
            return match WatchStream::start(self.clone(), client, &target) {
                Ok(stream) => {
                    self.lock().log.push(Record::of_watch(client, &target));
                    Answer::Watch(Box::new(stream))
                }
                Err(error) => Answer::error(&error),
            };
        }
        for entry in self.due_interruptions(client, verb, &target) {
            (entry.act)(self);
        }
        let mut inner = self.lock();
        if inner.faults.link(client).dead {
            return Answer::Broken;
        }
        let fault = inner.faults.meet(client, verb, &target);
        let before = match fault {
            Some(Fault::DropBefore) => Some(Answer::Broken),
            Some(Fault::KillBefore) => {
                inner.faults.link(client).dead = true;
                Some(Answer::Broken)
            }
            Some(Fault::Refuse(code)) => Some(Answer::error(&ApiError::injected(code))),
            _ => None,
        };
        if let Some(answer) = before {
            inner.log.push(Record::of(client, verb, &target, request, answer.code(), false));
            drop(inner);
            self.wake();
            return answer;
        }
        let Inner { store, faults, .. } = &mut *inner;
        let outcome = dispatch(store, faults, client, &target, request);
        let committed = outcome.as_ref().is_ok_and(|w| w.committed);
        let mut answer = match outcome {
            Ok(written) => Answer::Json(written.code, written.body),
            Err(error) => Answer::error(&error),
        };
        inner.log.push(Record::of(client, verb, &target, request, answer.code(), committed));
        match fault {
            Some(Fault::DropAfter) => answer = Answer::Broken,
            Some(Fault::KillAfter) => {
                inner.faults.link(client).dead = true;
                answer = Answer::Broken;
            }
            Some(Fault::RefuseAfter(code)) => answer = Answer::error(&ApiError::injected(code)),
            _ => {}
        }
        drop(inner);
        if committed || fault.is_some() {
            self.wake();
        }
        answer
    }
}
