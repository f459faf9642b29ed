//! A real server over a real (tiny, random) model, in this process, and a client for it.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod hub;
pub(crate) mod tokens;

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use candela_engine::testing::TinyModel;
use candela_server::{Fatal, Limits, fetch, serve};
use candela_wire::{
    config::{Batching, ModelConfig, ServerConfig, Task, Timeouts},
    internal::ProcessStatus,
    sse,
};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

use hub::{Hub, Repo, read_files};

pub(crate) const NAME: &str = "tiny";
/// The end-of-text token of tiny models: forbidding it makes answers as long as they may be.
pub(crate) const END_OF_TEXT: u32 = candela_engine::testing::END_OF_TEXT;

pub(crate) fn config(uri: &str) -> ServerConfig {
    ServerConfig {
        version: 1,
        models: vec![ModelConfig::new(NAME, uri)],
        batching: Batching::default(),
        accelerator: None,
        timeouts: Timeouts::default(),
        termination_grace_seconds: 30,
        startup_stall_seconds: 60,
    }
}

/// Quick to fail, for tests of failing.
pub(crate) fn patience() -> fetch::Patience {
    fetch::Patience {
        attempts: 4,
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
        ..fetch::Patience::default()
    }
}

pub(crate) fn fetch_options(config: ServerConfig, to: &Path, hub: &str) -> fetch::Options {
    fetch::Options { hub: hub.into(), patience: patience(), ..fetch::Options::new(config, to.into()) }
}

/// A model's folder as files.
pub(crate) fn model_files(model: &TinyModel) -> Repo {
    let dir = TempDir::new().unwrap();
    model.write_folder(dir.path()).unwrap();
    Repo { files: read_files(dir.path()).unwrap() }
}

/// Fetches `model` from a hub, as an init step would; the folder to serve from.
pub(crate) async fn fetched(model: &TinyModel) -> TempDir {
    fetched_files(model_files(model)).await
}

async fn fetched_files(files: Repo) -> TempDir {
    let hub = Hub::start(BTreeMap::from([("org/tiny".into(), files)])).await.unwrap();
    let dir = TempDir::new().unwrap();
    fetch::run(fetch_options(config("hf://org/tiny"), dir.path(), &hub.endpoint), None).await.unwrap();
    dir
}

pub(crate) const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}\
     <|user|>{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>\
     {% endfor %}{% endfor %}<|assistant|>";

/// Slow enough that streams overlap: thousands of tokens at some hundred a second.
pub(crate) fn long_winded() -> TinyModel {
    TinyModel { layers: 4, hidden: 256, context_length: 16384, ..TinyModel::default() }
}

/// A tiny model of the engine's golden ones, with a tokenizer of forty words.
pub(crate) fn encoder_folder(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/golden").join(name);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), dir.path().join(file)).unwrap();
    }
    let vocabulary: serde_json::Map<_, _> = (0..40).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

pub(crate) fn encoder_model(name: &str, dir: &TempDir, task: Task) -> ModelConfig {
    let mut config = ModelConfig::new(name, format!("file://{}", dir.path().display()));
    config.tasks = vec![task];
    config
}

/// A server of this process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) internal: SocketAddr,
    pub(crate) http: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<Result<(), Fatal>>,
    _models: TempDir,
}

impl Server {
    pub(crate) async fn of(model: &TinyModel) -> Self {
        Self::with(model, |_| {}).await
    }

    /// Starts and waits until ready.
    pub(crate) async fn with(model: &TinyModel, change: impl FnOnce(&mut serve::Options)) -> Self {
        let server = Self::starting(model, change).await;
        until("the server is ready", || async { server.probe("readyz").await == 200 }).await;
        server
    }

    /// With another chat template than tiny models have.
    pub(crate) async fn with_template(model: &TinyModel, template: &str) -> Self {
        Self::with_template_and(model, template, |_| {}).await
    }

    pub(crate) async fn with_template_and(
        model: &TinyModel,
        template: &str,
        change: impl FnOnce(&mut serve::Options),
    ) -> Self {
        let mut files = model_files(model);
        let config = files.files.get_mut("tokenizer_config.json").unwrap();
        let mut json: Value = serde_json::from_slice(config).unwrap();
        json["chat_template"] = template.into();
        *config = json.to_string().into();
        let server = Self::over(fetched_files(files).await, change).await;
        until("the server is ready", || async { server.probe("readyz").await == 200 }).await;
        server
    }

    pub(crate) async fn starting(model: &TinyModel, change: impl FnOnce(&mut serve::Options)) -> Self {
        Self::over(fetched(model).await, change).await
    }

    async fn over(models: TempDir, change: impl FnOnce(&mut serve::Options)) -> Self {
        let mut options = serve::Options::new(config("hf://org/tiny"));
        options.models_dir = models.path().to_owned();
        options.listen = ([127, 0, 0, 1], 0).into();
        options.internal_listen = options.listen;
        options.limits = Limits { drain_window: Duration::from_millis(300), ..Limits::default() };
        change(&mut options);
        let running = serve::start(options).await.unwrap();
        let (address, internal) = (running.address, running.internal_address);
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(running.run(async {
            // A dropped sender is a test that ended: stop as well.
            let _ = stopped.await;
        }));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, internal, http, stop: Some(stop), run, _models: models }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.http.post(self.url(path)).json(body).send().await.unwrap()
    }

    pub(crate) async fn chat(&self, extra: Value) -> reqwest::Response {
        self.post("/v1/chat/completions", &chat_body(extra)).await
    }

    pub(crate) async fn probe(&self, name: &str) -> u16 {
        let answer = self.http.get(format!("http://{}/{name}", self.internal)).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }

    pub(crate) async fn status(&self) -> ProcessStatus {
        let url = format!("http://{}/internal/v1/status", self.internal);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.internal);
        self.http.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Waits until nothing is in flight.
    pub(crate) async fn settled(&self) {
        until("every slot is free", || async {
            let requests = self.status().await.requests;
            requests.in_flight == 0 && requests.queued == 0
        })
        .await;
    }

    /// As SIGTERM does.
    pub(crate) fn terminate(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub(crate) async fn ended(self) -> Result<(), Fatal> {
        tokio::time::timeout(Duration::from_secs(60), self.run).await.expect("ends in time").unwrap()
    }
}

/// A chat request; `extra` adds to it or replaces.
pub(crate) fn chat_body(extra: Value) -> Value {
    let mut body = json!({
        "model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0,
        "logit_bias": { END_OF_TEXT.to_string(): -100 }
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The data of a stream's events, as they come.
pub(crate) struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    reader: sse::Reader,
    ready: std::collections::VecDeque<String>,
}

impl Events {
    pub(crate) fn of(response: reqwest::Response) -> Self {
        Self { body: response.bytes_stream().boxed(), reader: sse::Reader::new(), ready: Default::default() }
    }

    /// `None` = the stream ended.
    pub(crate) async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() {
            let bytes = self.body.next().await?.expect("a stream ends cleanly or with an event");
            self.ready.extend(self.reader.push(&bytes).unwrap().into_iter().map(|event| event.data));
        }
        self.ready.pop_front()
    }

    pub(crate) async fn rest(mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

/// Polls until `check` holds; a test that waits for ever says for what.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check().await {
        assert!(Instant::now() < deadline, "in 30 s it did not come to pass that {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The program under test.
pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_candela-server").into()
}
