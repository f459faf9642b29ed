//! Clients whose own code never tries again. The library beneath does, once, where a kept connection closes before the
//! request is written (hyper-util's `retry_canceled_requests`, which reqwest leaves on): such a loss is not seen here.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;

const CLIENTS: usize = 8;

/// The whole body of one request, which must end as it should.
pub(crate) async fn ask(client: &reqwest::Client, url: &str, body: String) -> Result<String> {
    let request = client
        .post(format!("{url}/v1/chat/completions"))
        .header("content-type", "application/json")
        .timeout(std::time::Duration::from_secs(60))
        .body(body);
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    ensure!(status.is_success(), "{status}: {text}");
    Ok(text)
}

/// Returns once the Service answers, which it must within ten seconds.
pub(crate) async fn until_reachable(client: &reqwest::Client, url: &str) -> Result<()> {
    let tries = async {
        while client.get(format!("{url}/v1/models")).send().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(std::time::Duration::from_secs(10), tries).await?)
}

/// What the pieces of a stream say together; a stream that was cut off is an error.
pub(crate) fn streamed_text(body: &str) -> Result<String> {
    let mut text = String::new();
    let mut ended = false;
    for data in body.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            ended = true;
            continue;
        }
        let piece: Value = serde_json::from_str(data)?;
        ensure!(piece.get("error").is_none(), "{piece}");
        text.push_str(piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    ensure!(ended, "the stream was cut off: {body}");
    Ok(text)
}

#[derive(Default)]
struct Shared {
    sent: AtomicUsize,
    stopping: AtomicBool,
    failures: Mutex<Vec<String>>,
}

pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

pub(crate) struct Outcome {
    pub(crate) sent: usize,
    pub(crate) failures: Vec<String>,
}

impl Load {
    /// Half of the clients stream; half keep their connection, the others open one for each request. They go on until
    /// told to finish, and until `least` requests were sent.
    pub(crate) fn start(url: &str, least: usize, body: fn(bool) -> String) -> Self {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (stream, keep) = (number % 2 == 0, number < CLIENTS / 2);
            let (shared, url) = (Arc::clone(&shared), url.to_owned());
            clients.spawn(async move {
                let kept = reqwest::Client::new();
                while !shared.stopping.load(Ordering::Relaxed) || shared.sent.load(Ordering::Relaxed) < least
                {
                    let client = if keep { kept.clone() } else { reqwest::Client::new() };
                    shared.sent.fetch_add(1, Ordering::Relaxed);
                    let answer = ask(&client, &url, body(stream)).await;
                    let checked = answer.and_then(|text| {
                        let text = if stream { streamed_text(&text)? } else { text };
                        ensure!(text.contains("Paris"), "{text}");
                        Ok(())
                    });
                    if let Err(error) = checked {
                        let failure = format!("stream={stream} keep-alive={keep}: {error:#} {error:?}");
                        shared.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                    }
                }
            });
        }
        Self { shared, clients }
    }

    pub(crate) async fn finish(self) -> Outcome {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        let failures =
            std::mem::take(&mut *self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner));
        Outcome { sent: self.shared.sent.load(Ordering::Relaxed), failures }
    }
}
