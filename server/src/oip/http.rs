//! `/v2` and what is below it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::{
    EXTENSIONS, SERVER, SERVER_VERSION, body,
    contract::{self, Delivery, InferRequest, Kind, Port, Work},
    generate, grpc,
    path::{ModelPath, Verb},
    repository,
    run::{self, Since},
    terms::Terms,
};
use crate::{
    api::{self, ApiError, Clock, models, off_thread, read_any, respond},
    app::App,
    internal,
    model::Served,
    registry::{Chosen, Lease, Registry},
    trust::Caller,
};

/// A refusal in the words of this protocol.
pub(crate) struct Refused(ApiError);

impl From<ApiError> for Refused {
    fn from(err: ApiError) -> Self {
        Self(err)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.0.to_string() })).into_response();
        // With the status and headers that it has elsewhere.
        let mut response = self.0.into_response();
        *response.body_mut() = body.into_body();
        response.headers_mut().remove(http::header::CONTENT_LENGTH);
        response
    }
}

/// The status that a call is counted as which has one of its own beside HTTP's.
#[derive(Clone, Copy)]
pub(crate) struct Counted(pub(crate) StatusCode);

const MODELS: &str = "/v2/models/";
const REPOSITORY: &str = "/v2/repository/models/";
const LOAD: &str = "/v2/repository/models/{model}/load";
const UNLOAD: &str = "/v2/repository/models/{model}/unload";

/// Every path with its method, for documents and metrics.
pub(crate) fn documented() -> Vec<(&'static str, &'static str)> {
    let mut all = vec![
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        ("post", "/v2/repository/index"),
        ("post", LOAD),
        ("post", UNLOAD),
    ];
    for verb in Verb::all() {
        let method = if verb.is_post() { "post" } else { "get" };
        all.extend([false, true].map(|versioned| (method, verb.route(versioned))));
    }
    all
}

pub(crate) fn router() -> Router<Arc<App>> {
    Router::new()
        .route("/v2", any(server))
        .route("/v2/health/live", any(live))
        .route("/v2/health/ready", any(ready))
        .route("/v2/models/{*path}", any(model))
        .route("/v2/repository/index", any(index))
        .route("/v2/repository/models/{*path}", any(change))
}

/// Which of the documented paths this one is, where the router cannot tell.
pub(crate) fn label(path: &str) -> Option<&'static str> {
    if let Some(method) = grpc::label(path) {
        return Some(method);
    }
    if let Some(rest) = path.strip_prefix(MODELS) {
        let rest = percent_decode_str(rest).decode_utf8().ok()?;
        let path = ModelPath::parse(&rest);
        return Some(path.verb.route(path.version.is_some()));
    }
    match path.strip_prefix(REPOSITORY)?.rsplit_once('/') {
        Some((_, "load")) => Some(LOAD),
        Some((_, "unload")) => Some(UNLOAD),
        _ => None,
    }
}

fn need(method: &Method, post: bool) -> Result<(), ApiError> {
    match (method, post) {
        (&Method::GET | &Method::HEAD, false) | (&Method::POST, true) => Ok(()),
        (_, false) => Err(ApiError::Method { allowed: "GET, HEAD" }),
        (_, true) => Err(ApiError::Method { allowed: "POST" }),
    }
}

async fn server(method: Method) -> Result<Json<Value>, Refused> {
    need(&method, false)?;
    Ok(Json(json!({ "name": SERVER, "version": SERVER_VERSION, "extensions": EXTENSIONS })))
}

async fn live(app: State<Arc<App>>, method: Method) -> Result<Response, Refused> {
    need(&method, false)?;
    Ok(probe("live", internal::livez(app).await.status()))
}

async fn ready(app: State<Arc<App>>, method: Method) -> Result<Response, Refused> {
    need(&method, false)?;
    Ok(probe("ready", internal::readyz(app).await.status()))
}

fn probe(name: &str, status: StatusCode) -> Response {
    let mut answer = Map::new();
    answer.insert(name.to_owned(), status.is_success().into());
    (status, Json(answer)).into_response()
}

async fn index(State(app): State<Arc<App>>, request: Request) -> Result<Json<Value>, Refused> {
    need(request.method(), true)?;
    let (body, _room) = read_any(&app, 0, request).await?;
    let wanted: Map<String, Value> = match body.trim_ascii().is_empty() {
        true => Map::new(),
        false => serde_json::from_slice(&body).map_err(|err| body::bad_json(&err))?,
    };
    let ready = match wanted.get("ready") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(ready)) => *ready,
        Some(_) => return Err(ApiError::invalid("ready", "`ready` must be true or false").into()),
    };
    let models = repository::index(&app, ready).await?.into_iter().map(|model| {
        let mut line = json!({ "name": model.name, "version": model.version, "state": model.state });
        if !model.reason.is_empty() {
            line["reason"] = model.reason.into();
        }
        line
    });
    Ok(Json(models.collect()))
}

