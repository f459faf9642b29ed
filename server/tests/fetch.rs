//! The init step against a hub and a plain web server, with their faults.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, path::Path, time::Duration};

use axum::http::Method;
use bytes::Bytes;
use candela_server::{Fatal, fetch};
use candela_wire::{
    config::{ModelConfig, ServerConfig},
    termination::{ExitReason, TerminationMessage},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{
    NAME, binary, config, fetch_options,
    hub::{Fault, Hub, Repo, TOKEN},
    until,
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn noise(seed: u8, len: usize) -> Bytes {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

/// Two shards and their index; what is in them does not matter to a fetch.
fn sharded() -> Repo {
    let index = json!({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}});
    let text = |text: &str| Bytes::from(text.to_owned());
    Repo {
        files: BTreeMap::from([
            ("config.json".into(), text("{}")),
            ("tokenizer.json".into(), text("{\"a\": 1}")),
            ("tokenizer_config.json".into(), text("{}")),
            ("model.safetensors.index.json".into(), text(&index.to_string())),
            ("model-1-of-2.safetensors".into(), noise(1, MIB)),
            ("model-2-of-2.safetensors".into(), noise(2, MIB / 2)),
            ("pytorch_model.bin".into(), noise(3, 100)),
        ]),
    }
}

async fn hub() -> Hub {
    let repos = ["org/sharded", "gated/model"].map(|name| (name.to_owned(), sharded()));
    Hub::start(repos.into()).await.unwrap()
}

async fn fetch_with(hub: &Hub, config: ServerConfig, to: &Path) -> Result<Value, Fatal> {
    fetch::run(fetch_options(config, to, &hub.endpoint), None).await?;
    let facts = std::fs::read(to.join(NAME).join("candela-fetch.json")).unwrap();
    Ok(serde_json::from_slice(&facts).unwrap())
}

fn check_files(to: &Path) {
    for (name, bytes) in sharded().files {
        let path = to.join(NAME).join(&name);
        match name.as_str() {
            "pytorch_model.bin" => assert!(!path.exists(), "not fetched"),
            _ => assert_eq!(std::fs::read(path).unwrap(), bytes, "{name}"),
        }
    }
    let left = std::fs::read_dir(to.join(NAME)).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains(".part")
    });
    assert_eq!(left.count(), 0, "no parts are left");
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_sharded_gated_repository_comes_whole_and_the_token_goes_to_the_hub_only() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    let token = to.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let mut config = config("hf://gated/model");
    config.models[0].credentials_file = Some(token.display().to_string());
    let facts = fetch_with(&hub, config.clone(), to.path()).await.unwrap();
    check_files(to.path());
    assert_eq!(facts["resolvedRevision"], sharded().commit());
    let files = sharded().files;
    let list: String = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
        .map(|name| format!("{}  {name}\n", sha256(&files[name])))
        .concat();
    assert_eq!(facts["digest"], sha256(list.as_bytes()));
    let seen = hub.seen();
    assert!(seen.iter().filter(|request| !request.content_network).all(|request| request.authorized));
    let redirected: Vec<_> = seen.iter().filter(|request| request.content_network).collect();
    assert!(redirected.len() >= 2 && redirected.iter().all(|request| !request.authorized), "{redirected:?}");
    // The next start of the same pod asks nobody.
    fetch_with(&hub, config, to.path()).await.unwrap();
    assert_eq!(hub.seen().len(), seen.len());
}

#[tokio::test]
async fn several_models_have_folders_of_their_own_and_a_fault_names_its_model() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    let token = to.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let mut both = config("hf://org/sharded");
    both.models.push(ModelConfig::new("org/second", "hf://gated/model"));
    // The one that may not be had says so, whatever came before it.
    let fatal = fetch_with(&hub, both.clone(), to.path()).await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::WeightsUnauthorized);
    assert!(fatal.message.starts_with("model `org/second`: "), "{}", fatal.message);
    check_files(to.path());
    // With its token it comes, and the first one is not asked for again.
    let before = hub.seen().len();
    both.models[1].credentials_file = Some(token.display().to_string());
    fetch_with(&hub, both, to.path()).await.unwrap();
    assert!(to.path().join("org+second/candela-fetch.json").is_file());
    let seen = hub.seen();
    assert!(seen[before..].iter().all(|request| !request.path.contains("org/sharded")), "{seen:?}");
}

