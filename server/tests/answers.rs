//! What clients get: whole answers, streams, lists, refusals.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_server::Limits;
use candela_wire::openai::{ChatChunk, ChatCompletion, Completion, ErrorBody, FinishReason, Usage};
use serde_json::{Value, json};
use std::time::Duration;
use support::{END_OF_TEXT, Events, NAME, Server, chat_body, long_winded};

#[tokio::test]
async fn a_stream_says_the_same_as_a_whole_answer() {
    let server = Server::of(&TinyModel::default()).await;
    let response = server.chat(json!({"max_tokens": 20})).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-candela-model"], NAME);
    let revision = response.headers()["x-candela-revision"].to_str().unwrap().to_owned();
    assert_eq!(revision.len(), 40, "the hub's commit");
    assert!(response.headers().contains_key("x-request-id"));
    let whole: ChatCompletion = response.json().await.unwrap();
    assert_eq!(whole.choices[0].finish_reason, FinishReason::Length);
    assert_eq!(whole.usage.completion_tokens, 20);
    assert_eq!(whole.usage.total_tokens, whole.usage.prompt_tokens + 20);

    let asked = json!({"max_tokens": 20, "stream": true, "stream_options": {"include_usage": true}});
    let response = server.chat(asked).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut events = Events::of(response).rest().await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<ChatChunk> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text: String =
        chunks.iter().flat_map(|chunk| &chunk.choices).filter_map(|c| c.delta.content.clone()).collect();
    assert_eq!(Some(text), whole.choices[0].message.content);
    assert_eq!(chunks[0].choices[0].delta.role.as_deref(), Some("assistant"));
    assert_eq!(chunks[chunks.len() - 2].choices[0].finish_reason, Some(FinishReason::Length));
    let counted = |usage: Usage| Usage { timings: None, prompt_tokens_details: None, ..usage };
    let usage = chunks.last().unwrap().usage.unwrap();
    assert_eq!(counted(usage), counted(whole.usage));
    let timings = usage.timings.expect("an ended answer says where its time went");
    assert!(timings.prefill_ms > 0.0 && timings.decode_ms > 0.0 && timings.queue_ms >= 0.0, "{timings:?}");
    let usage_chunks = chunks.iter().filter(|chunk| chunk.usage.is_some()).count();
    assert_eq!(usage_chunks, 1);
}

