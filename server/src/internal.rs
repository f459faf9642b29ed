//! The internal listener: metrics, probes and the status contract.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{self, Request},
    response::{IntoResponse, Response},
    routing::get,
};
use candela_wire::{
    internal::{ProcessStatus, Requests, STATUS_PATH, STATUS_VERSION, Startup, State},
    problem::{self, Problem},
};
use http::{HeaderMap, StatusCode, header};

use crate::{
    app::App,
    health,
    lifecycle::Stage,
    metrics::{Format, Metrics, Now},
    progress::Progress,
};

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/startupz", get(startupz))
        .route(STATUS_PATH, get(status))
        .fallback(nothing_here)
        .with_state(app)
}

/// What the init step answers: it has no model, only progress.
pub(crate) fn fetch_router(metrics: Arc<Metrics>, progress: Arc<Progress>) -> Router {
    let (live, waiting, told) = (Arc::clone(&progress), Arc::clone(&progress), Arc::clone(&progress));
    let text = move |headers: HeaderMap| async move {
        let format = Format::wanted(&headers);
        exposition(metrics.text(Now::default(), &progress, format), format)
    };
    Router::new()
        .route("/metrics", get(text))
        .route("/livez", get(move || async move { (StatusCode::OK, starting(&live)) }))
        .route("/readyz", get(move || async move { unavailable(starting(&waiting)) }))
        .route(STATUS_PATH, get(move || async move { Json(fetching(&told)) }))
        .fallback(nothing_here)
}

/// The same contract as the server's, so that every process can be asked alike.
fn fetching(progress: &Progress) -> ProcessStatus {
    ProcessStatus {
        api_version: STATUS_VERSION.to_owned(),
        component: "fetch".to_owned(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        state: State::Loading,
        models: Vec::new(),
        registry: Vec::new(),
        startup: Startup::default(),
        progress: Some(progress.report()),
        requests: Requests::default(),
    }
}

async fn metrics_text(extract::State(app): extract::State<Arc<App>>, headers: HeaderMap) -> Response {
    let format = Format::wanted(&headers);
    exposition(app.metrics.text(app.now(), &app.progress, format), format)
}

fn exposition(text: String, format: Format) -> Response {
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

/// Alive while loading, however long that takes (the stall watchdog looks after it), and afterwards as long as
/// the engines get on.
pub(crate) async fn livez(extract::State(app): extract::State<Arc<App>>) -> Response {
    if !app.models.are_all_loaded() {
        return (StatusCode::OK, starting(&app.progress)).into_response();
    }
    health::stuck(&app, health::Probe::Live).map_or_else(|| "alive\n".into_response(), unavailable)
}

fn unavailable(message: String) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
}

/// An engine that is stuck loses its traffic before `/livez` gives it up: if it comes round, nothing is lost by a restart.
pub(crate) async fn readyz(extract::State(app): extract::State<Arc<App>>) -> Response {
    match (app.lifecycle.stage(), app.models.are_all_loaded()) {
        (Stage::Ready, true) => {
            let stuck = health::stuck(&app, health::Probe::Ready);
            stuck.map_or_else(|| "ready\n".into_response(), unavailable)
        }
        (Stage::Loading | Stage::Ready, _) => unavailable(starting(&app.progress)),
        (Stage::Draining | Stage::Closing | Stage::Ending, _) => unavailable("draining\n".to_owned()),
    }
}

/// Passes while loading moves, so that no load is killed for being slow; traffic waits for `/readyz`.
async fn startupz(extract::State(app): extract::State<Arc<App>>) -> Response {
    if app.models.are_all_loaded() {
        return "started\n".into_response();
    }
    let stalled = app.progress.still_for() >= Duration::from_secs(app.config.startup_stall_seconds.into());
    if stalled { unavailable(starting(&app.progress)) } else { starting(&app.progress).into_response() }
}

fn starting(progress: &Progress) -> String {
    let now = progress.report();
    let total = now.total_bytes.map_or_else(|| "?".to_owned(), |total| total.to_string());
    format!("starting: phase {}, {} of {total} bytes\n", now.phase, now.done_bytes)
}

async fn status(extract::State(app): extract::State<Arc<App>>) -> Json<ProcessStatus> {
    let now = app.now();
    let loading = app.lifecycle.stage() == Stage::Loading;
    Json(ProcessStatus {
        api_version: STATUS_VERSION.to_owned(),
        component: "server".to_owned(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
        state: app.lifecycle.state(),
        models: app.models.fixed().map(|served| served.status()).collect(),
        registry: app.models.status(),
        startup: app.startup.get().cloned().unwrap_or_default(),
        progress: loading.then(|| app.progress.report()),
        requests: Requests { in_flight: now.in_flight, queued: now.queued as u64 },
    })
}

async fn nothing_here(request: Request) -> Response {
    let detail =
        format!("there is nothing at `{}`", request.uri().path().chars().take(200).collect::<String>());
    let problem = Problem::of_status(StatusCode::NOT_FOUND, detail);
    let content_type = [(header::CONTENT_TYPE, problem::CONTENT_TYPE)];
    (StatusCode::NOT_FOUND, content_type, Json(problem).into_response().into_body()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_init_step_answers_as_every_process_does() {
        use tower::ServiceExt as _;

        let progress = Arc::new(Progress::new(crate::progress::Phase::Fetch));
        progress.add(7);
        let router = fetch_router(Metrics::new(), progress);
        let ask = async |path: &str| {
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            let code = answer.status().as_u16();
            (code, axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap())
        };
        assert_eq!(ask("/livez").await.0, 200);
        assert_eq!(ask("/metrics").await.0, 200);
        assert_eq!(ask("/readyz").await.0, 503, "it serves nothing");
        let (code, body) = ask(STATUS_PATH).await;
        let status: ProcessStatus = serde_json::from_slice(&body).unwrap();
        assert_eq!((code, status.component.as_str(), status.state), (200, "fetch", State::Loading));
        assert_eq!(status.progress.map(|progress| progress.done_bytes), Some(7));
    }
}