#[tokio::test]
async fn what_the_hub_refuses_is_one_reason_each() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    let wrong = to.path().join("token");
    std::fs::write(&wrong, "wrong").unwrap();
    let reason = async |uri: &str, revision: Option<&str>, token: Option<&Path>| {
        let mut config = config(uri);
        config.models[0].revision = revision.map(str::to_owned);
        config.models[0].credentials_file = token.map(|path| path.display().to_string());
        let fatal = fetch_with(&hub, config, to.path()).await.unwrap_err();
        assert!(!fatal.message.contains("wrong"), "a token in {}", fatal.message);
        fatal.reason
    };
    assert_eq!(reason("hf://gated/model", None, None).await, ExitReason::WeightsUnauthorized);
    assert_eq!(reason("hf://gated/model", None, Some(&wrong)).await, ExitReason::WeightsUnauthorized);
    assert_eq!(reason("hf://org/nothing", None, None).await, ExitReason::WeightsNotFound);
    assert_eq!(reason("hf://org/sharded", Some("v9"), None).await, ExitReason::WeightsNotFound);
    assert_eq!(reason("hf://org/sharded/m.gguf", None, None).await, ExitReason::WeightsNotFound);
    let no_file = to.path().join("nothing");
    assert_eq!(reason("hf://gated/model", None, Some(&no_file)).await, ExitReason::WeightsUnauthorized);
    // No key in the Secret, no file: the words lead there, and not to the path of a mount.
    let mut config = config("hf://gated/model");
    config.models[0].credentials_file = Some(no_file.display().to_string());
    let fatal = fetch_with(&hub, config, to.path()).await.unwrap_err();
    assert!(fatal.message.contains("`credentialsRef` has no such `key`"), "{}", fatal.message);
}

#[tokio::test]
async fn a_folder_holds_what_was_asked_for_last_and_is_served_for_nothing_else() {
    let to = TempDir::new().unwrap();
    let tiny = support::model_files(&candela_engine::testing::TinyModel::default());
    let repos = [("org/sharded", sharded()), ("org/tiny", tiny)];
    let hub = Hub::start(repos.map(|(name, repo)| (name.to_owned(), repo)).into()).await.unwrap();
    fetch_with(&hub, config("hf://org/sharded"), to.path()).await.unwrap();
    fetch_with(&hub, config("hf://org/tiny"), to.path()).await.unwrap();
    let folder = to.path().join(NAME);
    assert!(folder.join("model.safetensors").exists());
    for old in ["model.safetensors.index.json", "model-1-of-2.safetensors"] {
        assert!(!folder.join(old).exists(), "{old} belongs to another model");
    }
    // A restarted container whose configuration is another than that of its pod's fetch.
    let fatal = async {
        let mut options = candela_server::serve::Options::new(config("hf://org/sharded"));
        options.models_dir = to.path().to_owned();
        options.listen = ([127, 0, 0, 1], 0).into();
        options.internal_listen = options.listen;
        let running = candela_server::serve::start(options).await.unwrap();
        running.run(std::future::pending()).await.unwrap_err()
    }
    .await;
    assert_eq!(fatal.reason, ExitReason::InvalidConfiguration, "{}", fatal.message);
    assert!(fatal.message.contains("org/tiny") && fatal.message.contains("org/sharded"), "{}", fatal.message);
}

