//! Bodies that nobody means well against every route that takes one, through the real listener, parser and models.
//!
//! Each must be answered in bounded time, by an answer or a refusal that says why, without memory that its size does
//! not justify: an allocator counts, client included. Inputs follow from the seed, so a failure names what repeats it.
//! `CANDELA_FUZZ_SECONDS` says how long each route is tried (default 1), `CANDELA_FUZZ_SEED` where it begins.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "../engine/tests/counting/mod.rs"]
mod counting;
mod support;

use std::time::{Duration, Instant};

use candela_engine::testing::TinyModel;
use candela_server::serve;
use candela_wire::config::Task;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use support::{NAME, Server, TEMPLATE, encoder_folder as encoder, encoder_model};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// What an answer may hold besides what comes with the body: batches, buffers of connections, a compiled grammar.
const BASE_BYTES: usize = 160 << 20;
/// The widest JSON value takes ninety times its bytes; the client holds the body as well.
const PER_BYTE: usize = 128;
const PATIENCE: Duration = Duration::from_secs(20);

/// Every field that some route knows, and bodies that are right.
fn corpus() -> Vec<(&'static str, Value)> {
    let tool = json!({"type": "function", "function": {"name": "weather", "description": "d", "strict": true,
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["a", "b"]}},
            "required": ["city"], "additionalProperties": false}}});
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9},
        "b": {"type": "array", "items": {"type": "string", "maxLength": 3, "pattern": "^[a-c]+$"}, "maxItems": 2},
        "c": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}}, "$defs": {"x": {"const": 1}}});
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "h"}]}]);
    vec![
        (
            "/v1/chat/completions",
            json!({"model": NAME, "messages": messages, "max_completion_tokens": 4, "n": 2,
            "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1, "seed": 1, "stop": ["a", "b"], "logprobs": true,
            "top_logprobs": 2, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1,
            "logit_bias": {"7": 1}, "min_tokens": 1, "ignore_eos": true, "user": "u", "stream": false,
            "speculation": {"type": "prompt_lookup", "ngram": 2, "max_draft": 2}}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": NAME, "messages": messages, "max_tokens": 8,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": NAME, "messages": messages, "max_tokens": 8, "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": false}),
        ),
        (
            "/v1/completions",
            json!({"model": NAME, "prompt": "abc", "max_tokens": 4, "logprobs": 2, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true},
            "structured_outputs": {"regex": "[ab]{1,3}"}}),
        ),
        (
            "/v1/completions",
            json!({"model": NAME, "prompt": [256, 97], "max_tokens": 4,
            "structured_outputs": {"choice": ["yes", "no"]}}),
        ),
        (
            "/v1/completions",
            json!({"model": NAME, "prompt": "a", "max_tokens": 4,
            "structured_outputs": {"grammar": "start: \"a\" | \"b\" start"}}),
        ),
        (
            "/v1/responses",
            json!({"model": NAME, "input": [{"role": "user", "content": [{"type": "input_text", "text": "h"}]}], "instructions": "i", "max_output_tokens": 4,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}, "store": false}),
        ),
        (
            "/v1/embeddings",
            json!({"model": "emb", "input": ["w5 w6", "w7"], "encoding_format": "base64",
            "dimensions": 4, "truncate": true, "user": "u"}),
        ),
        ("/embed", json!({"model": "emb", "input": [[5, 6], [7]]})),
        (
            "/v1/rerank",
            json!({"model": "rank", "query": "w5", "documents": ["w6", {"text": "w7"}], "top_n": 1,
            "return_documents": true, "raw_scores": true, "truncate": false, "max_tokens_per_doc": 3}),
        ),
        (
            "/token-classify",
            json!({"model": "ner", "input": ["w5 w6", "w7"], "aggregation_strategy": "average",
            "ignore_labels": ["O"], "truncate": true}),
        ),
        ("/tokenize", json!({"model": NAME, "prompt": "hello"})),
        ("/detokenize", json!({"model": NAME, "tokens": [104, 105]})),
        ("/generate", json!({"model": NAME, "prompt": "a", "max_tokens": 4, "stream": false})),
        ("/summarize", json!({"model": NAME, "text": "abc def", "max_tokens": 8, "instructions": "i"})),
    ]
}

