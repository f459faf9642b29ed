//! Embeddings and rerank over HTTP: shapes, sizes, refusals, and what each model is for.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;

use candela_engine::testing::TinyModel;
use candela_server::serve;
use candela_wire::config::Task;
use serde_json::{Value, json};
use support::{
    NAME, Server, encoder_folder as folder, encoder_model as model,
    tokens::{Signer, claims, now, trust_file},
};

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
