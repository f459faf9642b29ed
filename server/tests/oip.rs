//! The Open Inference Protocol over HTTP: metadata, tensors in JSON and in bytes, Triton's `generate`, and hostile tensors.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_wire::config::Task;
use serde_json::{Value, json};
use support::{Events, NAME, Server, encoder_folder, encoder_model};

async fn get(server: &Server, path: &str) -> (u16, Value) {
    let answer = server.http.get(server.url(path)).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let answer = server.post(path, body).await;
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn texts(name: &str, texts: &[&str]) -> Value {
    json!({"name": name, "datatype": "BYTES", "shape": [texts.len()], "data": texts})
}

/// A generating model, an embedder whose name has a slash, and a reranker.
async fn three() -> (Server, [tempfile::TempDir; 2]) {
    let folders = [encoder_folder("bert"), encoder_folder("bert-rerank")];
    let models = [
        encoder_model("org/emb", &folders[0], Task::Embed),
        encoder_model("rank", &folders[1], Task::Rerank),
    ];
    let server = Server::with(&TinyModel::default(), |options| options.config.models.extend(models)).await;
    (server, folders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_and_its_models_say_what_they_are() {
    let (server, _folders) = three().await;
    let (_, meta) = get(&server, "/v2").await;
    assert_eq!(meta["name"], "candela");
    assert_eq!(get(&server, "/v2/health/live").await, (200, json!({"live": true})));
    assert_eq!(get(&server, "/v2/health/ready").await, (200, json!({"ready": true})));
    for path in ["org/emb", "org%2Femb", "org/emb/versions/1"] {
        let (status, meta) = get(&server, &format!("/v2/models/{path}")).await;
        assert_eq!((status, &meta["name"]), (200, &json!("org/emb")), "{path}");
        assert_eq!(meta["outputs"][0]["name"], "embedding");
    }
    assert_eq!(get(&server, "/v2/models/rank/ready").await.0, 200);
    let (_, config) = get(&server, &format!("/v2/models/{NAME}/versions/1/config")).await;
    assert_eq!(config["input"][0], json!({"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]}));
    assert_eq!(config["model_transaction_policy"], json!({"decoupled": true}));

    let (_, index) = post(&server, "/v2/repository/index", &json!({"ready": true})).await;
    let lines = [NAME, "org/emb", "rank"].map(|name| json!({"name": name, "version": "1", "state": "READY"}));
    assert_eq!(index, json!(lines));

    for (path, status, says) in [
        ("/v2/models/nobody", 404, "`nobody`"),
        ("/v2/models/rank/versions/2", 404, "version 2"),
        ("/v2/models/rank/infer", 405, "use POST"),
        ("/v2/nothing", 404, "/v2/nothing"),
        ("/v2/models/%ff", 404, "%ff"),
        ("/v2/repository/models/rank", 404, "rank"),
    ] {
        let (given, body) = get(&server, path).await;
        assert_eq!(given, status, "{path}: {body}");
        assert!(body["error"].as_str().unwrap().contains(says), "{path}: {body}");
    }
    let (status, body) = post(&server, "/v2/repository/models/rank/unload", &json!({})).await;
    assert_eq!(status, 400);
    assert!(body["error"].as_str().unwrap().contains("`rank`"), "{body}");
    let metrics = server.metrics().await;
    assert!(
        metrics.contains(r#"route="/v2/models/{model}/versions/{version}/config",status="200""#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"route="/v2/repository/models/{model}/unload",status="400""#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tensors_become_vectors_and_scores() {
    let (server, _folders) = three().await;
    let floats = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let (_, wanted) =
        post(&server, "/v1/embeddings", &json!({"model": "org/emb", "input": ["w5 w6 w7", "w8"]})).await;
    let wanted: Vec<f32> =
        wanted["data"].as_array().unwrap().iter().flat_map(|one| floats(&one["embedding"])).collect();

    let ask = json!({"id": "7", "inputs": [texts("text", &["w5 w6 w7", "w8"])]});
    let (status, answer) = post(&server, "/v2/models/org/emb/infer", &ask).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        (&answer["id"], &answer["model_name"], &answer["model_version"]),
        (&json!("7"), &json!("org/emb"), &json!("1"))
    );
    let output = &answer["outputs"][0];
    assert_eq!(output["shape"], json!([2, wanted.len() / 2]));
    assert_eq!(floats(&output["data"]), wanted);

    // Ids with padding, as bytes, answered as bytes.
    let ids: Vec<u8> = [5i64, 6, 7, 8, 0, 0].iter().flat_map(|id| id.to_le_bytes()).collect();
    let mask: Vec<u8> = [1i64, 1, 1, 1, 0, 0].iter().flat_map(|id| id.to_le_bytes()).collect();
    let tensor = |name: &str| json!({"name": name, "datatype": "INT64", "shape": [2, 3], "parameters": {"binary_data_size": 48}});
    let head = json!({"inputs": [tensor("input_ids"), tensor("attention_mask")],
                      "parameters": {"binary_data_output": true}})
    .to_string();
    let body = [head.as_bytes(), &ids, &mask].concat();
    let ask = server.http.post(server.url("/v2/models/org%2Femb/versions/1/infer")).body(body);
    let answer = ask.header("Inference-Header-Content-Length", head.len()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-candela-model"], "org/emb");
    let n: usize = answer.headers()["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    let body = answer.bytes().await.unwrap();
    let head: Value = serde_json::from_slice(&body[..n]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], body.len() - n);
    let given: Vec<f32> =
        body[n..].chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(given, wanted);

    let ask = json!({"inputs": [texts("query", &["w5"]), texts("documents", &["w6 w7", "w8", "w9"])]});
    let (status, scores) = post(&server, "/v2/models/rank/infer", &ask).await;
    assert_eq!((status, &scores["outputs"][0]["shape"]), (200, &json!([3])), "{scores}");
    let ask = json!({"model": "rank", "query": "w5", "documents": ["w6 w7", "w8", "w9"]});
    let (_, ranking) = post(&server, "/v1/rerank", &ask).await;
    for result in ranking["results"].as_array().unwrap() {
        let at = result["index"].as_u64().unwrap() as usize;
        let score = floats(&scores["outputs"][0]["data"])[at];
        assert!((f64::from(score) - result["relevance_score"].as_f64().unwrap()).abs() < 1e-6);
    }
    let (_, embedded) = post(&server, "/v2/models/org/emb/generate", &json!({"text": "w5 w6 w7"})).await;
    assert_eq!(floats(&embedded["embedding"]), wanted[..wanted.len() / 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_generated_whole_and_as_events() {
    let server = Server::of(&TinyModel::default()).await;
    let forbid = json!({support::END_OF_TEXT.to_string(): -100});
    let ask = json!({"prompt": "hi", "max_tokens": 8, "temperature": 0, "logit_bias": forbid});
    let (_, wanted) = post(&server, "/generate", &ask).await;

    let number = json!({"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [8]});
    let ask = json!({"inputs": [texts("text_input", &["hi"]), number],
                     "parameters": {"temperature": 0, "logit_bias": forbid}});
    let (status, answer) = post(&server, &format!("/v2/models/{NAME}/infer"), &ask).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["outputs"][0]["data"], json!([wanted["text"]]));
    assert_eq!(answer["parameters"]["finish_reason"], "length");
    assert_eq!(answer["parameters"]["num_output_tokens"], 8);

    let ask =
        json!({"text_input": "hi", "parameters": {"max_tokens": 8, "temperature": 0, "logit_bias": forbid}});
    let (status, answer) = post(&server, &format!("/v2/models/{NAME}/generate"), &ask).await;
    assert_eq!((status, &answer["text_output"]), (200, &wanted["text"]), "{answer}");
    let events =
        Events::of(server.post(&format!("/v2/models/{NAME}/generate_stream"), &ask).await).rest().await;
    let events: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text: String = events.iter().map(|event| event["text_output"].as_str().unwrap()).collect();
    assert_eq!(json!(text), wanted["text"]);
    assert!(events.len() > 2);
    assert_eq!(events.last().unwrap()["finish_reason"], "length");

    // Hanging up is noticed.
    let long = json!({"text_input": "hi", "logit_bias": forbid});
    let mut events = Events::of(server.post(&format!("/v2/models/{NAME}/generate_stream"), &long).await);
    events.next().await.unwrap();
    drop(events);
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_tensors_are_refused_by_name() {
    let (server, _folders) = three().await;
    let path = format!("/v2/models/{NAME}/infer");
    let input = |shape: Value, datatype: &str, data: Value| json!({"inputs": [{"name": "text_input", "datatype": datatype, "shape": shape, "data": data}]});
    let prompt = || texts("text_input", &["hi"]);
    for (body, says) in [
        (input(json!([2]), "BYTES", json!(["a"])), "text_input"),
        (input(json!([1]), "BYTES", json!(["a", "b"])), "text_input"),
        (input(json!([-1]), "BYTES", json!(["a"])), "text_input"),
        (input(json!([i64::MAX, i64::MAX]), "BYTES", json!(["a"])), "text_input"),
        (input(json!([u64::MAX]), "BYTES", json!(["a"])), "JSON"),
        (input(json!([1]), "STRING", json!(["a"])), "BYTES"),
        (input(json!([1]), "BYTES", json!([{"a": 1}])), "text_input"),
        (input(json!([1, 1]), "BYTES", json!([[[["a", "b"]]]])), "text_input"),
        (json!({"inputs": []}), "text_input"),
        (json!({"inputs": [prompt(), prompt()]}), "twice"),
        (json!({"inputs": [texts("query", &["a"])]}), "text_input"),
        (json!({"inputs": [prompt()], "outputs": [{"name": "scores"}]}), "text_output"),
        (
            json!({"inputs": [prompt()], "outputs": [{"name": "text_output", "parameters": {"classification": 3}}]}),
            "classification",
        ),
        (json!({"inputs": [prompt()], "parameters": {"max_tokens": 0}}), "max_tokens"),
        (json!({"inputs": [prompt()], "parameters": {"wishes": 1}}), "wishes"),
        (json!({"inputs": [prompt()], "parameters": {"stream": true}}), "generate_stream"),
        (json!({"inputs": [prompt()], "parameters": {"prompt": "b"}}), "text_input"),
        (json!({"inputs": [prompt()], "parameters": {"sequence_id": 5}}), "sequence_id"),
    ] {
        let (status, answer) = post(&server, &path, &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(says), "{body}: {answer}");
    }
    for (model, tensor) in [
        ("org/emb", json!({"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [99_999]})),
        ("org/emb", json!({"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [-1]})),
        ("org/emb", json!({"name": "input_ids", "datatype": "INT64", "shape": [1, 0], "data": []})),
        ("org/emb", texts("text", &[])),
        ("org/emb", texts("text", &[""])),
        ("rank", texts("query", &["a"])),
    ] {
        let body = json!({"inputs": [tensor]});
        let (status, answer) = post(&server, &format!("/v2/models/{model}/infer"), &body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer["error"].is_string());
    }
    // A length that reaches beyond the body, and one beyond what any body may have.
    for announced in ["50", "18446744073709551615", "x"] {
        let ask = server.http.post(server.url(&path)).header("Inference-Header-Content-Length", announced);
        assert_eq!(ask.body("{\"inputs\": []}").send().await.unwrap().status(), 400, "{announced}");
    }
    match server.http.post(server.url(&path)).body(vec![b' '; 8 << 20]).send().await {
        Ok(answer) => {
            assert_eq!(answer.status(), 413);
            assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
        }
        // The server answers and closes; a client that still sends megabytes need not come to see it.
        Err(err) => assert!(err.is_request(), "{err}"),
    }
    server.settled().await;
}