async fn server() -> (Server, [tempfile::TempDir; 3]) {
    let folders = [encoder("bert"), encoder("bert-rerank"), encoder("bert-ner")];
    let models = [
        encoder_model("emb", &folders[0], Task::Embed),
        encoder_model("rank", &folders[1], Task::Rerank),
        encoder_model("ner", &folders[2], Task::TokenClassify),
    ];
    let tiny = TinyModel { context_length: 1024, ..TinyModel::default() };
    let add = |options: &mut serve::Options| options.config.models.extend(models);
    let server = Server::with_template_and(&tiny, TEMPLATE, add).await;
    (server, folders)
}

/// Sends `body`; its status, and what it says where it is refused.
async fn answered(server: &Server, path: &str, body: Vec<u8>, what: &str) -> (u16, Value) {
    let (bytes, began, before) = (body.len(), Instant::now(), counting::start());
    let request = server.http.post(server.url(path)).header("content-type", "application/json").body(body);
    let answer = tokio::time::timeout(PATIENCE, async {
        let response = match request.send().await {
            Ok(response) => response,
            // The server answers 413 and closes; a client that still sends megabytes need not see the answer.
            Err(_) if bytes > 1 << 20 => return (413, r#"{"detail": "cut off"}"#.into()),
            Err(err) => panic!("{what}: no answer: {err}"),
        };
        let status = response.status().as_u16();
        (status, response.bytes().await.unwrap_or_else(|err| panic!("{what}: the answer broke off: {err}")))
    });
    let (status, answer) = answer.await.unwrap_or_else(|_| panic!("{what}: no answer in {PATIENCE:?}"));
    let most = counting::most_since(before);
    let allowed = BASE_BYTES + PER_BYTE * bytes;
    assert!(most <= allowed, "{what}: {most} bytes were held for {bytes}, after {:?}", began.elapsed());
    assert!(
        [200, 400, 404, 413, 429].contains(&status),
        "{what}: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    let answer: Value = serde_json::from_slice(&answer).unwrap_or(Value::Null);
    if status != 200 {
        // OpenAI's shape, or problem+json.
        let why = answer["error"]["message"].as_str().or_else(|| answer["detail"].as_str());
        assert!(why.is_some_and(|why| !why.is_empty()), "{what}: {status} without a reason: {answer}");
    }
    (status, answer)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bodies_are_answered_and_cost_little() {
    let (server, _folders) = server().await;
    let mut refused = Vec::new();
    for (path, body) in corpus() {
        let (status, answer) = answered(&server, path, body.to_string().into(), path).await;
        if status != 200 {
            refused.push(format!("{path} {body}: {answer}"));
        }
    }
    assert!(refused.is_empty(), "of what is right: {refused:#?}");
    sizes_and_numbers(&server).await;
    let seconds = number("CANDELA_FUZZ_SECONDS").unwrap_or(1);
    let first = number("CANDELA_FUZZ_SEED").unwrap_or(0);
    for (path, body) in corpus() {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (mut n, mut served) = (0, 0);
        while Instant::now() < until {
            let seed = first + n;
            let mutated = mutated(&mut StdRng::seed_from_u64(seed), &body);
            let what = format!("{path}, seed {seed}: {}", shown(&mutated));
            let (status, _) = answered(&server, path, mutated, &what).await;
            served += u64::from(status == 200);
            n += 1;
        }
        println!("{path}: {n} bodies, {served} still served");
    }
    server.settled().await;
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(600).collect()
}

/// Each is refused by itself, and before a token of it is computed.
async fn sizes_and_numbers(server: &Server) {
    let chat = |field: &str, value: &str| {
        format!(
            r#"{{"model":"{NAME}","messages":[{{"role":"user","content":"h"}}],"max_tokens":4,"{field}":{value}}}"#
        )
    };
    let schema = |schema: String| {
        chat(
            "response_format",
            &format!(r#"{{"type":"json_schema","json_schema":{{"name":"n","schema":{schema}}}}}"#),
        )
    };
    let nested = |open: &str, n: usize, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(n), close.repeat(n))
    };
    let many = |item: &str, n: usize| vec![item; n].join(",");
    let chats = [
        chat("temperature", "1e309"),
        chat("temperature", "-1"),
        chat("top_p", "NaN"),
        chat("seed", "9223372036854775808"),
        chat("n", "1000000000"),
        chat("top_k", "-9223372036854775808"),
        chat("max_completion_tokens", "18446744073709551615"),
        chat("stop", &format!("[{}]", many("\"a\"", 1_000_000))),
        chat("stop", &format!("\"{}\"", "a".repeat(1 << 20))),
        chat(
            "logit_bias",
            &format!("{{{}}}", (0..100_000).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",")),
        ),
        chat("user", &nested("[", 100_000, "", "]")),
        chat("tools", &nested("[", 100_000, "", "]")),
        chat("messages", &nested(r#"{"a":"#, 50_000, "1", "}")),
        chat("tools", &format!("[{}]", many(r#"{"type":"function","function":{"name":"f"}}"#, 50_000))),
        schema(nested(r#"{"anyOf":["#, 5_000, "{}", "]}")),
        schema(nested(r#"{"type":"array","items":"#, 200, "{}", "}")),
        schema(r##"{"$ref":"#"}"##.to_owned()),
        schema(format!(r#"{{"enum":[{}]}}"#, many("\"aaaaaaaaaaaaaaaa\"", 100_000))),
        chat("structured_outputs", &format!(r#"{{"grammar":"{}"}}"#, "start: start start\\n".repeat(50_000))),
    ];
    let mut taken = Vec::new();
    for body in chats {
        let what = format!("{} bytes: {}", body.len(), shown(body.as_bytes()));
        let (status, answer) = answered(server, "/v1/chat/completions", body.into(), &what).await;
        if ![400, 413].contains(&status) {
            taken.push(format!("{what}: {status} {answer}"));
        }
    }
    let others = [
        ("/v1/embeddings", format!(r#"{{"model":"emb","input":[{}]}}"#, many("\"w5\"", 1_000_000))),
        ("/v1/embeddings", format!(r#"{{"model":"emb","input":[{}]}}"#, many("99999999999", 1000))),
        ("/v1/embeddings", r#"{"model":"emb","input":"w5","dimensions":1e300}"#.to_owned()),
        // A long query beside many documents: each pair would be as long.
        (
            "/v1/rerank",
            format!(
                r#"{{"model":"rank","truncate":false,"query":"{}","documents":[{}]}}"#,
                "w5 ".repeat(3_000),
                many("\"w6\"", 2047)
            ),
        ),
        ("/tokenize", format!(r#"{{"prompt":"{}"}}"#, "a".repeat(8 << 20))),
        ("/detokenize", format!(r#"{{"tokens":[{}]}}"#, many("4294967295", 100_000))),
        ("/generate", r#"{"prompt":"a","max_tokens":-1}"#.to_owned()),
        ("/summarize", r#"{"text":"a","max_tokens":1e18}"#.to_owned()),
    ];
    for (path, body) in others {
        let what = format!("{path}, {} bytes: {}", body.len(), shown(body.as_bytes()));
        let (status, answer) = answered(server, path, body.into(), &what).await;
        if ![400, 413].contains(&status) {
            taken.push(format!("{what}: {status} {answer}"));
        }
    }
    assert!(taken.is_empty(), "of what must be refused: {taken:#?}");
    // Odd, and possible: counted, not unrolled.
    for body in [
        schema(r#"{"type":"array","minItems":1000000000,"items":{"type":"integer"}}"#.to_owned()),
        schema(r#"{"type":"string","pattern":"((((a{1,100}){1,100}){1,100}){1,100}){1,100}"}"#.to_owned()),
        chat("structured_outputs", r#"{"regex":"(a|a)*(b|b)*(((x{1000}){1000}){1000})"}"#),
    ] {
        let what = body.clone();
        assert_eq!(answered(server, "/v1/chat/completions", body.into(), &what).await.0, 200, "{what}");
    }
    // A query of a few kilobytes is cut once, not once for every document.
    let body = format!(
        r#"{{"model":"rank","query":"{}","documents":[{}]}}"#,
        "w5 ".repeat(3_000),
        many("\"w6\"", 2048)
    );
    assert_eq!(answered(server, "/v1/rerank", body.into(), "a long query").await.0, 200);
}

/// Some of: a value replaced by a hostile one, a field added, taken away or doubled, bytes flipped, cut or repeated.
fn mutated(rng: &mut StdRng, body: &Value) -> Vec<u8> {
    let mut body = body.clone();
    for _ in 0..rng.random_range(1..=3) {
        mutate(rng, &mut body, 0);
    }
    let mut bytes = body.to_string().into_bytes();
    if rng.random_bool(0.3) && !bytes.is_empty() {
        let at = rng.random_range(0..bytes.len());
        let n = rng.random_range(1..=16).min(bytes.len() - at);
        match rng.random_range(0..4) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..at + n)),
            _ => {
                let piece = bytes[at..at + n].to_vec();
                drop(bytes.splice(at..at, piece.repeat(rng.random_range(1..=100))));
            }
        }
    }
    bytes
}

fn mutate(rng: &mut StdRng, value: &mut Value, depth: usize) {
    if depth > 0 && rng.random_bool(0.4) {
        *value = hostile(rng);
        return;
    }
    match value {
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = keys.choose(rng).unwrap().clone();
            match rng.random_range(0..6) {
                0 => drop(map.remove(&key)),
                1 => {
                    let (other, body) =
                        corpus().choose(rng).map(|(path, body)| (*path, body.clone())).unwrap();
                    let fields: Vec<_> = body.as_object().unwrap().iter().collect();
                    let (name, field) = fields.choose(rng).unwrap();
                    // The model decides which engine is asked: it stays.
                    if *name != "model" && !other.is_empty() {
                        map.insert((*name).clone(), (*field).clone());
                    }
                }
                _ => mutate(rng, map.get_mut(&key).unwrap(), depth + 1),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            match rng.random_range(0..4) {
                0 => drop(list.remove(at)),
                1 => {
                    let again = vec![list[at].clone(); rng.random_range(1..=40)];
                    list.extend(again);
                }
                _ => mutate(rng, &mut list[at], depth + 1),
            }
        }
        other => *other = hostile(rng),
    }
}

fn hostile(rng: &mut StdRng) -> Value {
    let texts =
        ["", "\u{0}", "a\u{301}\u{1F980}", "<|eos|>", "\"}],{", "{{ 9 }}", "(a+)+$", "../..", "\u{FEFF}"];
    match rng.random_range(0..9) {
        0 => Value::Null,
        1 => json!(rng.random_bool(0.5)),
        2 => [
            json!(0),
            json!(-1),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1 << 31),
            json!(-0.0),
            json!(1e308),
            json!(5e-324),
        ]
        .choose(rng)
        .unwrap()
        .clone(),
        3 => json!(texts.choose(rng).unwrap()),
        4 => json!("ab ".repeat(rng.random_range(1..=3000))),
        5 => (0..rng.random_range(1..=200)).fold(json!(1), |inner, _| json!([inner])),
        6 => (0..rng.random_range(1..=60))
            .fold(json!({}), |inner, _| json!({"anyOf": [inner, {"type": "string"}]})),
        7 => json!(vec![0; rng.random_range(0..=300)]),
        _ => json!({"type": "object", "a": [], "": {}}),
    }
}
