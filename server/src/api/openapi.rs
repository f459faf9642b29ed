//! `GET /openapi.json`: the API as OpenAPI 3.1, checked against the routes and against real requests by tests.

use axum::Json;
use serde_json::{Value, json};

pub(crate) async fn handle() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Candela inference server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The OpenAI API for one model. A field that this server would have to ignore is refused \
                            with 400 and its name; `null` is the same as absent.",
        },
        "paths": {
            "/v1/chat/completions": { "post": generate("Answer a conversation", "createChatCompletion", "Chat") },
            "/v1/completions": { "post": generate("Continue a text", "createCompletion", "Completion") },
            "/v1/models": { "get": {
                "summary": "The model that this server has", "operationId": "listModels",
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
    })
}

fn generate(summary: &str, operation: &str, schema: &str) -> Value {
    let event = "Server-sent events, each a chunk of the answer, the last one `[DONE]`; a stream that breaks ends \
                 with an event `{\"error\": …}` instead. What fails before the first token is an HTTP error.";
    json!({
        "summary": summary, "operationId": operation,
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
            "400": error(), "404": error(), "408": error(), "413": error(), "415": error(),
            "429": busy("The queue is full"), "500": error(),
            "503": busy("The model is loading, or the server shuts down"), "504": error()
        }
    })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
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

fn merged(mut own: Value, shared: &Value) -> Value {
    if let (Some(own), Some(shared)) = (own.as_object_mut(), shared.as_object()) {
        own.extend(shared.clone());
    }
    own
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    let count = json!({ "type": "integer", "minimum": 0 });
    let sampling = json!({
        "model": { "type": "string" },
        "max_tokens": { "type": ["integer", "null"], "minimum": 1 },
        "temperature": { "type": ["number", "null"], "minimum": 0, "maximum": 2 },
        "top_p": { "type": ["number", "null"], "minimum": 0, "maximum": 1 },
        "top_k": { "type": ["integer", "null"], "minimum": 0 },
        "seed": { "type": ["integer", "null"] },
        "presence_penalty": { "type": ["number", "null"], "minimum": -2, "maximum": 2 },
        "frequency_penalty": { "type": ["number", "null"], "minimum": -2, "maximum": 2 },
        "repetition_penalty": { "type": ["number", "null"], "minimum": 0.01, "maximum": 10 },
        "logit_bias": {
            "type": ["object", "null"], "maxProperties": 1024,
            "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 }
        },
        "stop": { "oneOf": [
            { "type": "null" }, { "type": "string" }, { "type": "array", "maxItems": 4, "items": { "type": "string" } }
        ]},
        "stream": { "type": ["boolean", "null"] },
        "stream_options": {
            "type": ["object", "null"], "properties": { "include_usage": { "type": ["boolean", "null"] } },
            "description": "With `stream: true` only"
        },
        "n": { "type": ["integer", "null"], "const": 1 },
        "user": { "type": ["string", "null"] }
    });
    let message = json!({
        "type": "object", "required": ["role", "content"],
        "properties": {
            "role": { "enum": ["system", "developer", "user", "assistant"] },
            "content": { "oneOf": [{ "type": "string" }, { "type": "array", "items": {
                "type": "object", "required": ["type", "text"],
                "properties": { "type": { "const": "text" }, "text": { "type": "string" } }
            }}]},
            "name": { "type": ["string", "null"] }
        }
    });
    let chat_fields = merged(
        json!({
            "messages": { "type": "array", "minItems": 1, "items": message },
            "max_completion_tokens": { "type": ["integer", "null"], "minimum": 1 },
            "logprobs": { "type": ["boolean", "null"] },
            "top_logprobs": { "type": ["integer", "null"], "minimum": 0, "maximum": 20 },
            "response_format": { "type": ["object", "null"], "properties": { "type": { "const": "text" } } }
        }),
        &sampling,
    );
    let prompt = json!({ "oneOf": [
        { "type": "string" },
        { "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0 } },
        { "type": "array", "minItems": 1, "maxItems": 1, "items": { "type": "string" } },
        { "type": "array", "minItems": 1, "maxItems": 1, "items": { "type": "array", "items": { "type": "integer" } } }
    ]});
    let text_fields = merged(
        json!({
            "prompt": prompt,
            "logprobs": { "type": ["integer", "null"], "minimum": 0, "maximum": 5 }
        }),
        &sampling,
    );
    let head = json!({
        "id": text, "object": text, "created": count, "model": text,
        "system_fingerprint": { "type": ["string", "null"] }
    });
    let finish = json!({ "enum": ["stop", "length", null] });
    let answer = object(&["role", "content"], json!({ "role": { "const": "assistant" }, "content": text }));
    let chat_choice = object(
        &["index", "message", "finish_reason"],
        json!({
            "index": count, "message": answer, "logprobs": { "type": ["object", "null"] }, "finish_reason": finish
        }),
    );
    let text_choice = object(
        &["index", "text", "finish_reason"],
        json!({
            "index": count, "text": text, "logprobs": { "type": ["object", "null"] }, "finish_reason": finish
        }),
    );
    let required = ["id", "object", "created", "model", "choices", "usage"];
    let usage_fields = json!({ "prompt_tokens": count, "completion_tokens": count, "total_tokens": count });
    let usage = object(&["prompt_tokens", "completion_tokens", "total_tokens"], usage_fields);
    let whole = |choice: Value| {
        let own = json!({ "choices": { "type": "array", "items": choice }, "usage": usage });
        object(&required, merged(own, &head))
    };
    let nullable = json!({ "type": ["string", "null"] });
    let detail = object(
        &["message", "type", "param", "code"],
        json!({
            "message": text, "type": text, "param": nullable, "code": nullable
        }),
    );
    json!({
        "ChatRequest": merged(object(&["model", "messages"], chat_fields), &json!({ "additionalProperties": false })),
        "CompletionRequest": merged(object(&["model", "prompt"], text_fields), &json!({ "additionalProperties": false })),
        "Chat": whole(chat_choice),
        "Completion": whole(text_choice),
        "Model": object(&["id", "object", "created", "owned_by"], json!({
            "id": text, "object": { "const": "model" }, "created": count, "owned_by": text
        })),
        "ModelList": object(&["object", "data"], json!({
            "object": { "const": "list" }, "data": { "type": "array", "items": reference("Model") }
        })),
        "Error": object(&["error"], json!({ "error": detail }))
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
            .map(|(method, path, _)| (method.to_owned(), path.replace("{*", "{")))
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
