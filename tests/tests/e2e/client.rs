//! An HTTP client that sends each request once. reqwest would not do: the connection pool beneath it sends a request
//! again, silently, when a kept connection closes before the request is written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// No request of a test takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// What a client does with its connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    Kept,
    NewEach,
}

#[derive(Clone)]
pub(crate) struct Once {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Once {
    pub(crate) fn new(url: &str, connections: Connections) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.retry_canceled_requests(false);
        if connections == Connections::NewEach {
            builder.pool_max_idle_per_host(0);
        }
        Self { client: builder.build(connector), url: url.to_owned() }
    }

    /// The whole body of one answer, which must have ended as its framing says.
    pub(crate) async fn chat(&self, body: &Value) -> Result<String> {
        self.post("/v1/chat/completions", body).await
    }

    /// The whole body of one answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<String> {
        let request = Request::post(format!("{}{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        self.send(Request::get(format!("{}{path}", self.url)).body(Full::default())?).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<String> {
        let exchange = async {
            let response = self.client.request(request).await.context("no answer")?;
            let status = response.status();
            let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
            let text = String::from_utf8(body.to_vec()).context("the answer is not UTF-8")?;
            ensure!(status.is_success(), "{status}: {text}");
            Ok(text)
        };
        tokio::time::timeout(LIMIT, exchange).await.context("no whole answer in time")?
    }

    /// Returns once the Service answers, which it must within ten seconds: pods are ready a moment before kube-proxy
    /// has written the Service's rules.
    pub(crate) async fn until_reachable(&self) -> Result<()> {
        let tries = async {
            while self.get("/v1/models").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), tries).await.context("the Service does not answer")
    }
}

/// What the model says in an answer that is no stream.
pub(crate) fn whole_text(body: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(body)?;
    let choice = &answer["choices"][0];
    ensure!(choice["finish_reason"].is_string(), "no reason to have ended: {answer}");
    Ok(choice["message"]["content"].as_str().unwrap_or_default().to_owned())
}

/// What the pieces of a stream say together. A stream without its last words, or with words after them, is an error.
pub(crate) fn streamed_text(body: &str) -> Result<String> {
    let mut text = String::new();
    let (mut finishes, mut ended) = (0, false);
    for event in body.split("\n\n").filter(|event| !event.trim().is_empty()) {
        ensure!(!ended, "something follows [DONE]: {body}");
        let data = event.strip_prefix("data: ").with_context(|| format!("not an event: {event:?}"))?;
        if data == "[DONE]" {
            ended = true;
            continue;
        }
        let piece: Value = serde_json::from_str(data)?;
        ensure!(piece.get("error").is_none(), "{piece}");
        let choice = &piece["choices"][0];
        finishes += usize::from(choice["finish_reason"].is_string());
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    ensure!(ended && body.ends_with("\n\n"), "the stream was cut off: {body:?}");
    ensure!(finishes == 1, "{finishes} reasons to have ended: {body}");
    Ok(text)
}
