//! Overload, clients that leave or dawdle, and the drain.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use candela_engine::testing::TinyModel;
use candela_server::{Limits, serve};
use candela_wire::{
    config::Accelerator,
    internal::State,
    openai::ErrorBody,
    termination::{ExitReason, TerminationMessage},
};
use serde_json::json;
use support::{Events, Server, binary, chat_body, config, fetched, long_winded, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

fn one_slot(options: &mut serve::Options) {
    options.limits.sequences = 1;
    options.limits.queue = 1;
}

const LONG: u32 = 16_000;

#[tokio::test]
async fn a_full_queue_is_429_and_clients_that_leave_free_their_slots() {
    let server = Server::with(&long_winded(), one_slot).await;
    let mut running = Events::of(server.chat(json!({"max_tokens": LONG, "stream": true})).await);
    running.next().await.unwrap();
    let waiting =
        server.http.post(server.url("/v1/chat/completions")).json(&chat_body(json!({"max_tokens": LONG})));
    let waiting = tokio::spawn(waiting.send());
    until("the second waits", || async { server.status().await.requests.queued == 1 }).await;
    let began = Instant::now();
    let refused = server.chat(json!({})).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(began.elapsed() < Duration::from_secs(1), "a refusal does not wait");
    let error: ErrorBody = refused.json().await.unwrap();
    assert_eq!(error.error.code.as_deref(), Some("queue_full"));
    // One leaves in the middle of its stream, one before its answer.
    drop(running);
    waiting.abort();
    server.settled().await;
    assert_eq!(server.chat(json!({})).await.status(), 200);
    let metrics = server.metrics().await;
    assert!(metrics.contains("outcome=\"client_gone\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_first_token_that_is_late_is_an_error_and_not_a_stream() {
    let server = Server::with(&long_winded(), |options| {
        one_slot(options);
        options.config.timeouts.first_token_ms = Some(200);
    })
    .await;
    let mut running = Events::of(server.chat(json!({"max_tokens": LONG, "stream": true})).await);
    running.next().await.unwrap();
    let late = server.chat(json!({"stream": true})).await;
    assert_eq!(late.status(), 504);
    let error: ErrorBody = late.json().await.unwrap();
    assert_eq!(error.error.code.as_deref(), Some("first_token_timeout"));
    // It gave its place in the queue back, and the one before it is not disturbed.
    until("nothing waits", || async { server.status().await.requests.queued == 0 }).await;
    assert!(running.next().await.is_some());
}

#[tokio::test]
async fn clients_that_send_too_slowly_are_cut_off_and_resting_ones_are_not() {
    let server = Server::with(&TinyModel::default(), |options| {
        options.limits = Limits { header: Duration::from_millis(300), ..options.limits.clone() };
    })
    .await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut resting = TcpStream::connect(server.address).await.unwrap();
    let request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut buffer = vec![0; 4096];
    resting.write_all(request).await.unwrap();
    assert!(resting.read(&mut buffer).await.unwrap() > 0);
    for connection in [&mut slow, &mut silent] {
        let closed =
            timeout(Duration::from_secs(5), connection.read(&mut buffer)).await.expect("closed in time");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
    // Older than the limit by now, and still welcome; but a dawdling second request is not.
    resting.write_all(request).await.unwrap();
    let n = resting.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
    resting.write_all(b"GET /v1").await.unwrap();
    let closed = timeout(Duration::from_secs(5), resting.read(&mut buffer)).await.expect("closed in time");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    assert!(server.metrics().await.contains("candela_server_connections_closed_slow_total 3"));
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_keep_its_slot() {
    let server = Server::with(&long_winded(), |options| {
        let limits = options.limits.clone();
        options.limits = Limits { write: Duration::from_millis(300), unread_tokens: 8, ..limits };
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    let body = chat_body(json!({"max_tokens": LONG, "stream": true, "logprobs": true, "top_logprobs": 20}))
        .to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(request.as_bytes()).await.unwrap();
    // A fast engine may be done with it before anybody looks.
    until("it began", || async {
        let in_flight = server.status().await.requests.in_flight == 1;
        in_flight || server.metrics().await.contains("outcome=\"client")
    })
    .await;
    server.settled().await;
    let metrics = server.metrics().await;
    assert!(!metrics.contains("outcome=\"length\""), "cut off, not finished:\n{metrics}");
}

#[tokio::test]
async fn connections_over_the_bound_wait_and_are_served_later() {
    let server = Server::with(&TinyModel::default(), |options| options.limits.connections = 1).await;
    let held = TcpStream::connect(server.address).await.unwrap();
    until("the first is accepted", || async {
        server.metrics().await.contains("candela_server_connections 1")
    })
    .await;
    let later = server.http.get(server.url("/v1/models")).send();
    tokio::pin!(later);
    // Not answered while the first is open: polled a while, it stays pending.
    assert!(timeout(Duration::from_millis(100), &mut later).await.is_err());
    drop(held);
    assert_eq!(timeout(Duration::from_secs(5), later).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_drain_loses_no_stream() {
    let mut server = Server::with(&long_winded(), |options| {
        options.limits.drain_window = Duration::from_secs(1);
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut events = Events::of(server.chat(json!({"max_tokens": 400, "stream": true})).await);
        events.next().await.unwrap();
        streams.push(events);
    }
    server.terminate();
    until("it is not ready", || async { server.probe("readyz").await == 503 }).await;
    assert_eq!(server.status().await.state, State::Draining);
    assert_eq!(server.probe("livez").await, 200);
    // Endpoints have not forgotten it yet: new requests are answered, and told to go elsewhere next time.
    let late = server.chat(json!({"max_tokens": 2})).await;
    assert_eq!((late.status().as_u16(), late.headers()["connection"].to_str().unwrap()), (200, "close"));
    drop(late);
    let address = server.address;
    until("it stops accepting", || async { TcpStream::connect(address).await.is_err() }).await;
    for events in streams {
        let events = events.rest().await;
        assert_eq!(events.last().unwrap(), "[DONE]");
    }
    server.ended().await.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_period_ends_with_an_error_event() {
    let mut server = Server::with(&long_winded(), |options| {
        options.config.termination_grace_seconds = 2;
    })
    .await;
    let mut stream = Events::of(server.chat(json!({"max_tokens": LONG, "stream": true})).await);
    stream.next().await.unwrap();
    let began = Instant::now();
    server.terminate();
    let events = stream.rest().await;
    let last: ErrorBody = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last.error.code.as_deref(), Some("shutting_down"));
    server.ended().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test]
async fn accelerators_that_this_build_cannot_use_are_refused() {
    let mut options = serve::Options::new(config("builtin://demo"));
    options.config.accelerator = Some(Accelerator { resource_name: "nvidia.com/gpu".into(), count: 1 });
    let refused = serve::start(options).await.err().unwrap();
    assert_eq!(refused.reason, ExitReason::DeviceUnsupported);
    assert!(refused.message.contains("--device cpu"), "{}", refused.message);
}

/// The program itself: arguments, signals, exit codes, termination messages.
#[tokio::test]
async fn the_program_drains_on_sigterm_and_says_why_it_gives_up() {
    let models = fetched(&TinyModel::default()).await;
    let path = |name: &str| models.path().join(name);
    let run = |config: &candela_wire::config::ServerConfig| {
        std::fs::write(path("server.json"), serde_json::to_vec(config).unwrap()).unwrap();
        let mut command = tokio::process::Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]);
        command.args(["--drain-window-seconds", "0"]);
        for (flag, name) in [("--config", "server.json"), ("--termination-log", "why")] {
            command.arg(flag).arg(path(name));
        }
        command.arg("--models-dir").arg(models.path()).kill_on_drop(true);
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let mut wrong = config("hf://org/tiny");
    wrong.models[0].sha256 = Some("0".repeat(64));
    let exited = run(&wrong).wait().await.unwrap();
    assert_eq!(exited.code(), Some(1));
    let why = TerminationMessage::parse(&std::fs::read_to_string(path("why")).unwrap()).unwrap();
    assert_eq!(why.reason, ExitReason::ChecksumMismatch);

    let mut child = run(&config("hf://org/tiny"));
    let mut log = String::new();
    let mut stderr = child.stderr.take().unwrap();
    while !log.contains("\"ready\"") {
        let mut buffer = [0; 4096];
        let n =
            timeout(Duration::from_secs(30), stderr.read(&mut buffer)).await.expect("ready in time").unwrap();
        assert!(n > 0, "it ended early:\n{log}");
        log.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    let id = child.id().unwrap().to_string();
    let sent = tokio::process::Command::new("kill").args(["-TERM", &id]).status().await.unwrap();
    assert!(sent.success());
    let exited = timeout(Duration::from_secs(20), child.wait()).await.expect("exits in time").unwrap();
    assert_eq!(exited.code(), Some(0));
}
