//! `quantization` of the configuration: what the weights are in memory, and that the model still knows what it knew.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_wire::config::{ModelConfig, Quantization};
use serde_json::{Value, json};
use support::Server;

/// The demo model with this, asked a question: type of most weights, estimated memory, answer.
async fn demo(quantization: Option<Quantization>) -> (String, u64, String) {
    let server = Server::with(&TinyModel::default(), |options| {
        options.config.models =
            vec![ModelConfig { quantization, ..ModelConfig::new("demo", "builtin://demo") }];
    })
    .await;
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let answer =
        server.chat(json!({"model": "demo", "messages": messages, "logit_bias": {}, "max_tokens": 24})).await;
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let status = server.status().await.models.remove(0);
    (status.quantization, status.estimated_memory_bytes, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_are_packed_as_asked_and_the_status_says_so() {
    let (as_is, full, _) = demo(None).await;
    let (q8, less, text) = demo(Some(Quantization::Q8)).await;
    let (q4, least, _) = demo(Some(Quantization::Q4)).await;
    assert_eq!((as_is.as_str(), q8.as_str(), q4.as_str()), ("F16", "Q8_0", "Q4_0"));
    assert!(full > less && less > least, "estimated bytes: {full}, {less}, {least}");
    assert!(text.contains("Paris"), "8 bits are enough for what it knows: {text}");
}
