//! Models of a repository: loaded and unloaded while others answer, on request, within a budget.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use candela_engine::testing::TinyModel;
use candela_server::{Alias, Control, RegistryOptions};
use candela_wire::internal::RepositoryModel;
use serde_json::{Value, json};
use support::{Events, NAME, Server, binary, chat_body, long_winded, until};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

/// As its KV cache is said, its size does not depend on what is free.
const EXACT: &str = r#"{"kvCacheTokens": 2048}"#;

fn write(root: &Path, name: &str, version: u64, model: &TinyModel) {
    let folder = root.join(name).join(version.to_string());
    std::fs::create_dir_all(&folder).unwrap();
    model.write_folder(&folder).unwrap();
    std::fs::write(root.join(name).join("candela.json"), EXACT).unwrap();
}

fn seed(seed: u64) -> TinyModel {
    TinyModel { seed, ..TinyModel::default() }
}

fn repository(names: &[&str]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (at, name) in names.iter().enumerate() {
        write(root.path(), name, 1, &seed(at as u64 + 10));
    }
    root
}

async fn serving(root: &TempDir, control: Control, change: impl FnOnce(&mut RegistryOptions)) -> Server {
    let server = Server::with(&TinyModel::default(), |options| {
        options.registry.repository = Some(root.path().to_owned());
        options.registry.control = control;
        change(&mut options.registry);
    })
    .await;
    // It looks at the folder.
    assert_eq!(server.post("/v2/repository/index", &json!({})).await.status(), 200);
    server
}

