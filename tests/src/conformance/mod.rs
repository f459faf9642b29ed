//! The in-memory API server against the real one: the same random operations, the same answers.
//!
//! A sequence works on two objects of one kind, named after its seed, so that many run side by side in one namespace.
//! Controllers must not touch the objects meanwhile: pause the controller manager of the real cluster.
//!
//! Known to differ (3 of the sequences of seeds 1 to 5000): the in-memory server takes what the real one refuses when an
//! apply takes the last entry out of a map of a custom resource (1103), and does not keep an empty `f:rollingUpdate` in
//! `managedFields` when a strategy is given up (2962, 3250).

mod bodies;
mod normal;
mod ops;

use std::fmt;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::fake::FakeCluster;
pub use normal::Normalizer;
pub use ops::{Op, generate};

/// Namespace that all sequences share.
pub const NAMESPACE: &str = "conformance";

/// One HTTP request, without a server.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: &'static str,
    pub path: String,
    pub content_type: &'static str,
    pub body: Value,
}

/// Somewhere to send requests to.
pub trait Backend {
    fn send(&self, call: &Call) -> impl Future<Output = Result<(u16, Value)>> + Send;
}

impl Backend for FakeCluster {
    async fn send(&self, call: &Call) -> Result<(u16, Value)> {
        Ok(self.request("conformance", call.method, &call.path, call.content_type, &call.body))
    }
}

/// A real API server, through a client without retries.
pub struct Real(pub kube::Client);

impl Backend for Real {
    async fn send(&self, call: &Call) -> Result<(u16, Value)> {
        let bytes = if call.body.is_null() { Bytes::new() } else { Bytes::from(call.body.to_string()) };
        let request = http::Request::builder()
            .method(call.method)
            .uri(&call.path)
            .header("content-type", call.content_type)
            .header("user-agent", "conformance")
            .body(Body::from(bytes))?;
        let response = self.0.send(request).await.with_context(|| format!("failed to send {call:?}"))?;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }
}

/// A difference between the two servers, with all that is needed to see it again.
#[derive(Debug)]
pub struct Difference {
    pub seed: u64,
    pub history: Vec<String>,
    pub fake: (u16, Value),
    pub real: (u16, Value),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: the answers to the last of these operations differ:", self.seed)?;
        for line in &self.history {
            writeln!(f, "  {line}")?;
        }
        let lines = |answer: &(u16, Value)| {
            format!("{}\n{}", answer.0, serde_json::to_string_pretty(&answer.1).unwrap_or_default())
        };
        let (fake, real) = (lines(&self.fake), lines(&self.real));
        let (fake, real): (Vec<_>, Vec<_>) = (fake.lines().collect(), real.lines().collect());
        writeln!(f, "only in the in-memory server's answer:")?;
        fake.iter().filter(|line| !real.contains(line)).try_for_each(|line| writeln!(f, "  - {line}"))?;
        writeln!(f, "only in the real server's answer:")?;
        real.iter().filter(|line| !fake.contains(line)).try_for_each(|line| writeln!(f, "  + {line}"))
    }
}

/// Runs the sequence of one seed on both; the number of operations, or the first difference.
pub async fn compare(
    fake: &impl Backend,
    real: &impl Backend,
    seed: u64,
) -> Result<Result<usize, Difference>> {
    let ops = generate(seed);
    let mut history = Vec::new();
    let (mut left, mut right) = (Side::default(), Side::default());
    for op in &ops {
        history.push(format!("{op:?}"));
        let fake_answer = left.step(fake, op, seed).await?;
        let real_answer = right.step(real, op, seed).await?;
        if fake_answer != real_answer {
            return Ok(Err(Difference { seed, history, fake: fake_answer, real: real_answer }));
        }
    }
    // Leave nothing behind: finalizers off, objects away.
    for op in ops::cleanup(&ops) {
        left.step(fake, &op, seed).await?;
        right.step(real, &op, seed).await?;
    }
    Ok(Ok(ops.len()))
}

#[derive(Default)]
struct Side {
    normal: Normalizer,
}

impl Side {
    async fn step(&mut self, backend: &impl Backend, op: &Op, seed: u64) -> Result<(u16, Value)> {
        let mut live = Value::Null;
        if op.reads_first() {
            let call = Call {
                method: "GET",
                path: op.path(seed),
                content_type: "application/json",
                body: Value::Null,
            };
            live = backend.send(&call).await?.1;
        }
        let (code, body) = backend.send(&op.call(seed, &live)).await?;
        Ok((code, self.normal.answer(&body)))
    }
}

/// The namespace, on a server that may have it already.
pub async fn prepare(backend: &impl Backend) -> Result<()> {
    let call = Call {
        method: "POST",
        path: "/api/v1/namespaces".to_owned(),
        content_type: "application/json",
        body: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    };
    let (code, body) = backend.send(&call).await?;
    anyhow::ensure!(code == 201 || code == 409, "cannot create the namespace: {code} {body}");
    Ok(())
}
