//! Our own routes: tokens, text, summaries.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_wire::{
    native::{DetokenizeAnswer, GenerateAnswer, SummarizeAnswer, SummarizeProgress, TokenizeAnswer},
    openai::FinishReason,
    problem::Problem,
    sse,
};
use serde_json::{Value, json};
use support::{NAME, Server};

async fn problem(response: reqwest::Response) -> Problem {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let status = response.status().as_u16();
    let problem: Problem = response.json().await.unwrap();
    assert_eq!(problem.status, status);
    problem
}

/// Names and data.
async fn events(response: reqwest::Response) -> Vec<(String, Value)> {
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let bytes = response.bytes().await.unwrap();
    let events = sse::Reader::new().push(&bytes).unwrap();
    events.into_iter().map(|event| (event.event, serde_json::from_str(&event.data).unwrap())).collect()
}

#[tokio::test]
async fn text_becomes_tokens_and_comes_back() {
    let server = Server::of(&TinyModel::default()).await;
    let body = json!({"prompt": "hé", "return_token_strs": true});
    let answer: TokenizeAnswer = server.post("/tokenize", &body).await.json().await.unwrap();
    assert_eq!((answer.count, answer.max_model_len), (3, 256));
    assert_eq!(answer.tokens, [104, 195, 169]);
    assert_eq!(answer.token_strs.unwrap(), ["h", "\u{fffd}", "\u{fffd}"]);
    let body = json!({"model": NAME, "tokens": answer.tokens});
    let back: DetokenizeAnswer = server.post("/detokenize", &body).await.json().await.unwrap();
    assert_eq!(back.prompt, "hé");
    let body = json!({"messages": [{"role": "user", "content": "a"}]});
    let answer: TokenizeAnswer = server.post("/tokenize", &body).await.json().await.unwrap();
    assert_eq!(answer.tokens, [256, 258, 97, 259], "begin, user, text, assistant");
    let empty: TokenizeAnswer = server.post("/tokenize", &json!({"prompt": ""})).await.json().await.unwrap();
    assert_eq!((empty.count, empty.token_strs), (0, None));

    let refused = problem(server.post("/detokenize", &json!({"tokens": [1, 260]})).await).await;
    assert_eq!((refused.status, refused.param.as_deref()), (400, Some("tokens[1]")));
    let refused = problem(server.post("/tokenize", &json!({"model": "x", "prompt": "a"})).await).await;
    assert_eq!((refused.status, refused.code.as_deref()), (404, Some("model_not_found")));
    for body in [json!([]), json!({}), json!({"prompt": 1}), json!({"prompt": "a", "colour": 1})] {
        assert_eq!(problem(server.post("/tokenize", &body).await).await.status, 400, "{body}");
    }
}

#[tokio::test]
async fn text_is_generated_whole_and_as_events() {
    let server = Server::of(&TinyModel::default()).await;
    let mut body = json!({"prompt": "ab", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let whole: GenerateAnswer = server.post("/generate", &body).await.json().await.unwrap();
    assert_eq!((whole.finish_reason, whole.usage.completion_tokens), (FinishReason::Length, 12));
    body["stream"] = json!(true);
    let mut events = events(server.post("/generate", &body).await).await;
    let (name, done) = events.pop().unwrap();
    let done: GenerateAnswer = serde_json::from_value(done).unwrap();
    assert_eq!((name.as_str(), &done.text), ("done", &whole.text));
    assert!(events.iter().all(|(name, _)| name == "token"));
    let text: String = events.iter().map(|(_, data)| data["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole.text);
    let body =
        json!({"messages": [{"role": "user", "content": "a"}], "structured_outputs": {"regex": "[0-9]{4}"}});
    let answer: GenerateAnswer = server.post("/generate", &body).await.json().await.unwrap();
    assert!(answer.text.len() == 4 && answer.text.parse::<u32>().is_ok(), "{answer:?}");
    let refused = problem(server.post("/generate", &json!({"prompt": "a", "n": 2})).await).await;
    assert_eq!(refused.param.as_deref(), Some("n"));
    server.settled().await;
}

#[tokio::test]
async fn a_text_longer_than_the_context_is_summarised_in_rounds() {
    let server = Server::of(&TinyModel { context_length: 512, ..TinyModel::default() }).await;
    let text = "One thing leads to another, as they say. ".repeat(100);
    let mut body = json!({"text": text, "max_tokens": 64, "temperature": 1, "seed": 1, "instructions": "In short.",
        "logit_bias": {support::END_OF_TEXT.to_string(): -100}});
    let response = server.post("/summarize", &body).await;
    assert_eq!(response.status(), 200);
    let whole: SummarizeAnswer = response.json().await.unwrap();
    assert!(whole.chunks >= text.len() / 512 && whole.rounds > 1, "{whole:?}");
    assert!(!whole.summary.is_empty());
    assert!(whole.usage.prompt_tokens as usize > text.len(), "each byte was read");
    assert_eq!(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
    body["stream"] = json!(true);
    let events = events(server.post("/summarize", &body).await).await;
    let progress: Vec<SummarizeProgress> = events
        .iter()
        .filter(|(name, _)| name == "progress")
        .map(|(_, data)| serde_json::from_value(data.clone()).unwrap())
        .collect();
    assert_eq!(progress[0], SummarizeProgress { round: 1, done: 0, total: whole.chunks });
    let last_of_first = progress.iter().rfind(|progress| progress.round == 1).unwrap();
    assert_eq!(last_of_first.done, whole.chunks);
    let (name, done) = events.last().unwrap();
    let done: SummarizeAnswer = serde_json::from_value(done.clone()).unwrap();
    assert_eq!((name.as_str(), &done.summary), ("done", &whole.summary));
    let said: String = events
        .iter()
        .filter(|(name, _)| name == "token")
        .map(|(_, data)| data["text"].as_str().unwrap())
        .collect();
    assert_eq!(said, whole.summary);

    let short: SummarizeAnswer = server
        .post("/summarize", &json!({"text": "short", "max_tokens": 5, "temperature": 0}))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!((short.chunks, short.rounds), (1, 1));
    for (body, param) in [
        (json!({"text": ""}), "text"),
        (json!({"text": "a", "max_tokens": 500}), "max_tokens"),
        (json!({"text": "word ".repeat(60_000)}), "text"),
    ] {
        let refused = problem(server.post("/summarize", &body).await).await;
        assert_eq!((refused.status, refused.param.as_deref()), (400, Some(param)), "{}", refused.detail);
    }
    server.settled().await;
}

/// Parts wait for each other; no endpoint picker may take that for a server that is slow to begin.
#[tokio::test]
async fn each_part_of_a_text_has_its_own_time() {
    let server = Server::of(&TinyModel { context_length: 512, ..TinyModel::default() }).await;
    let text = "One thing leads to another, as they say. ".repeat(300);
    let body = json!({"text": text, "max_tokens": 64, "temperature": 1, "seed": 1});
    let began = std::time::Instant::now();
    let whole: SummarizeAnswer = server.post("/summarize", &body).await.json().await.unwrap();
    let took = began.elapsed().as_secs_f64();
    assert!(whole.chunks >= 20, "{whole:?}");
    let page = server.metrics().await;
    let sum = page.lines().find_map(|line| {
        let of_all = line.strip_prefix("candela_server_request_seconds_sum{")?;
        of_all.split_whitespace().last()?.parse::<f64>().ok()
    });
    // Four at a time.
    let sum = sum.unwrap();
    assert!(sum <= 4.0 * took, "the parts took {sum} s together, the whole {took} s");
    server.settled().await;
}