/// The rest of a path behind `prefix`, without escapes.
fn rest(request: &Request, prefix: &str) -> Result<String, ApiError> {
    let path = request.uri().path();
    let rest = percent_decode_str(path.strip_prefix(prefix).unwrap_or_default()).decode_utf8();
    rest.map(|rest| rest.into_owned()).map_err(|_| no_route(path))
}

fn no_route(path: &str) -> ApiError {
    ApiError::NoRoute { path: path.chars().take(200).collect() }
}

async fn change(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    let path = rest(&request, REPOSITORY)?;
    let (name, verb) = match path.rsplit_once('/') {
        Some((name, verb @ ("load" | "unload"))) => (name, verb),
        _ => return Err(no_route(request.uri().path()).into()),
    };
    need(request.method(), true)?;
    let caller = Caller::of(&request);
    let parameters = change_parameters(&app, request).await?;
    match verb {
        "load" => {
            repository::check_load(&parameters)?;
            repository::load(&app, &caller, name).await?;
        }
        _ => {
            check_unload(&parameters)?;
            repository::unload(&app, &caller, name)?;
        }
    }
    Ok(StatusCode::OK.into_response())
}

/// Models here have no dependents; Triton's clients always say whether those are meant.
fn check_unload(parameters: &[String]) -> Result<(), ApiError> {
    match parameters.iter().find(|name| *name != "unload_dependents") {
        None => Ok(()),
        Some(name) => repository::check_load(std::slice::from_ref(name)),
    }
}

/// The parameters of a body that may be empty.
async fn change_parameters(app: &Arc<App>, request: Request) -> Result<Vec<String>, ApiError> {
    let (body, _room) = read_any(app, 0, request).await?;
    if body.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let body: Map<String, Value> = serde_json::from_slice(&body).map_err(|err| body::bad_json(&err))?;
    match body.get("parameters") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(parameters)) => Ok(parameters.keys().cloned().collect()),
        Some(_) => Err(ApiError::invalid("parameters", "`parameters` must be an object")),
    }
}

async fn model(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    let path = rest(&request, MODELS)?;
    let path = ModelPath::parse(&path);
    need(request.method(), path.verb.is_post())?;
    Ok(answered(&app, &path, request).await?)
}

/// The model of this name and version.
pub(crate) fn found(models: &Registry, name: &str, version: Option<&str>) -> Result<Lease, ApiError> {
    models.named(name, number(name, version, models)?)
}

/// A version as clients write it; an empty one is any.
fn number(name: &str, version: Option<&str>, models: &Registry) -> Result<Option<u64>, ApiError> {
    let Some(version) = version.filter(|version| !version.is_empty()) else { return Ok(None) };
    version.parse().map(Some).map_err(|_| {
        let asked = format!("{name} in version {version}").chars().take(200).collect();
        ApiError::NoSuchModel { asked, served: models.names() }
    })
}

/// Where requests may load models: this one, so that [`found`] finds it.
pub(crate) async fn demanded(
    app: &App,
    name: &str,
    version: Option<&str>,
    clock: Clock,
) -> Result<Option<Lease>, ApiError> {
    api::demanded(app, name, number(name, version, models(app)?)?, clock).await
}