#[tokio::test]
async fn broken_connections_and_passing_errors_are_resumed() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    for fault in [Fault::CutAfter(100_000), Fault::Status(503), Fault::CutAfter(1), Fault::Status(429)] {
        hub.fault(fault);
    }
    let mut config = config("hf://org/sharded");
    // A commit instead of a branch.
    config.models[0].revision = Some(sharded().commit());
    let facts = fetch_with(&hub, config, to.path()).await.unwrap();
    check_files(to.path());
    let gets = hub.seen().into_iter().filter(|seen| seen.content_network && seen.method == Method::GET);
    let ranges: Vec<_> = gets.map(|seen| seen.range).collect();
    let starts = |range: &Option<String>, start: usize| range.as_deref() == Some(&format!("bytes={start}-"));
    assert!(ranges[0].is_none() && starts(&ranges[1], 100_000) && starts(&ranges[2], 100_000), "{ranges:?}");
    assert!(starts(&ranges[3], 100_001) && starts(&ranges[4], 100_001), "{ranges:?}");
    let total: usize =
        sharded().files.iter().filter(|(name, _)| *name != "pytorch_model.bin").map(|(_, b)| b.len()).sum();
    assert_eq!(facts["fetchedBytes"], total, "no byte came twice");
}

#[tokio::test]
async fn a_source_that_stays_broken_is_given_up() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    for _ in 0..9 {
        hub.fault(Fault::Status(500));
    }
    let fatal = fetch_with(&hub, config("hf://org/sharded"), to.path()).await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::WeightsFetchFailed);
    assert!(fatal.message.contains("gave up after 4 attempts"), "{}", fatal.message);
    assert!(!fatal.message.contains("secret-signature"), "{}", fatal.message);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_do_not_stay() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    hub.fault(Fault::Corrupt);
    let fatal = fetch_with(&hub, config("hf://org/sharded"), to.path()).await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::ChecksumMismatch);
    let folder = to.path().join(NAME);
    assert!(!folder.join("model-1-of-2.safetensors").exists() && !folder.join("candela-fetch.json").exists());
    // As the resource asks for, when nobody else vouches.
    let mut pinned = config("hf://org/sharded");
    pinned.models[0].sha256 = Some("0".repeat(64));
    assert_eq!(fetch_with(&hub, pinned, to.path()).await.unwrap_err().reason, ExitReason::ChecksumMismatch);
    fetch_with(&hub, config("hf://org/sharded"), to.path()).await.unwrap();
    check_files(to.path());
}

#[tokio::test]
async fn a_source_that_falls_silent_is_a_stall() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    hub.fault(Fault::StallAfter(1000));
    let mut config = config("hf://org/sharded");
    config.startup_stall_seconds = 1;
    let fatal = fetch_with(&hub, config, to.path()).await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::StartupStalled);
}

#[tokio::test]
async fn a_killed_fetch_goes_on_where_it_was_and_shows_its_progress() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    hub.fault(Fault::StallAfter(700_000));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(to.path().join("server.json"), serde_json::to_vec(&config("hf://org/sharded")).unwrap())
        .unwrap();
    let command = || {
        let mut command = tokio::process::Command::new(binary());
        command.arg("fetch").env("HF_ENDPOINT", &hub.endpoint).kill_on_drop(true);
        command.arg("--to").arg(to.path()).arg("--internal-listen").arg(port.to_string());
        command.arg("--config").arg(to.path().join("server.json"));
        command.arg("--termination-log").arg(to.path().join("why"));
        command
    };
    let mut child = command().spawn().unwrap();
    // The fetch under test is another process, and this one's may not have begun.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let part = to.path().join(NAME).join("model-1-of-2.safetensors.part");
    until("most of the first shard is there, and the metrics say so", || async {
        let written = std::fs::metadata(&part).is_ok_and(|meta| meta.len() == 700_000);
        let Ok(answer) = http.get(format!("http://{port}/metrics")).send().await else { return false };
        let text = answer.text().await.unwrap();
        let bytes = text
            .lines()
            .find_map(|line| line.strip_prefix("candela_server_progress_bytes{phase=\"Fetch\"} "));
        written && bytes.is_some_and(|bytes| bytes.parse::<u64>().unwrap() >= 700_000)
    })
    .await;
    child.start_kill().unwrap();
    assert!(!child.wait().await.unwrap().success());
    assert!(command().status().await.unwrap().success());
    check_files(to.path());
    let resumed = hub.seen().into_iter().filter_map(|seen| seen.range).next_back();
    assert_eq!(resumed.as_deref(), Some("bytes=700000-"));
    // What cannot work says why, in the operator's words.
    std::fs::write(to.path().join("server.json"), serde_json::to_vec(&config("hf://org/nothing")).unwrap())
        .unwrap();
    assert_eq!(command().status().await.unwrap().code(), Some(1));
    let why = std::fs::read_to_string(to.path().join("why")).unwrap();
    assert_eq!(TerminationMessage::parse(&why).unwrap().reason, ExitReason::WeightsNotFound);
}

