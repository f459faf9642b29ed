//! The program on a machine that has no time for it: slow is not stuck.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{net::SocketAddr, process::Stdio, time::Duration};

use candela_engine::testing::TinyModel;
use candela_wire::{
    config::ServerConfig,
    health::{LIVENESS, ProbeTiming, READINESS},
};
use serde_json::{Value, json};
use support::{NAME, binary, config};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};

/// Of the load; a stuck engine is found in less.
const LOAD: Duration = Duration::from_secs(20);

/// A shell that never rests.
fn hog() -> Child {
    Command::new("sh").args(["-c", "while :; do :; done"]).kill_on_drop(true).spawn().unwrap()
}

/// The program at the lowest priority, with the addresses of its listeners.
async fn serving_niced(folder: &TempDir) -> (Child, SocketAddr, SocketAddr) {
    let files = folder.path().join(NAME);
    std::fs::create_dir(&files).unwrap();
    // A prompt of 8192 tokens is one step of this.
    let model = TinyModel { layers: 4, hidden: 256, context_length: 1 << 15, ..TinyModel::default() };
    model.write_folder(&files).unwrap();
    let mut config: ServerConfig = config(&format!("file://{}", files.display()));
    config.batching.max_batch_tokens = Some(1 << 13);
    let path = folder.path().join("server.json");
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(binary());
    command.args(["serve", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0", "--config"]);
    command.arg(path).arg("--termination-log").arg(folder.path().join("why"));
    let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut log, mut addresses) = (String::new(), None);
    while !log.contains("\"ready\"") {
        let line = timeout(Duration::from_secs(120), lines.next_line()).await.expect("ready in time");
        let line = line.unwrap().unwrap_or_else(|| panic!("it ended early:\n{log}"));
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let address = |name: &str| event[name].as_str().map(|text| text.parse().unwrap());
        addresses = addresses.or_else(|| address("address").zip(address("internal_address")));
        log.push_str(&(line + "\n"));
    }
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let (address, internal) = addresses.expect("it says where it listens");
    (child, address, internal)
}

/// Most failures in a row, asked as the kubelet does until `end`.
async fn failures(internal: SocketAddr, path: &str, timing: ProbeTiming, end: Instant) -> u32 {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut periods = tokio::time::interval(Duration::from_secs(timing.period_secs.into()));
    let (mut row, mut most) = (0, 0);
    while Instant::now() < end {
        periods.tick().await;
        let asked = client.get(format!("http://{internal}{path}"));
        let answer = asked.timeout(Duration::from_secs(timing.timeout_secs.into())).send().await;
        row = if answer.is_ok_and(|answer| answer.status().is_success()) { 0 } else { row + 1 };
        most = most.max(row);
    }
    most
}

/// The longest silence that the engine shows, and the tokens that it computed meanwhile.
async fn watched(internal: SocketAddr, end: Instant) -> (f64, f64) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    let (mut longest, mut tokens) = (0.0f64, 0.0);
    while Instant::now() < end {
        looks.tick().await;
        let Ok(answer) = client.get(format!("http://{internal}/metrics")).send().await else { continue };
        let text = answer.text().await.unwrap_or_default();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
            line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap_or_default()
        };
        longest = longest.max(value("candela_server_engine_silent_seconds"));
        tokens = value("candela_server_prompt_tokens_total");
    }
    (longest, tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_steps_at_the_lowest_priority_beside_busy_loops_are_no_alarm() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = TempDir::new().unwrap();
    let (_server, address, internal) = serving_niced(&folder).await;
    let threads = std::thread::available_parallelism().unwrap().get();
    let _hogs: Vec<Child> = (0..2 * threads).map(|_| hog()).collect();
    let end = Instant::now() + LOAD;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let load = (0u32..6).map(|i| {
        let client = client.clone();
        tokio::spawn(async move {
            // Each begins otherwise, so that none finds another's keys and values.
            let prompt: Vec<u32> = (0..8190).map(|at| (at * 7 + i * 31) % 250).collect();
            let body = json!({"model": NAME, "prompt": prompt, "max_tokens": 64, "ignore_eos": true});
            let asked = client.post(format!("http://{address}/v1/completions")).json(&body);
            // Most take longer than the test lasts.
            let _ = timeout(LOAD, asked.send()).await;
        })
    });
    let load: Vec<_> = load.collect();
    let (not_ready, not_alive, (silent, tokens)) = tokio::join!(
        failures(internal, "/readyz", READINESS, end),
        failures(internal, "/livez", LIVENESS, end),
        watched(internal, end),
    );
    for task in load {
        task.abort();
    }
    eprintln!(
        "most failures in a row: {not_ready} of /readyz, {not_alive} of /livez; longest silence {silent:.2} s"
    );
    assert!(tokens > 8000.0, "there was no load: {tokens} tokens");
    assert!(not_ready < READINESS.failures, "/readyz failed {not_ready} times in a row");
    assert!(not_alive < LIVENESS.failures, "/livez failed {not_alive} times in a row");
}