async fn answered(app: &Arc<App>, path: &ModelPath<'_>, request: Request) -> Result<Response, ApiError> {
    // Before the body, where it tells nothing of the model; a body that nobody reads would hold up the connection while
    // one is loaded.
    let chosen = request.extensions().get::<Chosen>().cloned().unwrap_or_default();
    let served = || -> Result<Lease, ApiError> {
        let served = found(models(app)?, path.model, path.version)?;
        chosen.set(&served);
        Ok(served)
    };
    let asks = matches!(path.verb, Verb::Infer | Verb::Generate | Verb::GenerateStream);
    if !(asks && models(app)?.loads_on_demand()) {
        served()?;
    }
    match path.verb {
        Verb::Metadata => Ok(Json(metadata(app, &*served()?)?).into_response()),
        Verb::Config => Ok(Json(config(&*served()?)?).into_response()),
        Verb::Ready => {
            let status = internal::readyz(State(Arc::clone(app))).await.status();
            let served = served()?;
            let answer = json!({ "name": served.name, "ready": status.is_success() });
            Ok((status, Json(answer)).into_response())
        }
        Verb::Infer => {
            let json_bytes = body::json_bytes(request.headers())?;
            let parse = move |_: Kind, body: &Bytes| body::parse(body, json_bytes);
            let asked = asked(app, path, request, parse, Delivery::Whole).await?;
            let binary = asked.terms.binary_output;
            let answer = run::whole(app, asked.work, &asked.terms, asked.since).await?;
            Ok(body::response(path.model, &asked.version, asked.id, &answer, binary))
        }
        Verb::Generate => {
            let asked = asked(app, path, request, generate::parse, Delivery::Whole).await?;
            let answer = run::whole(app, asked.work, &asked.terms, asked.since).await?;
            Ok(Json(generate::fields(path.model, &asked.version, &asked.id, answer)).into_response())
        }
        Verb::GenerateStream => {
            let asked = asked(app, path, request, generate::parse, Delivery::Streamed).await?;
            let Work::Generate(job) = asked.work else {
                let answer = run::whole(app, asked.work, &asked.terms, asked.since).await?;
                return Ok(generate::single(&generate::fields(
                    path.model,
                    &asked.version,
                    &asked.id,
                    answer,
                )));
            };
            let job = asked.since.bound(app, &asked.terms, *job);
            respond(
                app,
                job,
                generate::Events { model: path.model.to_owned(), version: asked.version, id: asked.id },
            )
            .await
        }
    }
}

/// A request that is read.
struct Asked {
    work: Work,
    version: String,
    id: String,
    terms: Terms,
    since: Since,
}

/// Reads the body, and makes work of it on a blocking thread.
async fn asked(
    app: &Arc<App>,
    path: &ModelPath<'_>,
    request: Request,
    parse: impl FnOnce(Kind, &Bytes) -> Result<(InferRequest, Terms), ApiError> + Send + 'static,
    delivery: Delivery,
) -> Result<Asked, ApiError> {
    let clock = Clock::start(app, &request);
    let since = Since { arrived: clock.arrived, caller: Caller::of(&request) };
    let chosen = request.extensions().get::<Chosen>().cloned().unwrap_or_default();
    let (body, room) = read_any(app, u32::MAX, request).await?;
    let (name, version) = (path.model.to_owned(), path.version.map(str::to_owned));
    let held = match models(app)?.loads_on_demand() {
        false => None,
        true => {
            let asked = body.clone();
            let timeout = off_thread(app, move |_| Ok(body::timeout(&asked))).await?;
            demanded(app, &name, version.as_deref(), clock.within(timeout)).await?
        }
    };
    let work = off_thread(app, move |app| {
        let _room = (room, held);
        let served = found(models(app)?, &name, version.as_deref())?;
        chosen.set(&served);
        let (mut request, terms) = parse(Kind::of(&served)?, &body)?;
        let id = std::mem::take(&mut request.id);
        let work = contract::work(app, &served, request, delivery)?;
        Ok(Asked { work, version: served.version.to_string(), id, terms, since })
    });
    clock.bound(work).await
}

fn metadata(app: &App, served: &Served) -> Result<Value, ApiError> {
    let kind = Kind::of(served)?;
    let tensor = |port: &Port| json!({ "name": port.name, "datatype": port.datatype, "shape": port.shape });
    Ok(json!({
        "name": served.name, "versions": app.models.versions(served), "platform": PLATFORM,
        "inputs": kind.inputs().iter().map(tensor).collect::<Vec<_>>(),
        "outputs": [tensor(&kind.output())]
    }))
}

/// What computes, in Triton's words.
pub(crate) const PLATFORM: &str = "candela";

fn config(served: &Served) -> Result<Value, ApiError> {
    let kind = Kind::of(served)?;
    let input = |port: &Port| {
        let datatype = config_datatype(port.datatype);
        let mut tensor = json!({ "name": port.name, "data_type": datatype, "dims": port.shape });
        if port.optional {
            tensor["optional"] = true.into();
        }
        tensor
    };
    Ok(json!({
        "name": served.name, "platform": PLATFORM, "backend": PLATFORM, "max_batch_size": 0,
        "input": kind.inputs().iter().map(input).collect::<Vec<_>>(),
        "output": [input(&kind.output())],
        "model_transaction_policy": { "decoupled": kind == Kind::Generate }
    }))
}

/// Names of types in a model's configuration.
pub(crate) fn config_datatype(datatype: &str) -> String {
    match datatype {
        "BYTES" => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{other}"),
    }
}
