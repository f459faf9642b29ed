//! The part of the document that is the Open Inference Protocol's.

use serde_json::{Map, Value, json};

use crate::oip::http::documented;

/// Adds its paths to those of the document.
pub(super) fn add(paths: &mut Map<String, Value>) {
    for (method, path) in documented() {
        let mut operation = json!({
            "summary": summary(path),
            "operationId": operation_id(path),
            "responses": {
                "200": { "description": "OK", "content": content(path) },
                "default": {
                    "description": "Error: `{\"error\": \"…\"}`",
                    "content": { "application/json": { "schema": {
                        "type": "object", "required": ["error"], "properties": { "error": { "type": "string" } }
                    }}}
                }
            }
        });
        let parameters: Vec<Value> = ["model", "version"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if path.ends_with("/infer") {
            operation["requestBody"] = json!({ "required": true, "content": {
                "application/json": { "schema": infer_request() },
                "application/octet-stream": { "schema": {
                    "type": "string", "format": "binary",
                    "description": "JSON of as many bytes as the header `Inference-Header-Content-Length` says, then the tensors \
                                    that have a `binary_data_size`"
                }}
            }});
        } else if method == "post" {
            operation["requestBody"] =
                json!({ "content": { "application/json": { "schema": { "type": "object" } } } });
        }
        paths.insert(path.to_owned(), json!({ method: operation }));
    }
}

fn last(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some("{model}" | "{version}") | None => "metadata",
        Some(last) => last,
    }
}

fn summary(path: &str) -> &'static str {
    match last(path) {
        "v2" => "What this server is and can",
        "live" => "Whether the server is alive",
        "ready" if path.contains("{model}") => "Whether the model answers",
        "ready" => "Whether all models answer",
        "config" => "The model's inputs and outputs, as Triton's configuration has them",
        "infer" => "Tensors in, tensors out",
        "generate" => "Inputs and outputs as fields of JSON objects",
        "generate_stream" => "The same with an answer of server-sent events",
        "index" => "The models and their states",
        "load" => "Load a model",
        "unload" => "Unload a model",
        _ => "The model's inputs and outputs",
    }
}

fn operation_id(path: &str) -> String {
    let model = if path.contains("{model}") { "Model" } else { "Server" };
    let version = if path.contains("{version}") { "Version" } else { "" };
    let verb = last(path).split('_').map(|part| part[..1].to_uppercase() + &part[1..]);
    format!("oip{model}{version}{}", verb.collect::<String>())
}

fn content(path: &str) -> Value {
    match last(path) {
        "generate_stream" => json!({ "text/event-stream": { "schema": { "type": "string" } } }),
        "infer" => json!({
            "application/json": { "schema": { "type": "object" } },
            "application/octet-stream": { "schema": { "type": "string", "format": "binary" } }
        }),
        _ => json!({ "application/json": { "schema": { "type": ["object", "array"] } } }),
    }
}

fn infer_request() -> Value {
    let parameters = json!({ "type": "object" });
    json!({
        "type": "object", "required": ["inputs"], "additionalProperties": false,
        "properties": {
            "id": { "type": "string" },
            "parameters": parameters,
            "inputs": { "type": "array", "items": {
                "type": "object", "required": ["name", "datatype", "shape"], "additionalProperties": false,
                "properties": {
                    "name": { "type": "string" },
                    "datatype": { "type": "string" },
                    "shape": { "type": "array", "items": { "type": "integer" } },
                    "parameters": parameters,
                    "data": {}
                }
            }},
            "outputs": { "type": "array", "items": {
                "type": "object", "required": ["name"], "additionalProperties": false,
                "properties": { "name": { "type": "string" }, "parameters": parameters }
            }}
        }
    })
}