async fn verb(server: &Server, name: &str, verb: &str) -> (u16, Value) {
    let answer = server.post(&format!("/v2/repository/models/{name}/{verb}"), &json!({})).await;
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn chat(server: &Server, model: &str) -> (u16, Value) {
    let answer = server.chat(json!({"model": model})).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn entry(server: &Server, name: &str, version: u64) -> RepositoryModel {
    let all = server.status().await.registry;
    all.into_iter().find(|model| model.name == name && model.version == version).unwrap()
}

async fn state(server: &Server, name: &str) -> String {
    entry(server, name, 1).await.state
}

async fn listed(server: &Server) -> Vec<String> {
    let list: Value = server.http.get(server.url("/v1/models")).send().await.unwrap().json().await.unwrap();
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

async fn metric(server: &Server, line: &str) -> Option<f64> {
    let text = server.metrics().await;
    let found = text.lines().find_map(|have| have.strip_prefix(line)?.strip_prefix(' '));
    found.map(|number| number.parse().unwrap())
}

async fn running(server: &Server, label: &str) -> f64 {
    let line = format!("candela_server_requests_running{{model=\"{label}\"}}");
    metric(server, &line).await.unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_loaded_and_unloaded_by_name() {
    let root = repository(&["a", "b"]);
    let server = serving(&root, Control::Explicit, |_| {}).await;
    assert_eq!(state(&server, "a").await, "Unavailable");
    let (status, err) = chat(&server, "a").await;
    assert_eq!((status, &err["error"]["code"]), (503, &json!("model_unavailable")), "{err}");
    assert_eq!(verb(&server, "a", "load").await.0, 200);
    let (status, answer) = chat(&server, "a").await;
    assert_eq!((status, &answer["model"]), (200, &json!("a")));
    assert_eq!(listed(&server).await, [NAME, "a"]);
    let index: Value = server.post("/v2/repository/index", &json!({})).await.json().await.unwrap();
    let states: Vec<_> = index
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["name"].as_str(), line["state"].as_str()))
        .collect();
    let line = |name, state| (Some(name), Some(state));
    assert_eq!(states, [line(NAME, "READY"), line("a", "READY"), line("b", "UNAVAILABLE")]);
    assert_eq!(metric(&server, "candela_server_models{state=\"Ready\"}").await, Some(2.0));

    assert_eq!(verb(&server, "a", "unload").await.0, 200);
    until("it is unloaded", || async { state(&server, "a").await == "Unavailable" }).await;
    assert_eq!(entry(&server, "a", 1).await.memory_bytes, 0);
    assert_eq!(listed(&server).await, [NAME]);
    assert_eq!(metric(&server, "candela_server_model_unloads_total").await, Some(1.0));
    let (status, err) = verb(&server, NAME, "unload").await;
    assert_eq!(status, 400, "{err}");
    assert_eq!(chat(&server, NAME).await.0, 200, "the configuration's own stays");
    assert_eq!(server.probe("readyz").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_wait_for_one_load() {
    let root = repository(&["a"]);
    let server = serving(&root, Control::OnDemand, |_| {}).await;
    assert_eq!(listed(&server).await, [NAME, "a"], "a request loads it");
    let (status, err) = chat(&server, "other").await;
    assert!(status == 404 && err["error"]["message"].as_str().unwrap().contains("`a`"), "{err}");
    // No more than the engine has places and a queue for.
    let all = futures::future::join_all((0..60).map(|_| async {
        let answer = server.chat(json!({"model": "a", "max_tokens": 1})).await;
        answer.status().as_u16()
    }));
    let statuses = all.await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(metric(&server, "candela_server_model_loads_total{outcome=\"loaded\"}").await, Some(1.0));
    let (status, err) = chat(&server, "nobody").await;
    assert_eq!(status, 404);
    assert!(err["error"]["message"].as_str().unwrap().contains("`tiny`, `a`"), "{err}");
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_recently_used_model_makes_room() {
    let root = repository(&["a", "b", "c"]);
    let probe = serving(&root, Control::OnDemand, |_| {}).await;
    assert_eq!(chat(&probe, "a").await.0, 200);
    let bytes = entry(&probe, "a", 1).await.memory_bytes;
    assert!(bytes > 0);

    let two = serving(&root, Control::OnDemand, |options| options.memory_bytes = Some(bytes * 5 / 2)).await;
    for model in ["a", "b", "a", "c"] {
        let (status, answer) = chat(&two, model).await;
        assert_eq!(status, 200, "{model}: {answer}");
        // The client may hear of the end before the engine has put its sequence away.
        let label = format!("{model}:1");
        until("the model is idle", || async { running(&two, &label).await == 0.0 }).await;
    }
    assert_eq!(state(&two, "a").await, "Ready", "used after `b`");
    assert_eq!(state(&two, "b").await, "Unavailable");
    assert_eq!(metric(&two, "candela_server_model_evictions_total").await, Some(1.0));
    let memory = metric(&two, "candela_server_repository_memory_bytes").await.unwrap();
    assert_eq!(memory, (bytes * 2) as f64);

    let none = serving(&root, Control::OnDemand, |options| options.memory_bytes = Some(bytes - 1)).await;
    let (status, err) = chat(&none, "a").await;
    let message = err["error"]["message"].as_str().unwrap();
    assert_eq!(status, 503);
    assert!(message.contains(&bytes.to_string()) && message.contains(&(bytes - 1).to_string()), "{message}");
    assert_eq!(chat(&none, NAME).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unloaded_model_finishes_what_it_began() {
    let root = repository(&[]);
    write(root.path(), "slow", 1, &long_winded());
    std::fs::remove_file(root.path().join("slow/candela.json")).unwrap();
    let server = serving(&root, Control::Explicit, |_| {}).await;
    assert_eq!(verb(&server, "slow", "load").await.0, 200);
    let body = json!({"model": "slow", "stream": true, "max_tokens": 400});
    let mut events = Events::of(server.chat(body.clone()).await);
    events.next().await.unwrap();
    assert_eq!(verb(&server, "slow", "unload").await.0, 200);
    assert_eq!(state(&server, "slow").await, "Draining");
    assert_eq!(chat(&server, "slow").await.0, 503, "nobody new");
    // Asked for again while it drains: it comes back afterwards.
    let again = verb(&server, "slow", "load");
    let (again, rest) = tokio::join!(again, events.rest());
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"));
    let ends = |rest: &[String], how: &str| rest.iter().any(|event| event.contains(how));
    assert!(ends(&rest, r#""finish_reason":"length""#), "the whole answer: {rest:?}");
    assert_eq!(again.0, 200);
    assert_eq!(state(&server, "slow").await, "Ready");

    // Patience ends.
    let hasty = serving(&root, Control::Explicit, |options| options.drain = Duration::from_millis(100)).await;
    assert_eq!(verb(&hasty, "slow", "load").await.0, 200);
    let mut events =
        Events::of(hasty.chat(json!({"model": "slow", "stream": true, "max_tokens": 16000})).await);
    events.next().await.unwrap();
    assert_eq!(verb(&hasty, "slow", "unload").await.0, 200);
    until("it is unloaded", || async { state(&hasty, "slow").await == "Unavailable" }).await;
    let rest = events.rest().await;
    assert!(!ends(&rest, r#""finish_reason":"length""#), "cut short");
    assert_ne!(rest.last().map(String::as_str), Some("[DONE]"));
    assert!(ends(&rest, "model_unavailable") && ends(&rest, "unloaded"), "{:?}", rest.last());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_aliases_are_names_of_models() {
    let root = repository(&["m"]);
    for version in [2, 3] {
        write(root.path(), "m", version, &seed(version));
    }
    let policy = json!({"versionPolicy": {"latest": 2}, "kvCacheTokens": 2048});
    std::fs::write(root.path().join("m/candela.json"), policy.to_string()).unwrap();
    let alias = |text: &str| text.parse::<Alias>().unwrap();
    let server = serving(&root, Control::Explicit, |options| {
        options.aliases = vec![alias("chat=m"), alias("old=m:2"), alias("fixed=tiny")];
    })
    .await;
    assert_eq!(verb(&server, "m", "load").await.0, 200);
    assert_eq!(listed(&server).await, [NAME, "m", "m:2", "m:3"]);
    let revision = async |model: &str| {
        let answer = server.chat(json!({"model": model})).await;
        assert_eq!(answer.status(), 200, "{model}");
        answer.headers()["x-candela-revision"].to_str().unwrap().to_owned()
    };
    let (second, third) = (revision("m:2").await, revision("m:3").await);
    assert_ne!(second, third);
    assert_eq!((revision("m").await, revision("chat").await), (third.clone(), third));
    assert_eq!(revision("old").await, second);
    assert_ne!(revision("fixed").await, second);
    assert_eq!(chat(&server, "m:1").await.0, 404, "its policy leaves it out");
    let ready = |version: u64| format!("/v2/models/m/versions/{version}/ready");
    assert_eq!(server.http.get(server.url(&ready(3))).send().await.unwrap().status(), 200);
    assert_ne!(server.http.get(server.url(&ready(1))).send().await.unwrap().status(), 200);

    // Another policy, the next time that it is loaded.
    let policy = json!({"versionPolicy": {"specific": [1, 3]}, "kvCacheTokens": 2048});
    std::fs::write(root.path().join("m/candela.json"), policy.to_string()).unwrap();
    assert_eq!(verb(&server, "m", "load").await.0, 200);
    until("the second is gone", || async { listed(&server).await == [NAME, "m", "m:1", "m:3"] }).await;
    assert_eq!(chat(&server, "old").await.0, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_loaded_says_why_and_harms_nobody() {
    let root = repository(&["good", "bad"]);
    std::fs::write(root.path().join("bad/1/model.safetensors"), "nonsense").unwrap();
    std::fs::create_dir_all(root.path().join("empty/latest")).unwrap();
    let outside = repository(&["secret"]);
    std::os::unix::fs::symlink(outside.path().join("secret"), root.path().join("linked")).unwrap();
    // What clients are told of files begins in the repository.
    let place = root.path().canonicalize().unwrap().display().to_string();
    let server = serving(&root, Control::Explicit, |_| {}).await;
    for (name, status, words) in [
        ("bad", 503, "model.safetensors"),
        ("empty", 503, "no version"),
        ("linked", 503, "leaves the repository"),
        ("..", 404, ""),
        ("%2e%2e", 404, ""),
        ("..%2Fsecret", 404, "does not exist"),
        ("good%00", 404, "does not exist"),
        ("good%2F1", 404, "does not exist"),
        ("other", 404, "does not exist"),
    ] {
        let (have, body) = verb(&server, name, "load").await;
        assert_eq!(have, status, "{name}: {body}");
        assert!(body.to_string().contains(words), "{name}: {body}");
        assert!(!body.to_string().contains(&place), "{name}: {body}");
    }
    let refused = server.chat(json!({"model": "bad"})).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().get("retry-after").is_none(), "it would fail again");
    assert_eq!(refused.headers()["x-should-retry"], "false");
    assert_eq!(entry(&server, "bad", 1).await.state, "Failed");
    assert_eq!(verb(&server, "good", "load").await.0, 200);
    assert_eq!(chat(&server, "good").await.0, 200);
    // Mended, it is loaded.
    write(root.path(), "bad", 1, &seed(11));
    assert_eq!(verb(&server, "bad", "load").await.0, 200);
    let none = serving(&root, Control::None, |_| {}).await;
    until("all that can be are loaded", || async { listed(&none).await == [NAME, "bad", "good"] }).await;
    assert_eq!(verb(&none, "good", "unload").await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_models_have_one_name() {
    let root = repository(&["m", "n"]);
    let server = Server::with(&TinyModel::default(), |options| {
        let files = format!("file://{}", root.path().join("n/1").display());
        options.config.models = vec![candela_wire::config::ModelConfig::new("m:1", files)];
        options.registry.repository = Some(root.path().to_owned());
        options.registry.control = Control::Explicit;
    })
    .await;
    assert_eq!(server.post("/v2/repository/index", &json!({})).await.status(), 200);
    let (status, body) = verb(&server, "m", "load").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.to_string().contains("called `m:1`"), "{body}");
    assert_eq!(verb(&server, "n", "load").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_the_requests() {
    let root = repository(&[]);
    write(root.path(), "pair", 1, &long_winded());
    std::fs::write(root.path().join("pair/candela.json"), r#"{"instances": 2, "maxSequences": 1}"#).unwrap();
    let server = serving(&root, Control::Explicit, |_| {}).await;
    assert_eq!(verb(&server, "pair", "load").await.0, 200);
    assert_eq!(entry(&server, "pair", 1).await.instances, 2);
    // Each has room for one: both run, or the second would wait for the first.
    let body = chat_body(json!({"model": "pair", "max_tokens": 16000}));
    let mut both = Vec::new();
    for busy in [1.0, 2.0] {
        both.push(tokio::spawn(server.http.post(server.url("/v1/chat/completions")).json(&body).send()));
        until("another instance has something to do", || async {
            running(&server, "pair:1#1").await + running(&server, "pair:1#2").await == busy
        })
        .await;
    }
    both.iter().for_each(|request| request.abort());
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_answer_while_a_model_is_loaded() {
    let root = repository(&[]);
    let large = TinyModel { layers: 6, hidden: 512, ..TinyModel::default() };
    write(root.path(), "large", 1, &large);
    let server = serving(&root, Control::Explicit, |_| {}).await;
    let load = verb(&server, "large", "load");
    tokio::pin!(load);
    let mut answered = 0;
    let status = loop {
        let ask = server.chat(json!({"max_tokens": 1}));
        tokio::select! {
            biased;
            answer = ask => {
                assert_eq!(answer.status(), 200);
                answered += 1;
            }
            (status, _) = &mut load => break status,
        }
        if futures::poll!(&mut load).is_ready() {
            break 200;
        }
    };
    assert_eq!((status, state(&server, "large").await), (200, "Ready".to_owned()));
    assert!(answered > 0, "nobody was answered before it was loaded");
}

/// Of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_alone_is_a_server_and_memory_comes_back() {
    let root = repository(&[]);
    let large = TinyModel { layers: 8, hidden: 512, ..TinyModel::default() };
    write(root.path(), "large", 1, &large);
    let mut command = tokio::process::Command::new(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]);
    command.arg("--termination-log").arg(root.path().join("why"));
    command.arg("--model-repository").arg(root.path()).args(["--model-control", "on-demand"]);
    let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut address = None;
    let mut log = String::new();
    while !log.contains("\"ready\"") {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
        let line = line.unwrap_or_else(|| panic!("it ended early:\n{log}"));
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        address = address.or_else(|| event["address"].as_str().map(str::to_owned));
        log.push_str(&line);
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let url = |path: &str| format!("http://{}{path}", address.as_ref().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let pid = child.id().unwrap();
    let post =
        async |path: &str, body: &Value| http.post(url(path)).json(body).send().await.unwrap().status();
    let size = std::fs::metadata(root.path().join("large/1/model.safetensors")).unwrap().len();
    assert!(size > 40 << 20);
    let empty = resident(pid);
    let mut peaks = Vec::new();
    for _ in 0..3 {
        let body = chat_body(json!({"model": "large", "max_tokens": 1}));
        assert_eq!(post("/v1/chat/completions", &body).await, 200);
        let full = resident(pid);
        peaks.push(full);
        assert!(full > empty + size / 2, "{empty} → {full} bytes with a model of {size}");
        assert_eq!(post("/v2/repository/models/large/unload", &json!({})).await, 200);
        let deadline = Instant::now() + Duration::from_secs(30);
        while resident(pid) > empty + size / 4 {
            assert!(
                Instant::now() < deadline,
                "{} of {full} bytes are kept, {empty} are its own, {size} the model's",
                resident(pid)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(peaks[2] < peaks[0] + size / 4, "it grows: {peaks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_load_as_long_as_it_has_time() {
    let root = repository(&[]);
    write(root.path(), "slow", 1, &long_winded());
    std::fs::remove_file(root.path().join("slow/candela.json")).unwrap();
    let server = serving(&root, Control::OnDemand, |_| {}).await;
    let mut events =
        Events::of(server.chat(json!({"model": "slow", "stream": true, "max_tokens": 10_000})).await);
    events.next().await.unwrap();
    // Until that has ended, it cannot be loaded again.
    assert_eq!(verb(&server, "slow", "unload").await.0, 200);
    let body = json!({"text_input": "a", "parameters": {"timeout": 300_000}});
    let began = Instant::now();
    let answer = server.post("/v2/models/slow/generate", &body).await;
    assert_eq!(answer.status(), 504, "{}", answer.text().await.unwrap());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(state(&server, "slow").await, "Draining");
    drop(events);
    server.settled().await;
}
