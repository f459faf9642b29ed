//! A proxy in front of a real API server that breaks what a plan says: the same rules as in the in-memory server.
//! It speaks plain HTTP on loopback, so that the operator under test needs no certificates of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fake::answer::ApiError;
use crate::fake::faults::{Fault, Faults, Rule};
use crate::fake::route::{self, Route, Target};

/// The only client of a proxy, by its name in rules.
pub const OPERATOR: &str = "operator";

/// One write that reached the API server, or did not.
#[derive(Clone, Debug)]
pub struct Seen {
    pub verb: &'static str,
    pub kind: &'static str,
    pub name: String,
    pub code: u16,
}

#[derive(Default)]
struct State {
    faults: Faults,
    log: Vec<Seen>,
    victim: Option<Victim>,
}

/// Ends the client's process.
type Victim = Box<dyn FnMut() + Send>;

/// A running proxy; dropped: closed, with every connection through it.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    dead: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.dead.send(true);
        self.task.abort();
    }
}

type AnswerBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

impl Proxy {
    /// Listens on a free port and forwards with the credentials of `upstream`.
    pub async fn start(upstream: kube::Client) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("failed to listen on loopback")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let dead = Arc::new(watch::Sender::new(false));
        let shared = (Arc::clone(&state), Arc::clone(&dead));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, dead) = (Arc::clone(&shared.0), Arc::clone(&shared.1));
                tokio::spawn(serve(stream, upstream.clone(), state, dead));
            }
        });
        Ok(Self { address, state, dead, task })
    }

    /// How a client reaches the API server through this proxy.
    pub fn config(&self) -> Result<kube::Config> {
        Ok(kube::Config::new(format!("http://{}", self.address).parse()?))
    }

    /// The same as a file for a process.
    pub fn kubeconfig(&self) -> String {
        let cluster = json!({"name": "proxy", "cluster": {"server": format!("http://{}", self.address)}});
        let context = json!({"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}});
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "proxy", "clusters": [cluster],
            "contexts": [context], "users": [{"name": "nobody", "user": {}}]})
        .to_string()
    }

    pub fn add_fault(&self, rule: Rule) {
        lock(&self.state).faults.add(rule);
    }

    /// `kill` is called where a fault kills the client: before its request is passed on, or right after the API
    /// server has answered and before the client hears of it.
    pub fn set_victim(&self, kill: impl FnMut() + Send + 'static) {
        lock(&self.state).victim = Some(Box::new(kill));
    }

    /// How many requests met a fault.
    pub fn fired(&self) -> u64 {
        lock(&self.state).faults.fired
    }

    /// Resolves when a fault has killed the client.
    pub async fn killed(&self) {
        let mut dead = self.dead.subscribe();
        // The sender lives as long as the proxy.
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// Lets the next process in.
    pub fn revive(&self) {
        self.dead.send_replace(false);
    }

    /// Writes so far, leases and events left out.
    pub fn writes(&self) -> Vec<Seen> {
        lock(&self.state).log.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no holder panics")
}

async fn serve(
    stream: TcpStream,
    upstream: kube::Client,
    state: Arc<Mutex<State>>,
    dead: Arc<watch::Sender<bool>>,
) {
    let mut killed = dead.subscribe();
    let service = service_fn(|request| {
        let (upstream, state, dead) = (upstream.clone(), Arc::clone(&state), Arc::clone(&dead));
        async move { answer(request, upstream, &state, &dead).await }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A dead process has no connections: dropping this one resets it, watches included.
    tokio::select! {
        _ = connection => {}
        _ = killed.wait_for(|dead| *dead) => {}
    }
}

/// Breaks the connection: hyper closes it when a service fails.
fn broken() -> anyhow::Error {
    anyhow::anyhow!("broken by the fault plan")
}

async fn answer(
    request: Request<Incoming>,
    upstream: kube::Client,
    state: &Mutex<State>,
    dead: &watch::Sender<bool>,
) -> Result<Response<AnswerBody>> {
    if *dead.borrow() {
        return Err(broken());
    }
    let target = match route::parse(request.uri()) {
        Route::Resource(target) => Some(target),
        _ => None,
    };
    let verb = target.as_ref().map_or("get", |target| target.verb(request.method()));
    let write = !matches!(verb, "get" | "list" | "watch");
    let fault = target.as_ref().and_then(|target| lock(state).faults.meet(OPERATOR, verb, target));
    let die = || {
        if let Some(kill) = &mut lock(state).victim {
            kill();
        }
        dead.send_replace(true);
        broken()
    };
    match fault {
        Some(Fault::DropBefore) => return Err(broken()),
        Some(Fault::KillBefore) => return Err(die()),
        Some(Fault::Refuse(code)) => {
            note(state, verb, target.as_ref(), write, code);
            return refuse(code);
        }
        _ => {}
    }
    let (mut parts, body) = request.into_parts();
    let bytes = body.collect().await?.to_bytes();
    parts.headers.remove(http::header::HOST);
    let response = upstream.send(Request::from_parts(parts, Body::from(bytes))).await?;
    note(state, verb, target.as_ref(), write, response.status().as_u16());
    match fault {
        Some(Fault::DropAfter) => Err(broken()),
        Some(Fault::KillAfter) => Err(die()),
        Some(Fault::RefuseAfter(code)) => refuse(code),
        _ => Ok(response.map(|body| UnsyncBoxBody::new(body.map_err(Into::into)))),
    }
}

fn note(state: &Mutex<State>, verb: &'static str, target: Option<&Target>, write: bool, code: u16) {
    let Some(target) = target.filter(|t| write && !matches!(t.kind.kind, "Lease" | "Event")) else { return };
    let name = target.name.clone().unwrap_or_default();
    lock(state).log.push(Seen { verb, kind: target.kind.kind, name, code });
}

fn refuse(code: u16) -> Result<Response<AnswerBody>> {
    let body: Value = ApiError::injected(code).to_json();
    let bytes = Full::new(Bytes::from(body.to_string())).map_err(|never: Infallible| match never {});
    let mut response = Response::new(UnsyncBoxBody::new(bytes));
    *response.status_mut() = StatusCode::from_u16(code)?;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}
