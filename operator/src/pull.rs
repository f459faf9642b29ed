//! The pull of `GET /internal/v1/status` from pods: the only way in which the control plane hears from the data
//! plane. The leader asks when a pod changes, and every 10 s while a pod has not said that its models are ready.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use candela_wire::{
    config::INTERNAL_PORT,
    internal::{ProcessStatus, STATUS_PATH, STATUS_VERSION, State},
};
use futures::future::BoxFuture;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    net::TcpStream,
    time::{Duration, Instant},
};
use tracing::debug;

use crate::{cache::Key, context::Context, error::Chain, metrics::OutcomeLabels, queue::Priority};

/// Asks one process; a parameter so that tests need no network.
pub type Puller =
    Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, Result<ProcessStatus, PullError>> + Send + Sync>;

/// Time between two pulls of a pod that is not ready.
const EVERY: Duration = Duration::from_secs(10);
/// A status is a few hundred bytes; a pod is not trusted to keep to that.
const MAX_BODY_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("failed to connect")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke off")]
    Http(#[from] hyper::Error),
    #[error("answered {0}")]
    Code(http::StatusCode),
    #[error("the body is too long or broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the body is not a status")]
    Parse(#[source] serde_json::Error),
    #[error("speaks `{0}`, this operator speaks `{STATUS_VERSION}`")]
    Version(String),
}

/// The one that goes over the network.
pub fn over_http(deadline: Duration) -> Puller {
    Arc::new(move |address| {
        Box::pin(async move {
            tokio::time::timeout(deadline, get(address)).await.map_err(|_| PullError::Deadline(deadline))?
        })
    })
}

async fn get(address: SocketAddr) -> Result<ProcessStatus, PullError> {
    let stream = TcpStream::connect(address).await.map_err(PullError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request = Request::get(STATUS_PATH)
            .header(header::HOST, address.to_string())
            .body(Empty::<Bytes>::new())
            .expect("constant parts and an address make a valid request");
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(PullError::Code(response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES);
        let body = body.collect().await.map_err(PullError::Body)?.to_bytes();
        let status: ProcessStatus = serde_json::from_slice(&body).map_err(PullError::Parse)?;
        if status.api_version != STATUS_VERSION {
            return Err(PullError::Version(status.api_version));
        }
        Ok(status)
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        // The connection ends first when the server closes it after its answer.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(error.into()),
        },
    }
}

/// Works on the pods that want a pull, for ever.
pub async fn worker(ctx: Arc<Context>) {
    loop {
        let key = ctx.pulls.next().await;
        if let Some(pod) = ctx.caches.pods.get(&key)
            && let Some(address) = address(&pod)
        {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let result = (ctx.pull)(address).await;
            let outcome = if result.is_ok() { "ok" } else { "error" };
            ctx.metrics.pulls.get_or_create(&OutcomeLabels { outcome }).inc();
            let settled = match result {
                Ok(status) => {
                    let settled = status.state == State::Ready && !status.models.is_empty() && is_ready(&pod);
                    if ctx.caches.pods.get(&key).is_some() && ctx.processes.set(&uid, status) {
                        wake_owner(&ctx, &pod);
                    }
                    settled
                }
                Err(error) => {
                    debug!(pod = %key, error = %Chain(&error), "failed to pull the internal status");
                    false
                }
            };
            if !settled {
                ctx.pulls.add_at(key.clone(), Instant::now() + EVERY);
            }
        }
        ctx.pulls.done(&key);
    }
}

fn wake_owner(ctx: &Context, pod: &Pod) {
    let labels = pod.metadata.labels.as_ref();
    if let Some(name) = labels.and_then(|labels| labels.get(candela_crds::LLM_DEPLOYMENT_LABEL)) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        ctx.queue.add(Key::new(namespace, name), Priority::Normal);
    }
}

/// Where to ask, if there is somebody to ask: a running container that declares the internal port. Custom engines
/// declare none.
fn address(pod: &Pod) -> Option<SocketAddr> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let port = i32::from(INTERNAL_PORT);
    let container =
        pod.spec.as_ref()?.containers.iter().find(|container| {
            container.ports.iter().flatten().any(|declared| declared.container_port == port)
        })?;
    let runs = status.container_statuses.iter().flatten().any(|status| {
        status.name == container.name && status.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    runs.then(|| SocketAddr::new(ip, INTERNAL_PORT))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn body(version: &str) -> String {
        json!({"apiVersion": version, "component": "server", "build": "1", "state": "Ready", "unknown": 1})
            .to_string()
    }

    /// A server that gives one raw answer.
    async fn pull_from(answer: String) -> Result<ProcessStatus, PullError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 1024];
            let n = stream.read(&mut request).await.expect("a request");
            assert!(request[..n].starts_with(b"GET /internal/v1/status HTTP/1.1\r\n"));
            // The client may hang up on a body that is too long.
            let _ = stream.write_all(answer.as_bytes()).await;
            stream
        };
        let pull = over_http(Duration::from_secs(5));
        tokio::join!(pull(address), serve).0
    }

    fn http(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn answers_are_read_and_bad_ones_named() {
        let status = pull_from(http(&body(STATUS_VERSION))).await.expect("a status");
        assert_eq!(status.state, State::Ready);
        let error = pull_from(http(&body("internal.candela.dev/v9"))).await.expect_err("too new");
        assert!(error.to_string().contains("v9"), "{error}");
        let error = pull_from(http("<html>")).await.expect_err("no JSON");
        assert!(matches!(error, PullError::Parse(_)), "{error}");
        let error = pull_from(http(&" ".repeat(MAX_BODY_BYTES + 1))).await.expect_err("too long");
        assert!(matches!(error, PullError::Body(_)), "{error}");
        let error = pull_from("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        assert!(matches!(error, Err(PullError::Code(code)) if code == 503));
    }

    #[test]
    fn only_running_containers_with_the_internal_port_are_asked() {
        let pod = |port: u16, state: &str, deleted: bool| -> Pod {
            let mut pod = json!({
                "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "server", "ports": [{"containerPort": 8080}, {"containerPort": port}]}]},
                "status": {"podIP": "10.0.0.7", "containerStatuses": [{
                    "name": "server", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {state: {}},
                }]},
            });
            if deleted {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(pod).expect("a pod")
        };
        assert_eq!(address(&pod(9090, "running", false)), Some(([10, 0, 0, 7], 9090).into()));
        assert_eq!(address(&pod(9090, "waiting", false)), None);
        assert_eq!(address(&pod(9090, "running", true)), None);
        assert_eq!(address(&pod(8081, "running", false)), None, "a custom engine");
    }
}