#[tokio::test]
async fn plain_web_servers_serve_folders_and_single_files() {
    let mut repo = sharded();
    let sums: String =
        repo.files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect();
    repo.files.insert("SHA256SUMS".into(), sums.into());
    let mut single = Repo { files: BTreeMap::from([("m.gguf".into(), noise(4, 1000))]) };
    let repos = BTreeMap::from([("web/folder".into(), repo), ("web/single".into(), single.clone())]);
    let (hub, to) = (Hub::start(repos).await.unwrap(), TempDir::new().unwrap());
    let folder = hub.content_url("web/folder", "");
    fetch_with(&hub, config(folder.trim_end_matches('/')), to.path()).await.unwrap();
    check_files(to.path());
    let facts = fetch_with(&hub, config(&hub.content_url("web/single", "m.gguf")), to.path()).await.unwrap();
    assert_eq!(facts["digest"], sha256(&single.files["m.gguf"]));
    assert_eq!(std::fs::read(to.path().join(NAME).join("m.gguf")).unwrap(), single.files["m.gguf"]);
    // The same behind signed URLs, which allow GET only.
    let signed = TempDir::new().unwrap();
    fetch_with(&hub, config(&format!("{folder}?signed")), signed.path()).await.unwrap();
    check_files(signed.path());
    let missing =
        fetch_with(&hub, config(&hub.content_url("web/no", "?signed")), signed.path()).await.unwrap_err();
    assert_eq!(missing.reason, ExitReason::WeightsUnauthorized);
    // The sums beside the file do not fit.
    single.files.insert("SHA256SUMS".into(), format!("{}  m.gguf\n", "0".repeat(64)).into());
    let hub = Hub::start(BTreeMap::from([("web/single".into(), single)])).await.unwrap();
    let mismatch =
        fetch_with(&hub, config(&hub.content_url("web/single", "m.gguf")), to.path()).await.unwrap_err();
    assert_eq!(mismatch.reason, ExitReason::ChecksumMismatch);
}

#[tokio::test]
async fn redirects_lead_nowhere_they_should_not() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    for (target, why) in [
        ("http://169.254.169.254/", "where clouds keep credentials"),
        ("http://[::]/", "where clouds keep credentials"),
        ("file:///etc/passwd", "must be http or https"),
        ("http://a:b@127.0.0.1/", "user name"),
        ("/again", "more than 5 redirects"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = move || async move { (axum::http::StatusCode::FOUND, [("location", target)], "") };
        let router = axum::Router::new().fallback(answer);
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let uri = format!("http://{address}/m.gguf");
        let fatal = fetch_with(&hub, config(&uri), to.path()).await.unwrap_err();
        assert_eq!(fatal.reason, ExitReason::WeightsFetchFailed, "for {target}");
        assert!(fatal.message.contains(why), "{target}: {}", fatal.message);
        server.abort();
    }
}

#[tokio::test]
async fn a_deadline_ends_a_fetch_that_only_trickles() {
    let (hub, to) = (hub().await, TempDir::new().unwrap());
    hub.fault(Fault::StallAfter(10));
    let mut options = fetch_options(config("hf://org/sharded"), to.path(), &hub.endpoint);
    options.deadline = Duration::from_millis(500);
    let fatal = fetch::run(options, None).await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::WeightsFetchFailed);
    assert!(fatal.message.contains("did not end"), "{}", fatal.message);
}
