//! Several models in one process: each is listed, chosen by its name, reported, and named where it is at fault.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_server::serve;
use candela_wire::{config::ModelConfig, openai::ErrorBody, termination::ExitReason};
use serde_json::{Value, json};
use support::{NAME, Server};

/// The demo model beside the tiny one.
fn beside_demo(options: &mut serve::Options) {
    options.config.models.push(ModelConfig::new("org/demo", "builtin://demo"));
}

async fn ask(server: &Server, model: &str) -> (reqwest::header::HeaderMap, Value) {
    let question = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let answer =
        server.chat(json!({"model": model, "messages": question, "logit_bias": {}, "max_tokens": 24})).await;
    assert_eq!(answer.status(), 200, "{model}");
    (answer.headers().clone(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_by_the_model_that_it_names() {
    let server = Server::with(&TinyModel::default(), beside_demo).await;
    let alone = Server::of(&TinyModel::default()).await;
    let ((demo_head, demo), (tiny_head, tiny), (_, tiny_alone)) =
        tokio::join!(ask(&server, "org/demo"), ask(&server, NAME), ask(&alone, NAME));
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text(&demo).contains("Paris"), "{demo}");
    assert_eq!((&demo["model"], &tiny["model"]), (&json!("org/demo"), &json!(NAME)));
    assert_eq!(demo_head["x-candela-model"], "org/demo");
    assert_eq!(tiny_head["x-candela-model"], NAME);
    assert_ne!(demo_head["x-candela-revision"], tiny_head["x-candela-revision"]);
    assert_eq!(text(&tiny), text(&tiny_alone), "its neighbour changes nothing");

    let get = async |path: &str| server.http.get(server.url(path)).send().await.unwrap();
    let list: Value = get("/v1/models").await.json().await.unwrap();
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, [NAME, "org/demo"]);
    let one = get("/v1/models/org/demo").await;
    assert_eq!(one.headers()["x-candela-model"], "org/demo");
    assert_eq!(one.json::<Value>().await.unwrap()["id"], "org/demo");

    let status = server.status().await;
    let reported: Vec<_> =
        status.models.iter().map(|model| (&*model.served_name, model.tasks.join(" "))).collect();
    assert_eq!(reported, [(NAME, "Generate".to_owned()), ("org/demo", "Generate".to_owned())]);
    assert_ne!(status.models[0].digest, status.models[1].digest);
    server.settled().await;
}

#[tokio::test]
async fn a_name_that_no_model_has_is_told_those_that_there_are() {
    let server = Server::with(&TinyModel::default(), beside_demo).await;
    for (body, code) in [
        (json!({"model": "other"}), "model_not_found"),
        (json!({"model": 7}), "invalid_value"),
        (json!({"model": null}), "invalid_value"),
    ] {
        let answer = server.chat(body.clone()).await;
        let (status, head) = (answer.status(), answer.headers().clone());
        let error: ErrorBody = answer.json().await.unwrap();
        assert_eq!(error.error.param.as_deref(), Some("model"), "{body}: {error:?}");
        if code == "model_not_found" {
            assert_eq!(status, 404);
            assert!(
                error.error.message.contains(&format!("`{NAME}`, `org/demo`")),
                "{}",
                error.error.message
            );
            assert!(head.get("x-candela-model").is_none(), "no model answered");
        } else {
            assert_eq!(status, 400, "{body}");
        }
    }
    let none = server.http.get(server.url("/v1/models/other")).send().await.unwrap();
    assert_eq!(none.status(), 404);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_named_and_nothing_is_served() {
    let server = Server::starting(&TinyModel::default(), |options| {
        beside_demo(options);
        options.config.models[1].context_length = Some(1 << 24);
    })
    .await;
    let fatal = server.ended().await.unwrap_err();
    assert_eq!(fatal.reason, ExitReason::InvalidConfiguration);
    assert!(fatal.message.starts_with("model `org/demo`: "), "{}", fatal.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_drain() {
    let mut server = Server::with(&TinyModel::default(), beside_demo).await;
    let long = json!({"max_tokens": 200, "stream": true});
    let (mut of_tiny, mut of_demo) = (long.clone(), long);
    of_tiny["model"] = NAME.into();
    of_demo["model"] = "org/demo".into();
    let mut first = support::Events::of(server.chat(of_tiny).await);
    let mut second = support::Events::of(server.chat(of_demo).await);
    first.next().await.unwrap();
    second.next().await.unwrap();
    server.terminate();
    for events in [first, second] {
        assert_eq!(events.rest().await.last().map(String::as_str), Some("[DONE]"));
    }
    server.ended().await.unwrap();
}