#[tokio::test]
async fn completions_take_text_and_tokens_and_report_logprobs() {
    let server = Server::of(&TinyModel::default()).await;
    let body = |prompt: Value| json!({"model": NAME, "prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 2});
    let mut answers = Vec::new();
    for prompt in [json!("ab"), json!([256, 97, 98])] {
        let response = server.post("/v1/completions", &body(prompt)).await;
        assert_eq!(response.status(), 200);
        answers.push(response.json::<Completion>().await.unwrap());
    }
    let logprobs = answers[1].choices[0].logprobs.as_ref().unwrap();
    assert_eq!(logprobs.tokens.len() as u64, answers[1].usage.unwrap().completion_tokens);
    assert!(logprobs.token_logprobs.iter().all(|value| *value <= 0.0));
    assert!(logprobs.top_logprobs.iter().all(|top| !top.is_empty() && top.len() <= 2));
    // Streamed, the pieces add up to the whole.
    let mut streamed = body(json!("ab"));
    streamed["stream"] = json!(true);
    let mut events = Events::of(server.post("/v1/completions", &streamed).await).rest().await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Completion> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text: String = chunks.iter().map(|chunk| chunk.choices[0].text.as_str()).collect();
    assert_eq!(text, answers[0].choices[0].text);
}

/// Text that repeats itself is guessed right, and no guess shows in the text.
#[tokio::test]
async fn guessed_tokens_change_no_answer_and_are_accounted_for() {
    let server = Server::of(&TinyModel::default()).await;
    let ask = async |more: Value| -> Completion {
        let mut body = json!({"model": NAME, "prompt": "abcabcabcabc", "max_tokens": 60, "temperature": 0,
            "logit_bias": {END_OF_TEXT.to_string(): -100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = server.post("/v1/completions", &body).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    };
    let plain = ask(json!({})).await;
    assert_eq!(plain.usage.unwrap().completion_tokens_details, None);
    for ngram in [1, 2] {
        let wish = json!({"speculation": {"type": "prompt_lookup", "ngram": ngram, "max_draft": 5}});
        let guessed = ask(wish).await;
        assert_eq!(guessed.choices[0].text, plain.choices[0].text);
        let usage = guessed.usage.unwrap();
        assert_eq!(usage.completion_tokens, 60);
        let drafts = usage.completion_tokens_details.expect("it was asked for");
        // A tiny model repeats itself before long.
        assert!(drafts.accepted_prediction_tokens > 0, "{drafts:?}");
        assert!(drafts.accepted_prediction_tokens < 60, "{drafts:?}");
    }
}

#[tokio::test]
async fn models_are_listed_and_unknown_ones_refused_with_those_that_exist() {
    let server = Server::of(&TinyModel::default()).await;
    let get = async |path: &str| server.http.get(server.url(path)).send().await.unwrap();
    let list: Value = get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["data"][0]["id"], NAME);
    assert_eq!(get("/v1/models/tiny").await.status(), 200);
    for response in [get("/v1/models/a/b").await, server.chat(json!({"model": "a/b"})).await] {
        assert_eq!(response.status(), 404);
        let body: ErrorBody = response.json().await.unwrap();
        assert_eq!(body.error.message, "the model `a/b` does not exist here; this server serves `tiny`");
        assert_eq!(body.error.code.as_deref(), Some("model_not_found"));
    }
    let response = get("/v1/chat/completions").await;
    assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str().unwrap()), (405, "POST"));
    assert_eq!(
        get("/v1/nothing").await.json::<ErrorBody>().await.unwrap().error.code.as_deref(),
        Some("unknown_url")
    );
    for (path, status) in [("/nothing", 404), ("/generate", 405)] {
        let elsewhere = get(path).await;
        assert_eq!(elsewhere.headers()["content-type"], "application/problem+json");
        assert_eq!(elsewhere.json::<Value>().await.unwrap()["status"], status);
    }
    let document: Value = get("/openapi.json").await.json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test]
async fn limits_on_tokens_time_and_bytes_are_clear_errors() {
    let server = Server::with(&long_winded(), |options| {
        options.limits =
            Limits { body_bytes: 4096, body: Duration::from_millis(200), ..options.limits.clone() };
        options.config.timeouts.request_ms = Some(1500);
    })
    .await;
    let code = async |response: reqwest::Response| {
        let status = response.status().as_u16();
        (status, response.json::<ErrorBody>().await.unwrap().error.code.unwrap())
    };
    let long = server.chat(json!({"max_tokens": 100_000})).await;
    assert_eq!(code(long).await, (400, "context_length_exceeded".into()));
    // Cut off by the deadline, whole and streamed.
    let late = server.chat(json!({"max_tokens": 16000})).await;
    assert_eq!(code(late).await, (504, "request_timeout".into()));
    let mut events = Events::of(server.chat(json!({"max_tokens": 16000, "stream": true})).await).rest().await;
    let last: ErrorBody = serde_json::from_str(&events.pop().unwrap()).unwrap();
    assert_eq!(last.error.code.as_deref(), Some("request_timeout"));
    assert!(!events.contains(&"[DONE]".to_owned()));
    // Announced and unannounced sizes.
    let large = server.chat(json!({"user": "x".repeat(5000)})).await;
    assert_eq!(code(large).await, (413, "request_too_large".into()));
    let pieces = futures::stream::iter((0..9).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let request = server.http.post(server.url("/v1/completions")).header("content-type", "application/json");
    let chunked = request.body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(chunked.headers()["connection"], "close");
    assert_eq!(code(chunked).await, (413, "request_too_large".into()));
    // A body that never ends.
    let pieces = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let request = server.http.post(server.url("/v1/completions"));
    let slow = request.body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap();
    assert_eq!(code(slow).await, (408, "request_body_timeout".into()));
    let form = server
        .http
        .post(server.url("/v1/completions"))
        .header("content-type", "text/plain")
        .body("a=b")
        .send()
        .await
        .unwrap();
    assert_eq!(code(form).await, (415, "unsupported_media_type".into()));
}

#[tokio::test]
async fn hostile_bodies_never_fail_the_server() {
    let server = Server::of(&TinyModel::default()).await;
    let deep = "[".repeat(20_000);
    let mut corpus: Vec<Vec<u8>> = vec![
        b"".into(),
        b"\xff\xfe\x00".into(),
        b"{".into(),
        b"nul".into(),
        deep.clone().into_bytes(),
        format!("{{\"model\": {deep}}}").into_bytes(),
        b"{\"model\": \"tiny\", \"model\": \"tiny\"}".into(),
        b"{\"model\": \"tiny\", \"prompt\": \"\\ud800\"}".into(),
    ];
    let values = [
        "null",
        "true",
        "-1",
        "0",
        "1e308",
        "1e999",
        "-0.0",
        "18446744073709551616",
        "\"\"",
        "\"\\u0000\"",
        "[]",
        "{}",
        "[null]",
        "[[]]",
        "[{}]",
        "{\"a\": {}}",
        "\"a\\nb\"",
        "[1,\"a\"]",
        "[[1],[2]]",
        "0.1",
    ];
    let fields = [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "structured_outputs",
        "min_tokens",
        "min_p",
        "ignore_eos",
        "user",
        "echo",
        "best_of",
        "suffix",
    ];
    for field in fields {
        for value in values {
            for base in [r#""messages": [{"role": "user", "content": "a"}]"#, r#""prompt": "a""#] {
                corpus.push(
                    format!(r#"{{"model": "tiny", "max_tokens": 2, {base}, "{field}": {value}}}"#)
                        .into_bytes(),
                );
            }
        }
    }
    for content in values {
        let text = format!(
            r#"{{"model": "tiny", "max_tokens": 2, "messages": [{{"role": "user", "content": {content}}}]}}"#
        );
        corpus.push(text.into_bytes());
    }
    let extremes = json!({"temperature": 2, "top_p": 0, "top_k": 1, "presence_penalty": -2, "repetition_penalty": 0.01,
        "seed": i64::MIN, "logit_bias": {"4294967295": 100}, "stop": ["\u{0}"]});
    corpus.push(chat_body(extremes).to_string().into_bytes());
    corpus.push(json!({"model": NAME, "prompt": [4294967295u32]}).to_string().into_bytes());
    corpus.push(json!({"model": NAME, "prompt": "\u{10ffff}<|eos|><|bos|>\u{0}"}).to_string().into_bytes());
    let (mut refused, mut answered) = (0, 0);
    for body in corpus {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let request = server.http.post(server.url(path)).header("content-type", "application/json");
            let response = request.body(body.clone()).send().await.unwrap();
            let status = response.status().as_u16();
            let text = String::from_utf8_lossy(&body).chars().take(200).collect::<String>();
            match status {
                200 => answered += 1,
                400 | 404 => {
                    let error: ErrorBody = response.json().await.unwrap();
                    assert!(!error.error.message.is_empty() && error.error.code.is_some());
                    refused += 1;
                }
                _ => panic!("{status} for {path} {text}"),
            }
        }
    }
    assert!(refused > 500 && answered > 50, "{refused} refused, {answered} answered");
    assert_eq!(server.chat(json!({})).await.status(), 200);
    server.settled().await;
}

#[tokio::test]
async fn counts_are_exact_and_the_status_tells_the_facts() {
    let server = Server::of(&TinyModel::default()).await;
    for _ in 0..3 {
        assert_eq!(server.chat(json!({"max_tokens": 4})).await.status(), 200);
    }
    assert_eq!(server.chat(json!({"n": 9})).await.status(), 400);
    let metrics = server.metrics().await;
    let of = |name: &str, label: &str, n: u32| format!("{name}{{model=\"{NAME}\"{label}}} {n}");
    for line in [
        "candela_server_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 3",
        "candela_server_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1",
        &of("candela_server_generated_tokens_total", "", 12),
        &of("candela_server_generations_total", ",outcome=\"length\"", 3),
        &of("candela_server_time_to_first_token_seconds_count", "", 3),
        &of("candela_server_inter_token_seconds_count", "", 9),
        &of("candela_server_prefill_seconds_count", "", 3),
        &of("candela_server_request_prompt_tokens_count", "", 3),
        "candela_server_requests_in_flight 0",
    ] {
        assert!(metrics.lines().any(|have| have == line), "no {line} in\n{metrics}");
    }
    let status = server.status().await;
    let model = &status.models[0];
    assert_eq!((model.served_name.as_str(), model.architecture.as_str()), (NAME, "LlamaForCausalLM"));
    assert!(model.digest.starts_with("sha256:") && model.parameters > 0 && model.size_bytes > 0);
    let startup = &status.startup;
    for seconds in
        [startup.fetch_seconds, startup.load_seconds, startup.warmup_seconds, startup.first_token_seconds]
    {
        assert!(seconds.unwrap() > 0.0);
    }
    for probe in ["livez", "readyz", "startupz"] {
        assert_eq!(server.probe(probe).await, 200);
    }
    assert_eq!(END_OF_TEXT, 257, "logit_bias above names it");
}

#[tokio::test]
async fn bodies_are_bounded_by_the_context_and_by_what_they_would_grow_to() {
    let server = Server::of(&TinyModel::default()).await;
    // Below the default limit, but no 256 tokens have so many bytes.
    let refused = server.chat(json!({"padding": "a".repeat(100_000)})).await;
    assert_eq!(refused.status(), 413);
    let error: ErrorBody = refused.json().await.unwrap();
    assert!(error.error.message.contains("larger than 73728 bytes"), "{}", error.error.message);
    let refused = server.chat(json!({"metadata": vec![json!({}); 20_000]})).await;
    assert_eq!(refused.status(), 400);
    let error: ErrorBody = refused.json().await.unwrap();
    assert_eq!(error.error.code.as_deref(), Some("too_many_values"));
}

#[tokio::test]
async fn the_bytes_of_a_token_that_is_no_whole_character_are_its_own() {
    let server = Server::of(&TinyModel::default()).await;
    // The first byte of most of what lies beyond Latin, on its own.
    let wishes = json!({"max_tokens": 1, "logprobs": true, "top_logprobs": 20, "logit_bias": {"226": 100}});
    let answer: Value = server.chat(wishes).await.json().await.unwrap();
    let of = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(of["bytes"], json!([226]), "{of}");
    for top in of["top_logprobs"].as_array().unwrap() {
        let bytes = top["bytes"].as_array().unwrap();
        assert!(bytes.len() == 1 || top["token"].as_str().unwrap().starts_with("<|"), "{top}");
    }
}
