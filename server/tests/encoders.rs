//! Embeddings and rerank over HTTP: shapes, sizes, refusals, and what each model is for.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{fs, path::Path};

use candela_engine::testing::TinyModel;
use candela_server::serve;
use candela_wire::config::Task;
use serde_json::{Value, json};
use support::{
    NAME, Server, encoder_folder as folder, encoder_model as model,
    tokens::{Signer, claims, now, trust_file},
};
use tempfile::TempDir;

async fn post(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let answer = server.http.post(server.url(path)).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_become_vectors_and_documents_are_ranked() {
    let (bert, reranker) = (folder("bert"), folder("bert-rerank"));
    let models = [model("emb", &bert, Task::Embed), model("rank", &reranker, Task::Rerank)];
    let add = |options: &mut serve::Options| options.config.models.extend(models);
    let server = Server::with(&TinyModel::default(), add).await;

    let ask = json!({"model": "emb", "input": ["w5 w6 w7", "w8"]});
    let (status, answer) = post(&server, "/v1/embeddings", ask).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("emb")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
    let vector = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let first = vector(&answer["data"][0]["embedding"]);
    assert!((first.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);

    // The same as ids, as base64, shorter, and on our own route.
    let (_, ids) = post(&server, "/v1/embeddings", json!({"model": "emb", "input": [5, 6, 7]})).await;
    assert_eq!(vector(&ids["data"][0]["embedding"]), first);
    let ask = json!({"model": "emb", "input": "w5 w6 w7", "encoding_format": "base64"});
    let (_, coded) = post(&server, "/v1/embeddings", ask).await;
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), (first.len() * 4).div_ceil(3) * 4);
    let (_, short) =
        post(&server, "/embed", json!({"model": "emb", "input": "w5 w6 w7", "dimensions": 4})).await;
    let short = vector(&short["embeddings"][0]);
    assert_eq!(short.len(), 4);
    assert!((short.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);

    let ask = json!({"model": "rank", "query": "w5", "documents": ["w6 w7", "w8", {"text": "w9 w10"}],
                     "top_n": 2, "return_documents": true});
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let (status, ranking) = post(&server, path, ask.clone()).await;
        assert_eq!(status, 200, "{ranking}");
        let results = ranking["results"].as_array().unwrap();
        let scores: Vec<f64> =
            results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
        assert!(
            scores.len() == 2 && scores[0] >= scores[1] && (0.0..=1.0).contains(&scores[0]),
            "{scores:?}"
        );
        assert!(results[0]["document"]["text"].is_string());
    }

    let long = vec!["w5"; 5000].join(" ");
    let ask = json!({"model": "rank", "query": "w5", "documents": ["w6", long], "truncate": false});
    let (status, refused) = post(&server, "/v1/rerank", ask.clone()).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("documents[1]")), "{refused}");
    let mut cut = ask.clone();
    cut["max_tokens_per_doc"] = json!(3);
    assert_eq!(post(&server, "/v2/rerank", cut).await.0, 200);
    let mut query = ask;
    query["query"] = json!(long);
    let (status, refused) = post(&server, "/v1/rerank", query).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("query")), "{refused}");

    let status: Vec<_> =
        server.status().await.models.into_iter().map(|model| model.tasks.join(" ")).collect();
    assert_eq!(status, ["Generate", "Embed", "Rerank"]);
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_names_no_model_is_for_the_first_one_of_its_task() {
    let (reranker, bert, ner) = (folder("bert-rerank"), folder("bert"), tagger());
    let models = [
        model("rank", &reranker, Task::Rerank),
        model("emb", &bert, Task::Embed),
        model("ner", &ner, Task::TokenClassify),
        model("emb-2", &bert, Task::Embed),
    ];
    // The generating model comes last.
    let add = |options: &mut serve::Options| drop(options.config.models.splice(0..0, models));
    let server = Server::with(&TinyModel::default(), add).await;
    let asked = async |path: &str, body: Value| {
        let answer = server.http.post(server.url(path)).json(&body).send().await.unwrap();
        let head = answer.headers()["x-candela-model"].to_str().unwrap().to_owned();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, 200, "{path}: {body}");
        head
    };
    let document = json!({"query": "w5", "documents": ["w6"]});
    let api: Value = server.http.get(server.url("/openapi.json")).send().await.unwrap().json().await.unwrap();
    for (path, body, wanted) in [
        ("/embed", json!({"input": "w5"}), "emb"),
        ("/v1/embeddings", json!({"input": "w5"}), "emb"),
        ("/rerank", document.clone(), "rank"),
        ("/v1/rerank", document, "rank"),
        ("/token-classify", json!({"input": "w5"}), "ner"),
        ("/generate", json!({"prompt": "a", "max_tokens": 1}), NAME),
        ("/summarize", json!({"text": "a b c", "max_tokens": 4}), NAME),
        ("/tokenize", json!({"prompt": "a"}), NAME),
    ] {
        assert_eq!(asked(path, body).await, wanted, "{path}");
        let task = match wanted {
            "emb" => "Embed",
            "rank" => "Rerank",
            "ner" => "TokenClassify",
            _ => "Generate",
        };
        assert_eq!(api["paths"][path]["post"]["x-candela-task"], task, "{path}");
    }
    // What a request names is what it gets.
    let (status, refused) = post(&server, "/embed", json!({"model": "rank", "input": "w5"})).await;
    assert_eq!((status, &refused["code"]), (400, &json!("unsupported_task")), "{refused}");
}

