//! The public listener: OpenAI routes, what they share, and what happens off them.

mod answer;
mod body;
mod chat;
mod choices;
mod completions;
mod encoders;
mod error;
mod generation;
mod native;
mod openapi;
mod prepare;
mod responses;
mod token_classify;
mod tools;

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{MatchedPath, Path, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use candela_wire::{
    openai::{Model, ModelList},
    trust::{AUTHORIZATION, MAX_REQUEST_ID_BYTES, REQUEST_ID as REQUEST_ID_NAME},
};
use http::{HeaderName, HeaderValue, Version, header};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    app::App,
    lifecycle::Stage,
    metrics::Answer,
    model::Served,
    oip,
    registry::{Chosen, Registry},
    telemetry,
};
pub(crate) use answer::{Choice, Piece, Writer, event, event_stream, finish_reason, respond};
pub(crate) use body::{Budget, check_values, limit_bytes, read_any};
pub(crate) use encoders::{Job as EncoderJob, computed, embeddings_job, relevance, rerank_job, shortened};
pub(crate) use error::ApiError;
pub(crate) use generation::{Generation, Next as Happening};
pub(crate) use native::generate::parse as generate_job;
pub(crate) use prepare::{Clock, Job, demanded, off_thread, request_limit};

const REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID_NAME);
const MODEL: HeaderName = HeaderName::from_static("x-candela-model");
const REVISION: HeaderName = HeaderName::from_static("x-candela-revision");

/// Every route with its method, for the router and for the check against the OpenAPI document.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Arc<App>>)> {
    vec![
        ("post", "/v1/chat/completions", post(chat::handle)),
        ("post", "/v1/completions", post(completions::handle)),
        ("post", "/v1/responses", post(responses::handle)),
        ("post", "/v1/embeddings", post(encoders::embeddings)),
        ("post", "/v1/rerank", post(encoders::rerank)),
        ("post", "/v2/rerank", post(encoders::rerank)),
        ("post", "/rerank", post(encoders::rerank_native)),
        ("post", "/embed", post(encoders::embed)),
        ("post", "/token-classify", post(token_classify::handle)),
        ("get", "/v1/models", get(list)),
        ("get", "/v1/models/{*model}", get(model)),
        ("post", "/tokenize", post(native::tokenize::tokenize)),
        ("post", "/detokenize", post(native::tokenize::detokenize)),
        ("post", "/generate", post(native::generate::handle)),
        ("post", "/summarize", post(native::summarize::handle)),
        ("get", "/openapi.json", get(openapi::handle)),
    ]
}

pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for (method, path, handler) in routes() {
        // Axum answers HEAD for GET routes by itself.
        let allowed = if method == "get" { "GET, HEAD" } else { "POST" };
        let wrong_method = move || async move {
            let err = ApiError::Method { allowed };
            refused(path, err)
        };
        router = router.route(path, handler.fallback(wrong_method));
    }
    router
        .merge(oip::http::router())
        .route(oip::grpc::ROUTE, axum::routing::any(oip::grpc::handle))
        .fallback(nothing_here)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Around every request: its id, who answers, the drain's `Connection: close`, and one count.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(&request);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = oip::http::label(request.uri().path()).unwrap_or_else(|| routes_label(path.as_deref()));
    let is_http1 = request.version() < Version::HTTP_2;
    let began = Instant::now();
    let chosen = Chosen::default();
    request.extensions_mut().insert(chosen.clone());
    let caller = app.trust.caller(request.headers());
    // Nobody behind this needs it.
    request.headers_mut().remove(AUTHORIZATION);
    let trusted = caller.as_ref().is_ok_and(|caller| caller.trusted);
    let span =
        app.traces.as_ref().and_then(|traces| traces.begin(request.method(), route, request.headers()));
    let mut response = match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            telemetry::scoped(span.clone(), next.run(request)).await
        }
        Err(err) => refused(request.uri().path(), err),
    };
    let counted = response.extensions().get::<oip::http::Counted>().map(|counted| counted.0);
    let status = counted.unwrap_or_else(|| response.status());
    if let Some(span) = span {
        span.answered(status);
    }
    let answer = Answer { route, status: status.as_u16() };
    app.metrics.requests.get_or_create(&answer).inc();
    app.metrics.answer_time.get_or_create(&answer).observe(began.elapsed().as_secs_f64());
    debug!(route, status = response.status().as_u16(), request_id = ?id, trusted, "answered");
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if let Some(answering) = app.models.answering(&chosen) {
        for (name, value) in [(MODEL, &answering.name), (REVISION, &answering.revision)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
    }
    if !is_http1 {
        // HTTP/2 has no such header: a connection ends by itself, and its streams beside it.
        headers.remove(header::CONNECTION);
    } else if app.lifecycle.stage() >= Stage::Draining {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The client's own id if it is short and plain, else a new one. It only names a request, so anybody may choose it.
fn request_id(request: &Request) -> HeaderValue {
    let plain = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match request.headers().get(REQUEST_ID).filter(plain) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&format!("req-{}", random_hex()))
            .expect("letters, digits and a dash are a header value"),
    }
}

pub(crate) fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 12]>())
}

fn routes_label(path: Option<&str>) -> &'static str {
    static KNOWN: std::sync::LazyLock<Vec<&str>> = std::sync::LazyLock::new(|| {
        let ours = routes().into_iter().map(|(_, known, _)| known);
        ours.chain(oip::http::documented().into_iter().map(|(_, known)| known)).collect()
    });
    KNOWN.iter().copied().find(|known| Some(*known) == path).unwrap_or("none")
}

/// In the shape that clients of this path read: OpenAI's, the Open Inference Protocol's, or else problem+json.
fn refused(path: &str, err: ApiError) -> Response {
    match path.split('/').nth(1) {
        // Cohere's.
        Some("v2") if path.starts_with("/v2/rerank") => err.into_response(),
        Some(part) if part.starts_with("v1") => err.into_response(),
        Some(part) if part.starts_with("inference.") => oip::grpc::refused(&err),
        Some("v2") => oip::http::Refused::from(err).into_response(),
        _ => native::Problem::from(err).into_response(),
    }
}

async fn nothing_here(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    refused(request.uri().path(), ApiError::NoRoute { path })
}

/// The models, all of them loaded, or why they are not.
pub(crate) fn models(app: &App) -> Result<&Registry, ApiError> {
    if app.models.are_all_loaded() {
        return Ok(&app.models);
    }
    Err(match app.lifecycle.stage() {
        Stage::Loading | Stage::Ready => ApiError::Loading { phase: app.progress.phase().name() },
        Stage::Draining | Stage::Closing | Stage::Ending => ApiError::ShuttingDown,
    })
}

async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, ApiError> {
    let data = models(&app)?.listed();
    Ok(Json(ModelList { object: "list".to_owned(), data }))
}

async fn model(
    State(app): State<Arc<App>>,
    Extension(chosen): Extension<Chosen>,
    Path(asked): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let served = models(&app)?.named(&asked, None)?;
    chosen.set(&served);
    Ok(Json(served.listed(asked)))
}

/// For a name that is not that of the model at hand.
fn no_such_model(asked: &str, served: &Served) -> ApiError {
    ApiError::NoSuchModel { asked: asked.chars().take(100).collect(), served: served.name.clone() }
}
