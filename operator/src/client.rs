//! One place for everything that every call to the API server must obey: a deadline, a bound on concurrency, a rate,
//! the write fence, a metric. It wraps any [`kube::Client`], the real one as well as an in-memory server's.
//! No call is repeated here: retries live in `backoff.rs` alone (kube's own are turned off in [`connect`]).

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant},
};
use tower::BoxError;

use crate::{
    config::ClientTimeouts,
    metrics::{CallLabels, Metrics},
    permit::WritePermit,
};

type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Why a call never got an answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("this replica's lease has ended, so it may not write")]
    Fenced,
    #[error("the API server did not answer within {0:?}")]
    Deadline(Duration),
    #[error("nothing came over the watch for {0:?}")]
    WatchIdle(Duration),
}

/// Failures to build a client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("failed to read the kubeconfig `{path}`")]
    Kubeconfig {
        path: String,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error("no kubeconfig was given and this is not a pod; pass --kubeconfig FILE")]
    NotInCluster(#[source] kube::config::InClusterError),
    #[error("failed to set up the client")]
    Client(#[source] kube::Error),
}

/// A client over the network, with kube's defaults that a controller must not have turned off.
pub async fn connect(kubeconfig: Option<&Path>, timeouts: &ClientTimeouts) -> Result<Client, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let error = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source };
            let file = Kubeconfig::read_from(path).map_err(error)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(error)?
        }
        None => Config::incluster().map_err(ConnectError::NotInCluster)?,
    };
    // 429, 503 and 504 for all methods, up to 15 times: a call could sit in there for minutes, and a create that
    // was answered 504 may have happened.
    config.default_retry = false;
    config.connect_timeout = Some(timeouts.connect.into());
    // Catches a connection on which nothing comes back; watches get bookmarks more often than this.
    config.read_timeout = Some(timeouts.watch_idle.into());
    config.reset_reader_on_write = true;
    config.write_timeout = Some(timeouts.call.into());
    Client::try_from(config).map_err(ConnectError::Client)
}

/// What calls must obey.
#[derive(Clone, Debug)]
pub struct CallPolicy {
    pub timeouts: ClientTimeouts,
    /// Shared by all clients of the process; absent for the lease, which must not queue behind anything.
    pub limiter: Option<Arc<Limiter>>,
    /// Needed by every mutating call.
    pub permit: WritePermit,
    pub metrics: Arc<Metrics>,
}

/// Bounds on calls: at once, and per second.
#[derive(Debug)]
pub struct Limiter {
    concurrency: Semaphore,
    bucket: Mutex<Bucket>,
    per_second: f64,
    burst: f64,
}

#[derive(Debug)]
struct Bucket {
    /// Negative while calls have been promised a later turn.
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub fn new(concurrency: usize, per_second: f64, burst: f64) -> Arc<Self> {
        let bucket = Bucket { tokens: burst, at: Instant::now() };
        Arc::new(Self {
            concurrency: Semaphore::new(concurrency),
            bucket: Mutex::new(bucket),
            per_second,
            burst,
        })
    }

    /// Takes a token now and says how long to wait until it counts; so waiting is in the order of arrival.
    fn reserve(&self) -> Duration {
        let mut bucket = self.bucket.lock();
        let now = Instant::now();
        let earned = now.duration_since(bucket.at).as_secs_f64() * self.per_second;
        bucket.tokens = (bucket.tokens + earned).min(self.burst) - 1.0;
        bucket.at = now;
        Duration::from_secs_f64((-bucket.tokens / self.per_second).max(0.0))
    }
}

/// The same client, under a policy.
pub fn with_policy(client: Client, policy: CallPolicy) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, policy) = (client.clone(), policy.clone());
        async move { policy.call(client, request).await }
    });
    ClientBuilder::new(service, namespace).build()
}

impl CallPolicy {
    async fn call(&self, client: Client, request: Request<Body>) -> Result<Response<AnyBody>, BoxError> {
        let verb = verb_of(&request);
        let start = Instant::now();
        let answer = if verb == "watch" {
            self.watch(client, request).await
        } else {
            // A token comes before the deadline: waiting for one's turn is not the server's slowness.
            if let Some(limiter) = &self.limiter {
                tokio::time::sleep(limiter.reserve()).await;
            }
            let _slot = match &self.limiter {
                Some(limiter) => Some(limiter.concurrency.acquire().await?),
                None => None,
            };
            self.once(client, request).await
        };
        if verb != "watch" {
            self.metrics.call_seconds.observe(start.elapsed().as_secs_f64());
        }
        let code = match &answer {
            Ok(response) => response.status().as_str().to_owned(),
            Err(error) => match error.downcast_ref::<CallError>() {
                Some(CallError::Fenced) => "fenced".to_owned(),
                Some(_) => "timeout".to_owned(),
                None => "error".to_owned(),
            },
        };
        self.metrics.calls.get_or_create(&CallLabels { verb, code }).inc();
        answer
    }

    /// Head and body within one deadline; a write also within what is left of the permit.
    async fn once(&self, client: Client, request: Request<Body>) -> Result<Response<AnyBody>, BoxError> {
        let mut deadline = Duration::from(self.timeouts.call);
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            deadline = deadline.min(self.permit.remaining().ok_or(CallError::Fenced)?);
        }
        let whole = async {
            let response = client.send(request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::from_parts(head, boxed(Full::new(body))))
        };
        tokio::time::timeout(deadline, whole).await.map_err(|_| CallError::Deadline(deadline))?
    }

    /// The head within the deadline; then something at least as often as the idle bound.
    async fn watch(&self, client: Client, request: Request<Body>) -> Result<Response<AnyBody>, BoxError> {
        let deadline = Duration::from(self.timeouts.call);
        let response = tokio::time::timeout(deadline, client.send(request))
            .await
            .map_err(|_| CallError::Deadline(deadline))??;
        let idle = Duration::from(self.timeouts.watch_idle);
        let (head, body) = response.into_parts();
        let frames = futures::stream::unfold(Some(body), move |body| async move {
            let mut body = body?;
            match tokio::time::timeout(idle, body.frame()).await {
                Ok(None) => None,
                Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
                Ok(Some(Err(error))) => Some((Err(BoxError::from(error)), None)),
                Err(_) => Some((Err(CallError::WatchIdle(idle).into()), None)),
            }
        });
        Ok(Response::from_parts(head, boxed(StreamBody::new(frames.boxed()))))
    }
}

fn boxed<B>(body: B) -> AnyBody
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    UnsyncBoxBody::new(body.map_err(Into::into))
}

fn verb_of(request: &Request<Body>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    let has = |wanted: &str| query.split('&').any(|pair| pair == wanted);
    match *request.method() {
        Method::GET if has("watch=1") || has("watch=true") => "watch",
        Method::GET if has("limit=500") || query.contains("labelSelector") => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

/// Whether a call was refused by the fence: the process is about to end, nothing to report.
pub fn is_fenced(error: &kube::Error) -> bool {
    match error {
        kube::Error::Service(source) => {
            matches!(source.downcast_ref::<CallError>(), Some(CallError::Fenced))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
