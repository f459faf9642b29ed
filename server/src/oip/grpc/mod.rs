//! `inference.GRPCInferenceService`. Its messages are made by `candela-oip`; connections are the public listener's own.

mod convert;
mod metered;
mod stream;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_oip::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    repository_index_response::ModelIndex,
};
use http::{StatusCode, Version};
use tokio::time::Instant;
use tonic::{
    Code, Status, Streaming,
    codegen::{BoxStream, Service as _},
    metadata::{MetadataMap, MetadataValue},
};

use super::{
    EXTENSIONS, SERVER, SERVER_VERSION,
    contract::{self, Delivery, Kind, Work},
    http::{Counted, Refused, demanded, found},
    repository,
    run::{self, Since},
    terms::Terms,
};
use crate::{
    api::{ApiError, models, off_thread},
    app::App,
    internal,
    registry::Chosen,
    trust::Caller,
};
use metered::{Metered, Room};

pub(crate) const ROUTE: &str = "/inference.GRPCInferenceService/{method}";
const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Those that there are; the others answer UNIMPLEMENTED.
const METHODS: [&str; 11] = [
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelConfig",
    "/inference.GRPCInferenceService/ModelInfer",
    STREAM_INFER,
    "/inference.GRPCInferenceService/RepositoryIndex",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
];

/// What every method knows of its request, from its head.
#[derive(Clone)]
struct Known {
    since: Since,
    chosen: Chosen,
    room: Room,
    /// Of the header `grpc-timeout`.
    terms: Terms,
}

/// One request of any method.
pub(crate) async fn handle(State(app): State<Arc<App>>, mut request: Request) -> Response {
    let is_grpc = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = is_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !is_grpc || request.version() < Version::HTTP_2 {
        let what = "this is a method of gRPC: call it by HTTP/2 with prior knowledge, as `application/grpc`";
        return Refused::from(ApiError::invalid("content-type", what)).into_response();
    }
    let known = Known {
        since: Since { arrived: Instant::now(), caller: Caller::of(&request) },
        chosen: request.extensions().get::<Chosen>().cloned().unwrap_or_default(),
        room: Room::default(),
        terms: Terms { timeout: convert::timeout(request.headers()), ..Terms::default() },
    };
    let path = request.uri().path();
    let is_stream = path == STREAM_INFER;
    let (room, limit) = (known.room.clone(), crate::api::limit_bytes(&app, u32::MAX));
    request.extensions_mut().insert(known);
    let metered = |body| Body::new(Metered::new(body, Arc::clone(&app), room, limit, is_stream));
    let request = request.map(metered);
    let service = GrpcInferenceServiceServer::new(Service { app: Arc::clone(&app) });
    let mut service = service.max_decoding_message_size(limit).max_encoding_message_size(usize::MAX);
    let mut response = match service.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    };
    let code =
        response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    response.extensions_mut().insert(Counted(http_status(code)));
    response
}

/// A method's path as metrics name it.
pub(crate) fn label(path: &str) -> Option<&'static str> {
    path.starts_with("/inference.GRPCInferenceService/")
        .then(|| METHODS.into_iter().find(|method| *method == path).unwrap_or(ROUTE))
}

/// A refusal before any method is reached.
pub(crate) fn refused(err: &ApiError) -> Response {
    status(err).into_http::<Body>()
}

