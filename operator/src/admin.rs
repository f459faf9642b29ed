//! The internal listener that every replica has, leader or not: `/metrics`, `/livez`, `/readyz` and
//! `/internal/v1/status`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use candela_wire::internal::{self, ProcessStatus, Requests, STATUS_PATH, STATUS_VERSION, Startup};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::Duration,
};

use crate::context::Context;

/// A pass is bounded by the deadlines of its calls; one that takes longer than this is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct Admin {
    pub ctx: Arc<Context>,
    /// True once the process is told to end.
    pub draining: watch::Receiver<bool>,
}

#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}; choose another with --internal-listen")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Takes the port, so that a busy one is an error before anything else happens.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Open connections at most; further ones wait in the kernel.
const CONNECTIONS: usize = 256;
/// From accepting to the end of a request's head.
const HEAD: Duration = Duration::from_secs(2);
/// From accepting to the end of the answer.
const EXCHANGE: Duration = Duration::from_secs(10);

/// One request per connection, each within a time, so that nobody in the cluster can keep the probes out, or fill the
/// memory, by holding connections open. Ends only with its task.
pub async fn serve(listener: TcpListener, admin: Admin) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let router = router(admin);
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(std::io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a client that has gone already.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            // Errors are the client's: it was slow, or left.
            let _ = tokio::time::timeout(EXCHANGE, connection).await;
            drop(slot);
        });
    }
}

pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route(STATUS_PATH, get(status))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let ctx = &admin.ctx;
    ctx.metrics.queue_depth.set(as_gauge(ctx.queue.depth()));
    ctx.metrics.failing_objects.set(as_gauge(ctx.backoff.failing()));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], ctx.metrics.encode())
}

fn as_gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Fails when work does not get on, so that the kubelet starts the process anew.
async fn livez(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.ctx.queue.oldest_running() {
        Some(since) if since.elapsed() > STUCK_AFTER => {
            let message = format!("a pass has been running for {} s", since.elapsed().as_secs());
            (StatusCode::INTERNAL_SERVER_ERROR, message)
        }
        _ => (StatusCode::OK, "ok".to_owned()),
    }
}

/// A standby is ready too: it could lead at once.
async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    if *admin.draining.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down".to_owned());
    }
    let unsynced = admin.ctx.caches.unsynced();
    if unsynced.is_empty() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the first list of {}", unsynced.join(", ")))
    }
}

async fn status(State(admin): State<Admin>) -> Json<ProcessStatus> {
    let state = if *admin.draining.borrow() {
        internal::State::Draining
    } else if admin.ctx.caches.unsynced().is_empty() {
        internal::State::Ready
    } else {
        internal::State::Loading
    };
    Json(ProcessStatus {
        api_version: STATUS_VERSION.to_owned(),
        component: "operator".to_owned(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        state,
        models: Vec::new(),
        registry: Vec::new(),
        startup: Startup::default(),
        progress: None,
        requests: Requests::default(),
    })
}
