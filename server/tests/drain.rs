//! What clients notice while a pod goes: nothing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use candela_engine::testing::TinyModel;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;
use support::{Events, Server, chat_body, long_winded, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const LIST: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";

/// The head of one answer, or what came of it.
async fn head(connection: &mut TcpStream) -> String {
    let mut buffer = vec![0; 4096];
    let read = timeout(Duration::from_secs(10), connection.read(&mut buffer)).await.expect("in time");
    let n = read.unwrap_or_else(|err| panic!("the connection failed: {err}"));
    String::from_utf8_lossy(&buffer[..n]).to_lowercase()
}

#[tokio::test]
async fn a_request_that_crosses_the_close_of_its_resting_connection_is_answered() {
    let mut server = Server::of(&TinyModel::default()).await;
    let mut resting = TcpStream::connect(server.address).await.unwrap();
    resting.write_all(LIST).await.unwrap();
    assert!(head(&mut resting).await.starts_with("http/1.1 200"));
    server.terminate();
    let address = server.address;
    until("it stops accepting", || async { TcpStream::connect(address).await.is_err() }).await;
    // The client could not know.
    resting.write_all(LIST).await.unwrap();
    let answer = head(&mut resting).await;
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer:?}");
    server.ended().await.unwrap();
}

#[tokio::test]
async fn who_waits_in_the_backlog_is_answered_when_the_drain_begins() {
    let mut server = Server::with(&long_winded(), |options| options.limits.connections = 1).await;
    let mut stream = Events::of(server.chat(json!({"max_tokens": 2000, "stream": true})).await);
    stream.next().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        connection.write_all(LIST).await.unwrap();
        waiting.push(connection);
    }
    server.terminate();
    for mut connection in waiting {
        let answer = head(&mut connection).await;
        assert!(answer.starts_with("http/1.1 200"), "{answer:?}");
    }
    drop(stream);
    server.ended().await.unwrap();
}

/// Clients that never repeat a request by themselves, as fast as they can, with kept and with new connections.
/// As in a cluster, they stop using the pod some time after it stops being ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_a_pod_is_drained_under_load() {
    let mut server = Server::with(&TinyModel::default(), |options| {
        options.limits.drain_window = Duration::from_secs(3);
    })
    .await;
    let (gone, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for i in 0..12 {
        let mut client = Client::builder(TokioExecutor::new());
        client.retry_canceled_requests(false);
        if i % 2 == 0 {
            client.pool_max_idle_per_host(0);
        }
        let client = client.build_http::<Full<bytes::Bytes>>();
        let (url, body) =
            (server.url("/v1/chat/completions"), chat_body(json!({"max_tokens": 1})).to_string());
        let (gone, answered) = (Arc::clone(&gone), Arc::clone(&answered));
        clients.push(tokio::spawn(async move {
            while !gone.load(Ordering::Relaxed) {
                let request = http::Request::post(&url)
                    .header("content-type", "application/json")
                    .body(Full::from(body.clone()))
                    .unwrap();
                let response = client.request(request).await.expect("the connection holds");
                // A full queue is an answer, too.
                assert!([200, 429].contains(&response.status().as_u16()), "{response:?}");
                response.into_body().collect().await.expect("the answer is whole");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    until("they are at work", || async { answered.load(Ordering::Relaxed) > 50 }).await;
    server.terminate();
    until("it is not ready", || async { server.probe("readyz").await == 503 }).await;
    let before = answered.load(Ordering::Relaxed);
    until("it answers on", || async { answered.load(Ordering::Relaxed) > before + 20 }).await;
    gone.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    server.ended().await.unwrap();
}

#[tokio::test]
async fn probes_are_answered_whatever_rests_on_their_port() {
    let server = Server::of(&TinyModel::default()).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut connection = TcpStream::connect(server.internal).await.unwrap();
        connection.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        held.push(connection);
    }
    let probe = timeout(Duration::from_secs(5), server.probe("livez")).await;
    assert_eq!(probe.expect("a probe does not wait for others"), 200);
    // Neither are they kept, nor those that say nothing.
    held.push(TcpStream::connect(server.internal).await.unwrap());
    for mut connection in held {
        let mut all = Vec::new();
        let closed = timeout(Duration::from_secs(5), connection.read_to_end(&mut all)).await;
        assert!(closed.is_ok(), "still open");
    }
}

#[tokio::test]
async fn a_full_server_closes_the_connection_that_rests_longest() {
    let server = Server::with(&TinyModel::default(), |options| options.limits.connections = 2).await;
    let mut resting = Vec::new();
    for _ in 0..2 {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        connection.write_all(LIST).await.unwrap();
        assert!(head(&mut connection).await.starts_with("http/1.1 200"));
        resting.push(connection);
    }
    let mut third = TcpStream::connect(server.address).await.unwrap();
    third.write_all(LIST).await.unwrap();
    assert!(head(&mut third).await.starts_with("http/1.1 200"), "it does not wait for others to rest enough");
    assert_eq!(head(&mut resting[0]).await, "", "closed");
    resting[1].write_all(LIST).await.unwrap();
    assert!(head(&mut resting[1]).await.starts_with("http/1.1 200"));
}
