//! `GET /openapi.json`: the API as OpenAPI 3.1, checked against the routes and against real requests by tests.

mod oip;
#[cfg(test)]
mod page;
mod schemas;

use std::sync::LazyLock;

use axum::response::IntoResponse;
use bytes::Bytes;
use candela_wire::{config::Task, trust};
use http::header;
use serde_json::{Value, json};

use schemas::{reference, schemas};

pub(crate) async fn handle() -> impl IntoResponse {
    // It never changes, and many may ask for it.
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone())
}

fn document() -> Value {
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Candela inference server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The OpenAI API, routes of our own and the Open Inference Protocol, for all models of this server. A field that this server would have to ignore is refused \
                            with 400 and its name; `null` is the same as absent.",
        },
        "paths": {
            "/v1/chat/completions": { "post": generate("Answer a conversation", "createChatCompletion", "Chat") },
            "/v1/completions": { "post": generate("Continue a text", "createCompletion", "Completion") },
            "/v1/responses": { "post": generate("Answer a conversation, and keep nothing of it", "createResponse", "Response") },
            "/v1/embeddings": { "post": encoded("Texts as vectors", "createEmbedding", "Embeddings", error) },
            "/v1/rerank": { "post": encoded("Documents by their relevance to a query", "createRerank", "Rerank", error) },
            "/v2/rerank": { "post": encoded("Documents by their relevance to a query", "createRerankV2", "Rerank", error) },
            "/rerank": { "post": native("Documents by their relevance to a query", "rerank", "Rerank", None) },
            "/token-classify": { "post": native("What is named in texts, as transformers' pipeline `token-classification` tells it", "tokenClassify", "TokenClassify", None) },
            "/embed": { "post": native("Texts as vectors", "embed", "Embed", None) },
            "/generate": { "post": native(
                "Text from a prompt or a conversation", "generate", "Generate",
                Some("Events `token` with `text`, then `done` with the answer; `error` with a problem if it breaks")
            )},
            "/summarize": { "post": native(
                "A summary of a text of any length: its parts are summarised side by side, then their summaries",
                "summarize", "Summarize",
                Some("Events `progress` (`round`, `done`, `total`), `token` with `text` of the summary, then `done` with \
                      the answer; `error` with a problem if it breaks")
            )},
            "/tokenize": { "post": native("A text or a conversation as tokens", "tokenize", "Tokenize", None) },
            "/detokenize": { "post": native("The text of tokens", "detokenize", "Detokenize", None) },
            "/v1/models": { "get": {
                "summary": "The models that answer", "operationId": "listModels",
                "responses": { "200": ok("ModelList"), "default": error() }
            }},
            "/v1/models/{model}": { "get": {
                "summary": "One model", "operationId": "retrieveModel",
                "parameters": [{ "name": "model", "in": "path", "required": true, "schema": { "type": "string" } }],
                "responses": { "200": ok("Model"), "default": error() }
            }},
            "/openapi.json": { "get": {
                "summary": "This document", "operationId": "getOpenApi",
                "responses": { "200": {
                    "description": "OpenAPI 3.1", "content": { "application/json": { "schema": { "type": "object" } } }
                }}
            }}
        },
        "components": { "schemas": schemas() }
    });
    if let Value::Object(paths) = &mut document["paths"] {
        oip::add(paths);
    }
    document
}

/// What a model must be for to answer requests of this shape.
fn task(schema: &str) -> Task {
    match schema {
        "Embeddings" | "Embed" => Task::Embed,
        "Rerank" => Task::Rerank,
        "TokenClassify" => Task::TokenClassify,
        _ => Task::Generate,
    }
}

fn encoded(summary: &str, operation: &str, schema: &str, error: fn() -> Value) -> Value {
    json!({
        "summary": summary, "operationId": operation, "x-candela-task": task(schema).as_str(), "parameters": gateway_headers(),
        "requestBody": { "required": true, "content": { "application/json": { "schema": reference(&format!("{schema}Request")) } } },
        "responses": {
            "200": ok(schema),
            "400": error(), "401": error(), "404": error(), "413": error(), "415": error(), "429": busy("The queue is full"),
            "500": error(), "503": busy("The model is loading, or the server shuts down"), "504": error()
        }
    })
}