/// What a call is counted as beside those over HTTP.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A refusal in gRPC's words.
fn status(err: &ApiError) -> Status {
    let code = match err.status().as_u16() {
        400 | 405 | 413 | 415 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        429 => Code::ResourceExhausted,
        408 | 504 => Code::DeadlineExceeded,
        503 => Code::Unavailable,
        _ => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    if let Some(wait) = err.retry_after() {
        // What gRPC's own retries keep to.
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        metadata.insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
    }
    Status::with_metadata(code, err.to_string(), metadata)
}

struct Service {
    app: Arc<App>,
}

impl Service {
    async fn is_ready(&self) -> bool {
        internal::readyz(State(Arc::clone(&self.app))).await.status().is_success()
    }
}

fn known<T>(request: &tonic::Request<T>) -> Result<Known, Status> {
    request.extensions().get::<Known>().cloned().ok_or_else(|| Status::internal("the request lost its head"))
}

/// An empty version is any.
fn version(version: &str) -> Option<&str> {
    Some(version).filter(|version| !version.is_empty())
}

/// A request that is read.
struct Asked {
    work: Work,
    version: String,
    id: String,
    terms: Terms,
}

/// Makes work of a message on a blocking thread.
async fn asked(
    app: &Arc<App>,
    known: &Known,
    message: ModelInferRequest,
    delivery: Delivery,
) -> Result<Asked, ApiError> {
    let (room, chosen, timeout) = (known.room.take(), known.chosen.clone(), known.terms.timeout);
    let clock = known.since.clock(app).within(timeout).within(convert::own_timeout(&message));
    let held = demanded(app, &message.model_name, version(&message.model_version), clock).await?;
    let work = off_thread(app, move |app| {
        let _room = (room, held);
        let served = found(models(app)?, &message.model_name, version(&message.model_version))?;
        chosen.set(&served);
        let (mut request, terms) = convert::request(message)?;
        let id = std::mem::take(&mut request.id);
        let work = contract::work(app, &served, request, delivery)?;
        let shorter = terms.timeout.into_iter().chain(timeout).min();
        Ok(Asked {
            work,
            version: served.version.to_string(),
            id,
            terms: Terms { timeout: shorter, ..terms },
        })
    });
    clock.bound(work).await
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: tonic::Request<ServerLiveRequest>,
    ) -> Result<tonic::Response<ServerLiveResponse>, Status> {
        let live = internal::livez(State(Arc::clone(&self.app))).await.status().is_success();
        Ok(tonic::Response::new(ServerLiveResponse { live }))
    }

    async fn server_ready(
        &self,
        _: tonic::Request<ServerReadyRequest>,
    ) -> Result<tonic::Response<ServerReadyResponse>, Status> {
        Ok(tonic::Response::new(ServerReadyResponse { ready: self.is_ready().await }))
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<ServerMetadataRequest>,
    ) -> Result<tonic::Response<ServerMetadataResponse>, Status> {
        Ok(tonic::Response::new(ServerMetadataResponse {
            name: SERVER.to_owned(),
            version: SERVER_VERSION.to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_ready(
        &self,
        request: tonic::Request<ModelReadyRequest>,
    ) -> Result<tonic::Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version: wanted } = request.into_inner();
        let there = match models(&self.app) {
            Ok(models) => match found(models, &name, version(&wanted)) {
                Ok(_) => Ok(true),
                // As Triton has it: a model that is not loaded is not ready, and asking that is no mistake.
                Err(ApiError::Unavailable { .. } | ApiError::Loading { .. }) => Ok(false),
                Err(err) => Err(err),
            },
            Err(_) => Ok(false),
        };
        let ready = there.map_err(|err| status(&err))? && self.is_ready().await;
        Ok(tonic::Response::new(ModelReadyResponse { ready }))
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<ModelMetadataRequest>,
    ) -> Result<tonic::Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version: wanted } = request.into_inner();
        let of = || convert::metadata(&self.app, &*found(models(&self.app)?, &name, version(&wanted))?);
        of().map(tonic::Response::new).map_err(|err| status(&err))
    }

    async fn model_config(
        &self,
        request: tonic::Request<ModelConfigRequest>,
    ) -> Result<tonic::Response<ModelConfigResponse>, Status> {
        let ModelConfigRequest { name, version: wanted } = request.into_inner();
        let of = || convert::config(&*found(models(&self.app)?, &name, version(&wanted))?);
        of().map(tonic::Response::new).map_err(|err| status(&err))
    }

    async fn model_infer(
        &self,
        request: tonic::Request<ModelInferRequest>,
    ) -> Result<tonic::Response<ModelInferResponse>, Status> {
        let known = known(&request)?;
        let message = request.into_inner();
        let name = message.model_name.clone();
        let answer = async {
            let Asked { work, version, id, terms } =
                asked(&self.app, &known, message, Delivery::Whole).await?;
            let answer = run::whole(&self.app, work, &terms, known.since).await?;
            Ok(convert::response(name, version, id, answer))
        };
        answer.await.map(tonic::Response::new).map_err(|err: ApiError| status(&err))
    }

    async fn model_stream_infer(
        &self,
        request: tonic::Request<Streaming<ModelInferRequest>>,
    ) -> Result<tonic::Response<BoxStream<ModelStreamInferResponse>>, Status> {
        let known = known(&request)?;
        let responses = stream::responses(Arc::clone(&self.app), known, request.into_inner());
        Ok(tonic::Response::new(Box::pin(responses)))
    }

    async fn repository_index(
        &self,
        request: tonic::Request<RepositoryIndexRequest>,
    ) -> Result<tonic::Response<RepositoryIndexResponse>, Status> {
        let models = repository::index(&self.app, request.into_inner().ready).await;
        let models = models.map_err(|err| status(&err))?.into_iter().map(|model| ModelIndex {
            name: model.name,
            version: model.version,
            state: model.state.to_owned(),
            reason: model.reason,
        });
        Ok(tonic::Response::new(RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: tonic::Request<RepositoryModelLoadRequest>,
    ) -> Result<tonic::Response<RepositoryModelLoadResponse>, Status> {
        let caller = known(&request)?.since.caller;
        let RepositoryModelLoadRequest { model_name, parameters, .. } = request.into_inner();
        let parameters: Vec<String> = parameters.into_keys().collect();
        let load = async {
            repository::check_load(&parameters)?;
            repository::load(&self.app, &caller, &model_name).await
        };
        load.await.map_err(|err| status(&err))?;
        Ok(tonic::Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: tonic::Request<RepositoryModelUnloadRequest>,
    ) -> Result<tonic::Response<RepositoryModelUnloadResponse>, Status> {
        let caller = known(&request)?.since.caller;
        let name = request.into_inner().model_name;
        repository::unload(&self.app, &caller, &name).map_err(|err| status(&err))?;
        Ok(tonic::Response::new(RepositoryModelUnloadResponse {}))
    }
}
