//! Probes and deadlines in states that clients cannot bring about.

use std::{ops::ControlFlow, path::Path, sync::mpsc};

use axum::body::Body;
use candela_engine::{GenerateRequest, KvType, Sink};
use candela_wire::{
    config::{ModelConfig, Timeouts},
    health::{self, ProbeTiming},
};
use http::Request;
use tower::ServiceExt;

use super::{config::check_config, *};

mod trust;

async fn started(change: impl FnOnce(&mut Options)) -> Running {
    let mut options = Options::new(ServerConfig {
        version: 1,
        models: vec![ModelConfig::new("demo", "builtin://demo")],
        batching: Batching::default(),
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
        options.limits.heartbeat = Duration::from_secs(2);
        options.config.timeouts.request_ms = Some(100);
        options.config.termination_grace_seconds = 3;
    })
    .await;
    let app = Arc::clone(&running.app);
    load(&app, running.engine, running.models_dir).await.unwrap();
    let engine = app.models.loaded().next().unwrap().engine().unwrap().clone();
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

/// Asks as the kubelet does until it would act; after how long that is.
async fn kubelet_acts(internal: SocketAddr, path: &str, timing: ProbeTiming, since: Instant) -> Duration {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut periods = tokio::time::interval(Duration::from_secs(timing.period_secs.into()));
    let mut failures = 0;
    while failures < timing.failures {
        periods.tick().await;
        let asked = client.get(format!("http://{internal}{path}"));
        let answer = asked.timeout(Duration::from_secs(timing.timeout_secs.into())).send().await;
        failures = if answer.is_ok_and(|answer| answer.status().is_success()) { 0 } else { failures + 1 };
        assert!(since.elapsed() < Duration::from_secs(120), "{path} never fails");
    }
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_server_is_not_ready_and_restarts_within_the_promised_times() {
    // With the numbers of real pods, from the stuck step to the end of the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let running = started(|_| {}).await;
    let (app, internal) = (Arc::clone(&running.app), running.internal_address);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let run = tokio::spawn(running.run(async {
        let _ = stopped.await;
    }));
    tokio::time::timeout(Duration::from_secs(30), app.lifecycle.reached(Stage::Ready)).await.unwrap();
    let engine = app.models.loaded().next().unwrap().engine().unwrap().clone();
    let (is_stuck, stuck) = tokio::sync::oneshot::channel::<()>();
    let (release, held) = mpsc::channel::<()>();
    let mut is_stuck = Some(is_stuck);
    let sink: Sink = Box::new(move |_| {
        let _ = is_stuck.take().map(|is_stuck| is_stuck.send(()));
        let _ = held.recv();
        ControlFlow::Break(())
    });
    engine.submit(GenerateRequest { prompt_tokens: vec![0], ..GenerateRequest::default() }, sink).unwrap();
    stuck.await.unwrap();
    let since = Instant::now();
    let (not_ready, given_up) = tokio::join!(
        kubelet_acts(internal, "/readyz", health::READINESS, since),
        kubelet_acts(internal, "/livez", health::LIVENESS, since),
    );
    let _ = stop.send(());
    let grace = Duration::from_secs(health::LIVENESS_GRACE_SECS.into());
    let ended = tokio::time::timeout(grace, run).await.expect("ends before it is killed").unwrap();
    let restarted = since.elapsed();
    drop(release);
    assert_eq!(ended.unwrap_err().reason, ExitReason::EngineCrashed);
    assert!(not_ready < Duration::from_secs(health::NOT_READY_WITHIN_SECS.into()), "{not_ready:?}");
    assert!(restarted < Duration::from_secs(health::RESTARTED_WITHIN_SECS.into()), "{restarted:?}");
    eprintln!("not ready after {not_ready:?}, given up after {given_up:?}, ended after {restarted:?}");
}

#[tokio::test]
async fn what_the_configuration_says_of_batching_reaches_the_engine() {
    let mut asked = Batching::default();
    let unsaid = started(|options| options.limits.queue = 7).await;
    let engine = EngineConfig::default();
    assert_eq!(
        (unsaid.engine.max_sequences, unsaid.engine.max_queue, unsaid.engine.step_tokens),
        (Limits::default().sequences, 7, engine.step_tokens)
    );
    asked.max_batch_tokens = Some(256);
    asked.max_sequences = Some(3);
    asked.max_queue = Some(5);
    asked.max_wait_ms = Some(1500);
    let said = started(|options| {
        options.limits.queue = 7;
        options.limits.wait = Some(Duration::from_secs(9));
        options.limits.kv_cache_type = KvType::Int8;
        options.limits.kv_cache_tokens = Some(4096);
        options.config.batching = asked;
    })
    .await;
    assert_eq!(said.engine.max_wait, Some(Duration::from_millis(1500)));
    assert_eq!((said.engine.kv_type, said.engine.kv_cache_tokens), (KvType::Int8, Some(4096)));
    assert_eq!(
        (said.engine.max_sequences, said.engine.max_queue, said.engine.step_tokens),
        (3, 5, 256),
        "the resource goes before the arguments of the image"
    );
    assert_eq!(said.app.preparing.available_permits(), 8, "running and waiting requests");
}

#[test]
fn configurations_that_cannot_be_meant_are_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = |patch: serde_json::Value| {
        let mut config = serde_json::json!({
            "version": 1, "models": [{"servedName": "a", "uri": "builtin://demo"}], "timeouts": {},
            "terminationGraceSeconds": 30, "startupStallSeconds": 60,
        });
        for (key, value) in patch.as_object().unwrap() {
            config[key] = value.clone();
        }
        std::fs::write(file.path(), config.to_string()).unwrap();
        read_config(file.path()).err().map(|fatal| fatal.message)
    };
    let model = |name: &str| serde_json::json!({"servedName": name, "uri": "builtin://demo"});
    assert_eq!(refused(serde_json::json!({"batching": {"maxSequences": 4}})), None);
    for (patch, words) in [
        (serde_json::json!({"models": []}), "`models`"),
        (serde_json::json!({"models": [model("")]}), "`servedName`"),
        (serde_json::json!({"batching": {"maxQueue": 0}}), "`batching.maxQueue`"),
        (serde_json::json!({"batching": {"maxQueue": -1}}), "cannot use"),
        (serde_json::json!({"batching": {"maxWaitMs": 0}}), "`batching.maxWaitMs`"),
        (serde_json::json!({"batching": {"maxWait": 1}}), "maxWait"),
    ] {
        let found = refused(patch.clone());
        assert!(found.as_ref().is_some_and(|found| found.contains(words)), "{patch}: {found:?}");
    }
    let twice = serde_json::from_value(serde_json::json!({
        "version": 1, "models": [model("a"), model("a")], "terminationGraceSeconds": 30, "startupStallSeconds": 60,
    }));
    assert!(check_config(&twice.unwrap()).unwrap_err().contains("two models"));
}

#[test]
fn tasks_that_an_architecture_cannot_do_are_named() {
    let mut config = ModelConfig::new("m", "builtin://demo");
    config.tasks = vec![candela_wire::config::Task::Rerank];
    let progress = Progress::new(Phase::Load);
    let fatal = crate::model::load(&config, Path::new("/nowhere"), &EngineConfig::default(), &progress)
        .err()
        .unwrap()
        .fatal;
    assert_eq!(fatal.reason, ExitReason::ModelUnsupported);
    assert!(fatal.message.contains("`m` is to Rerank"), "{}", fatal.message);
}