fn generate(summary: &str, operation: &str, schema: &str) -> Value {
    let event = "Server-sent events, each a chunk of the answer, the last one `[DONE]`; a stream that breaks ends \
                 with an event `{\"error\": …}` instead. What fails before the first token is an HTTP error.";
    json!({
        "summary": summary, "operationId": operation, "x-candela-task": task(schema).as_str(), "parameters": gateway_headers(),
        "requestBody": { "required": true, "content": { "application/json": { "schema": reference(&format!("{schema}Request")) } } },
        "responses": {
            "200": {
                "description": "The answer; with `stream: true` as events",
                "headers": {
                    "x-request-id": { "schema": { "type": "string" } },
                    "x-candela-model": { "schema": { "type": "string" } },
                    "x-candela-revision": { "schema": { "type": "string" } }
                },
                "content": {
                    "application/json": { "schema": reference(schema) },
                    "text/event-stream": { "schema": { "type": "string", "description": event } }
                }
            },
            "400": error(), "401": error(), "404": error(), "408": error(), "413": error(), "415": error(),
            "429": busy("The queue is full"), "500": error(),
            "503": busy("The model is loading, or the server shuts down"), "504": error()
        }
    })
}

/// A route with problem+json, and with events if it can stream.
fn native(summary: &str, operation: &str, schema: &str, events: Option<&str>) -> Value {
    let mut content = json!({ "application/json": { "schema": reference(schema) } });
    if let Some(events) = events {
        content["text/event-stream"] = json!({ "schema": { "type": "string", "description": events } });
    }
    let problem = json!({
        "description": "Error", "content": { "application/problem+json": { "schema": reference("Problem") } }
    });
    let request = reference(&format!("{schema}Request"));
    json!({
        "summary": summary, "operationId": operation, "x-candela-task": task(schema).as_str(), "parameters": gateway_headers(),
        "requestBody": { "required": true, "content": { "application/json": { "schema": request } } },
        "responses": {
            "200": { "description": "The answer; with `stream: true` as events", "content": content },
            "default": problem
        }
    })
}

/// What a gateway may send beside its token; without that it is ignored.
fn gateway_headers() -> Value {
    let header = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "header", "description": description, "schema": schema });
    let id = "Name of the request in logs and in the answer; made by the server if absent";
    let tenant =
        "Requests of two tenants share nothing that was computed; believed beside a gateway's token only";
    let deadline = "Milliseconds for the whole request, beside the server's own limit; believed beside a gateway's token only";
    let token = "`Bearer` and the gateway's ServiceAccount token; 401 if it is not good";
    let text = |most: usize| json!({ "type": "string", "minLength": 1, "maxLength": most });
    json!([
        header(trust::REQUEST_ID, id, text(trust::MAX_REQUEST_ID_BYTES)),
        header(trust::AUTHORIZATION, token, json!({ "type": "string" })),
        header(trust::TENANT, tenant, text(trust::MAX_TENANT_BYTES)),
        header(
            trust::DEADLINE_MS,
            deadline,
            json!({ "type": "integer", "minimum": 1, "maximum": trust::MAX_DEADLINE_MS })
        ),
    ])
}

fn ok(schema: &str) -> Value {
    json!({ "description": "OK", "content": { "application/json": { "schema": reference(schema) } } })
}

fn error() -> Value {
    json!({ "description": "Error", "content": { "application/json": { "schema": reference("Error") } } })
}

fn busy(description: &str) -> Value {
    json!({
        "description": description,
        "headers": { "Retry-After": { "schema": { "type": "integer", "minimum": 1 } } },
        "content": { "application/json": { "schema": reference("Error") } }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_has_exactly_the_routes() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let documented: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|key| (key.clone(), path.clone()))
            })
            .collect();
        // OpenAPI has no word for axum's "and all that follows".
        let routed: BTreeSet<_> = super::super::routes()
            .into_iter()
            .map(|(method, path, _)| (method, path))
            .chain(crate::oip::http::documented())
            .map(|(method, path)| (method.to_owned(), path.replace("{*", "{")))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let names = text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
        for name in names {
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
