//! What the headers of a gateway do, on every route that computes.

use candela_engine::Engine;
use candela_wire::trust::{AUTHORIZATION, DEADLINE_MS, REQUEST_ID, TENANT};
use http::Response;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::trust::test_tokens::{Signer, claims, now, trust_file};

/// A loaded server that trusts the tokens of one key.
struct Trusting {
    running: Running,
    signer: Signer,
    _dir: TempDir,
}

impl Trusting {
    async fn new() -> Self {
        let signer = Signer::p256("e");
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("trust.json");
        std::fs::write(&file, trust_file(&[&signer]).to_string()).unwrap();
        let mut running = started(|options| options.trust = file).await;
        let engine = std::mem::take(&mut running.engine);
        load(&running.app, engine, running.models_dir.clone()).await.unwrap();
        Self { running, signer, _dir: dir }
    }

    fn engine(&self) -> Engine {
        self.running.app.models.loaded().next().unwrap().engine().unwrap().clone()
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.signer.token(&claims(now())))
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Response<Body> {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        api::router(Arc::clone(&self.running.app)).oneshot(request).await.unwrap()
    }

    /// Tokens of the prompt that were found in the cache.
    async fn hits(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> u64 {
        let hits = || self.engine().stats().prefix_hit_tokens_total;
        let before = hits();
        let answer = self.post(path, headers, body).await;
        assert_eq!(answer.status(), 200, "{path}: {answer:?}");
        answer.into_body().collect().await.unwrap();
        hits() - before
    }
}

async fn json_of(answer: Response<Body>) -> Value {
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Every route that generates, each with a text of its own.
fn routes() -> [(&'static str, Value); 5] {
    let text = |route: &str| format!("{route}: {}", "one two three four five six seven ".repeat(8));
    [
        ("/v1/chat/completions", {
            json!({"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": text("chat")}]})
        }),
        ("/v1/completions", json!({"model": "demo", "max_tokens": 1, "prompt": text("completions")})),
        ("/v1/responses", json!({"model": "demo", "max_output_tokens": 16, "input": text("responses")})),
        ("/generate", json!({"max_tokens": 1, "prompt": text("generate")})),
        ("/summarize", json!({"max_tokens": 1, "text": text("summarize")})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_never_share_what_was_computed_of_a_prompt() {
    let server = Trusting::new().await;
    let bearer = server.bearer();
    let unknown = format!("Bearer {}", Signer::p256("other").token(&claims(now())));
    for (path, body) in routes() {
        let of = async |headers: &[(&str, &str)]| server.hits(path, headers, &body).await;
        let (a, b) = ([(AUTHORIZATION, &*bearer), (TENANT, "a")], [(AUTHORIZATION, &*bearer), (TENANT, "b")]);
        assert_eq!(of(&a).await, 0, "{path}: the first");
        assert_eq!(of(&b).await, 0, "{path}: another tenant");
        assert!(of(&a).await >= 32, "{path}: the same tenant");
        assert_eq!(of(&[(TENANT, "a")]).await, 0, "{path}: somebody who only says so");
        assert!(of(&[(TENANT, "b")]).await >= 32, "{path}: all who are not trusted are one");
        for _ in 0..2 {
            let cannot_be_checked = [(AUTHORIZATION, &*unknown), (TENANT, "a")];
            assert_eq!(of(&cannot_be_checked).await, 0, "{path}: shares with nobody");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_request_if_it_comes_from_the_gateway() {
    let server = Trusting::new().await;
    let bearer = server.bearer();
    for (path, mut body) in routes() {
        let most = if path == "/v1/responses" { "max_output_tokens" } else { "max_tokens" };
        body[most] = json!(200);
        // No machine computes so many tokens within a millisecond.
        if matches!(path, "/v1/chat/completions" | "/v1/completions") {
            body["ignore_eos"] = json!(true);
        }
        let late = server.post(path, &[(AUTHORIZATION, &bearer), (DEADLINE_MS, "1")], &body).await;
        assert_eq!(late.status(), 504, "{path}");
        let ignored = server.post(path, &[(DEADLINE_MS, "1")], &body).await;
        assert_eq!(ignored.status(), 200, "{path}");
        let ample = server.post(path, &[(AUTHORIZATION, &bearer), (DEADLINE_MS, "600000")], &body).await;
        assert_eq!(ample.status(), 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_the_shape_of_their_route_and_name_the_header() {
    let server = Trusting::new().await;
    let bearer = server.bearer();
    for (path, body) in routes() {
        let forged = server.post(path, &[(AUTHORIZATION, "Bearer a.b.c"), (REQUEST_ID, "me")], &body).await;
        assert_eq!(forged.status(), 401);
        assert!(forged.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
        assert_eq!(forged.headers()["x-request-id"], "me");
        let wrong = server.post(path, &[(AUTHORIZATION, &bearer), (DEADLINE_MS, "-5")], &body).await;
        assert_eq!(wrong.status(), 400);
        for (answer, code, param) in
            [(forged, "invalid_gateway_token", AUTHORIZATION), (wrong, "invalid_header", DEADLINE_MS)]
        {
            let media_type = answer.headers()["content-type"].clone();
            let body = json_of(answer).await;
            if path.starts_with("/v1") {
                assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&json!(code), &json!(param)));
            } else {
                assert_eq!(media_type, "application/problem+json");
                assert_eq!((&body["code"], &body["param"]), (&json!(code), &json!(param)));
            }
        }
    }
    let text = server.running.app.metrics.text(
        server.running.app.now(),
        &server.running.app.progress,
        crate::metrics::Format::OpenMetrics,
    );
    for line in [
        "candela_server_gateway_tokens_total{outcome=\"malformed\"} 5",
        "candela_server_gateway_tokens_total{outcome=\"trusted\"} 5",
        "candela_server_trust_keys 1",
    ] {
        assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn only_the_gateway_loads_and_unloads_where_there_is_one() {
    let server = Trusting::new().await;
    for verb in ["load", "unload"] {
        let path = format!("/v2/repository/models/m/{verb}");
        let refused = server.post(&path, &[], &json!({})).await;
        assert_eq!(refused.status(), 403, "{verb}");
        let refused = json_of(refused).await;
        assert!(refused["error"].as_str().unwrap().contains(AUTHORIZATION), "{refused}");
        let asked = server.post(&path, &[(AUTHORIZATION, &server.bearer())], &json!({})).await;
        // There is no repository here.
        assert_eq!(asked.status(), 404, "{verb}");
    }
}
