//! The server as a `tower::Service`, which is what a kube client talks to.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Future;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use serde_json::Value;
use tower::Service;

use super::answer::ApiError;
use super::server::FakeCluster;
use super::watch::WatchStream;

pub(super) type Broken = io::Error;
type AnswerBody = UnsyncBoxBody<Bytes, Broken>;

pub(super) enum Answer {
    Json(u16, Value),
    Watch(Box<WatchStream>),
    Broken,
}

impl Answer {
    pub(super) fn of(answer: Result<Value, ApiError>) -> Self {
        answer.map_or_else(|error| Self::error(&error), |value| Answer::Json(200, value))
    }

    pub(super) fn error(error: &ApiError) -> Self {
        Answer::Json(error.code, error.to_json())
    }

    pub(super) fn code(&self) -> u16 {
        match self {
            Answer::Json(code, _) => *code,
            Answer::Watch(_) => 200,
            Answer::Broken => 0,
        }
    }
}

/// [`FakeCluster`] as one client sees it.
#[derive(Clone, Debug)]
pub struct ApiService {
    pub(super) cluster: FakeCluster,
    pub(super) client: String,
}

impl Service<Request<Body>> for ApiService {
    type Response = Response<AnswerBody>;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { cluster, client } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await.map_err(|error| io::Error::other(error.to_string()))?.to_bytes();
            // One turn of the scheduler between sending and handling, as on a wire.
            tokio::task::yield_now().await;
            let answer = cluster.handle(&client, &Request::from_parts(parts, bytes));
            let response = Response::builder().header("content-type", "application/json");
            Ok(match answer {
                Answer::Broken => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                Answer::Json(code, value) => {
                    let bytes = Full::new(Bytes::from(value.to_string()));
                    let body = bytes.map_err(|never: Infallible| match never {});
                    response.status(code).body(UnsyncBoxBody::new(body))?
                }
                Answer::Watch(stream) => response.status(200).body(stream.into_body())?,
            })
        })
    }
}
