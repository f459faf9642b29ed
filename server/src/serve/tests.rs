//! Probes and deadlines in states that clients cannot bring about.

use std::{ops::ControlFlow, sync::mpsc};

use axum::body::Body;
use candela_engine::{GenerateRequest, Sink};
use candela_wire::config::{ModelConfig, Timeouts};
use http::Request;
use tower::ServiceExt;

use super::*;

async fn started(change: impl FnOnce(&mut Options)) -> Running {
    let model = ModelConfig {
        served_name: "demo".into(),
        uri: "builtin://demo".into(),
        revision: None,
        format: None,
        context_length: None,
        sha256: None,
        credentials_file: None,
    };
    let mut options = Options::new(ServerConfig {
        version: 1,
        models: vec![model],
        accelerator: None,
        timeouts: Timeouts::default(),
        termination_grace_seconds: 30,
        startup_stall_seconds: 60,
    });
    options.listen = ([127, 0, 0, 1], 0).into();
    options.internal_listen = options.listen;
    change(&mut options);
    start(options).await.unwrap()
}

async fn probe(app: &Arc<App>, path: &str) -> u16 {
    let request = Request::get(path).body(Body::empty()).unwrap();
    internal::router(Arc::clone(app)).oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_load_that_moves_has_started_and_one_that_stalls_has_not() {
    let moving = started(|_| {}).await;
    assert_eq!(probe(&moving.app, "/startupz").await, 200);
    assert_eq!(probe(&moving.app, "/readyz").await, 503, "no traffic yet");
    let stalled = started(|options| options.config.startup_stall_seconds = 0).await;
    assert_eq!(probe(&stalled.app, "/startupz").await, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wedged_engine_loses_traffic_first_and_requests_end_in_time_all_the_same() {
    let running = started(|options| {
        options.limits.heartbeat = Duration::from_secs(4);
        options.config.timeouts.request_ms = Some(100);
        options.config.termination_grace_seconds = 3;
    })
    .await;
    let app = Arc::clone(&running.app);
    load(&app, running.engine, running.models_dir).await.unwrap();
    let engine = app.served.get().unwrap().engine.clone();
    // The engine calls this on its own thread, and does not go on until the test ends.
    let (release, held) = mpsc::channel::<()>();
    let sink: Sink = Box::new(move |_| {
        let _ = held.recv();
        ControlFlow::Break(())
    });
    engine.submit(GenerateRequest { prompt_tokens: vec![0], ..GenerateRequest::default() }, sink).unwrap();
    assert_eq!(probe(&app, "/readyz").await, 200);
    let body = serde_json::json!({"model": "demo", "messages": [{"role": "user", "content": "hi"}]});
    let request = Request::post("/v1/chat/completions").body(Body::from(body.to_string())).unwrap();
    let answer = api::router(Arc::clone(&app)).oneshot(request);
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("ends in time").unwrap();
    assert_eq!(answer.status(), 504);
    let until = async |path: &str| {
        while probe(&app, path).await != 503 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until("/readyz")).await.expect("loses its traffic");
    assert_eq!(probe(&app, "/livez").await, 200, "not given up yet");
    tokio::time::timeout(Duration::from_secs(20), until("/livez")).await.expect("is given up");
    // The kubelet stops it now: the end must not wait for a step that never ends.
    let drained = tokio::time::timeout(Duration::from_secs(20), drain(&app, tokio::spawn(async {})));
    drained.await.expect("ends without the engine");
    drop(release);
}