/// The golden model whose entities transformers' pipeline recorded.
fn tagger() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/golden/ner");
    for (from, to) in [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
        ("tokenizer-word-piece.json", "tokenizer.json"),
    ] {
        fs::copy(golden.join(from), dir.path().join(to)).unwrap();
    }
    dir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_in_texts_are_those_of_transformers() {
    let dir = tagger();
    let ner = model("ner", &dir, Task::TokenClassify);
    let server = Server::with(&TinyModel::default(), |options| options.config.models.push(ner)).await;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/golden/entities.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap().iter();
    let cases: Vec<_> = cases.filter(|case| case["tokenizer"] == "tokenizer-word-piece.json").collect();
    for strategy in ["none", "simple", "first", "average", "max"] {
        let cases: Vec<_> = cases.iter().filter(|case| case["strategy"] == strategy).collect();
        let texts: Vec<_> = cases.iter().map(|case| &case["text"]).collect();
        let ask = json!({"model": "ner", "input": texts, "aggregation_strategy": strategy});
        let (status, answer) = post(&server, "/token-classify", ask).await;
        assert_eq!(status, 200, "{answer}");
        let found = answer["entities"].as_array().unwrap();
        assert!(found.len() == cases.len() && found.len() == 6);
        for (found, case) in found.iter().zip(cases) {
            let (found, expected) = (found.as_array().unwrap(), case["entities"].as_array().unwrap());
            assert_eq!(found.len(), expected.len(), "{case}");
            for (found, expected) in found.iter().zip(expected) {
                let (mut found, mut expected) = (found.clone(), expected.clone());
                let [a, b] =
                    [&mut found, &mut expected].map(|entity| entity["score"].take().as_f64().unwrap());
                assert!((a - b).abs() < 2e-3, "{case}: {a}");
                assert_eq!(found, expected);
            }
        }
    }
    let status: Vec<_> =
        server.status().await.models.into_iter().map(|model| model.tasks.join(" ")).collect();
    assert_eq!(status, ["Generate", "TokenClassify"]);

    let long = vec!["Köln"; 100].join(" ");
    for (body, code, param) in [
        (json!({"model": "ner"}), "missing_required_parameter", "input"),
        (json!({"model": "ner", "input": ["Köln", long]}), "context_length_exceeded", "input[1]"),
        (json!({"model": "ner", "input": "Köln", "ignore_labels": 1}), "invalid_value", "ignore_labels"),
        (json!({"model": NAME, "input": "Köln"}), "unsupported_task", "model"),
    ] {
        let answer = server.http.post(server.url("/token-classify")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["code"], &problem["param"]), (&json!(code), &json!(param)), "{problem}");
    }
    let cut = json!({"model": "ner", "input": long, "truncate": true, "aggregation_strategy": "none", "ignore_labels": []});
    let (status, answer) = post(&server, "/token-classify", cut).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["entities"][0].as_array().unwrap().len(), 62, "64 with the tokenizer's own");
    let (status, refused) = post(&server, "/v1/embeddings", json!({"model": "ner", "input": "Köln"})).await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("unsupported_task")), "{refused}");
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_embedded_is_refused_by_name() {
    let bert = folder("bert");
    let emb = model("emb", &bert, Task::Embed);
    let server = Server::with(&TinyModel::default(), |options| options.config.models.push(emb)).await;
    let long = vec!["w5"; 5000].join(" ");
    for (path, body, code, param) in [
        ("/v1/embeddings", json!({"model": "emb"}), "missing_required_parameter", "input"),
        (
            "/v1/embeddings",
            json!({"model": "emb", "input": ["w5", long]}),
            "context_length_exceeded",
            "input[1]",
        ),
        ("/v1/embeddings", json!({"model": "emb", "input": [[1 << 20]]}), "invalid_value", "input"),
        (
            "/v1/embeddings",
            json!({"model": "emb", "input": "w5", "dimensions": 999}),
            "invalid_value",
            "dimensions",
        ),
        ("/v1/embeddings", json!({"model": NAME, "input": "w5"}), "unsupported_task", "model"),
        (
            "/v1/rerank",
            json!({"model": "emb", "query": "w5", "documents": ["w6"]}),
            "unsupported_task",
            "model",
        ),
        ("/v1/completions", json!({"model": "emb", "prompt": "w5"}), "unsupported_task", "model"),
    ] {
        let shown = format!("{path} {}", body.to_string().chars().take(80).collect::<String>());
        let (status, answer) = post(&server, path, body).await;
        assert_eq!(status, 400, "{shown}: {answer}");
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["param"]),
            (&json!(code), &json!(param)),
            "{shown}"
        );
    }
    let cut = json!({"model": "emb", "input": long, "truncate": true});
    assert_eq!(post(&server, "/v1/embeddings", cut).await.0, 200);
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_the_gateway_ends_batches_of_texts() {
    let (bert, reranker) = (folder("bert"), folder("bert-rerank"));
    let models = [model("emb", &bert, Task::Embed), model("rank", &reranker, Task::Rerank)];
    let (signer, dir) = (Signer::p256("e"), tempfile::tempdir().unwrap());
    let file = dir.path().join("trust.json");
    fs::write(&file, trust_file(&[&signer]).to_string()).unwrap();
    let change = |options: &mut serve::Options| {
        options.config.models.extend(models);
        options.trust = file;
    };
    let server = Server::with(&TinyModel::default(), change).await;
    let bearer = format!("Bearer {}", signer.token(&claims(now())));
    let texts = vec!["w1 w2 w3 w4 w5 w6 w7 w8"; 500];
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "emb", "input": texts})),
        ("/embed", json!({"model": "emb", "input": texts})),
        ("/v1/rerank", json!({"model": "rank", "query": "w1", "documents": texts})),
        ("/rerank", json!({"model": "rank", "query": "w1", "documents": texts})),
    ] {
        let request = server.http.post(server.url(path)).json(&body).header("x-candela-deadline-ms", "1");
        let ignored = request.try_clone().unwrap().send().await.unwrap();
        assert_eq!(ignored.status(), 200, "{path}: {}", ignored.text().await.unwrap());
        let late = request.header("x-candela-authorization", &bearer).send().await.unwrap();
        assert_eq!(late.status(), 504, "{path}: {}", late.text().await.unwrap());
    }
}
