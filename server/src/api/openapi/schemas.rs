//! The shapes of requests and answers.

use serde_json::{Value, json};

pub(super) fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
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

pub(super) fn schemas() -> Value {
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
            "type": ["object", "null"], "properties": {
                "include_usage": { "type": ["boolean", "null"] },
                "continuous_usage_stats": {
                    "type": ["boolean", "null"],
                    "description": "The usage of its answer so far in every chunk; with `include_usage` only"
                }
            },
            "description": "With `stream: true` only"
        },
        "n": { "type": ["integer", "null"], "minimum": 1, "maximum": 8, "description": "Answers to the prompt" },
        "min_p": { "type": ["number", "null"], "minimum": 0, "maximum": 0.999 },
        "min_tokens": {
            "type": ["integer", "null"], "minimum": 0,
            "description": "Neither the model nor a stop string ends the answer before; a form that it is held to may"
        },
        "ignore_eos": { "type": ["boolean", "null"], "description": "The model does not end the answer (for load tests)" },
        "speculation": {
            "type": ["object", "null"], "required": ["type"], "properties": {
                "type": { "const": "prompt_lookup" },
                "ngram": { "type": ["integer", "null"], "minimum": 1, "maximum": 16, "default": 3 },
                "max_draft": { "type": ["integer", "null"], "minimum": 1, "maximum": 32, "default": 8 }
            },
            "description": "Guess up to `max_draft` tokens: those that followed the last `ngram` ones before. Same answer, other speed"
        },
        "structured_outputs": {
            "type": ["object", "null"], "minProperties": 1, "maxProperties": 1, "properties": {
                "json": { "description": "A JSON schema, or its text" }, "json_object": { "const": true },
                "regex": { "type": "string" },
                "choice": { "type": "array", "minItems": 1, "items": { "type": "string" } },
                "grammar": { "type": "string", "description": "In llguidance's variant of Lark" }
            },
            "description": "What the answer must be. It ends with `stop` once it is whole, with `length` where it is cut"
        },
        "user": { "type": ["string", "null"] },
        "prompt_cache_key": { "type": ["string", "null"], "description": "Taken, and of no use here" },
        "prompt_cache_retention": { "type": ["string", "null"], "description": "Taken, and of no use here" }
    });
    let function = |arguments: Value| {
        json!({
            "type": "object", "required": ["name"], "properties": { "name": { "type": "string" }, "arguments": arguments }
        })
    };
    let call = json!({
        "type": "object", "required": ["id", "type", "function"], "properties": {
            "id": text, "type": { "const": "function" },
            "function": function(json!({ "type": "string", "description": "A JSON object" }))
        }
    });
    let message = json!({
        "type": "object", "required": ["role"],
        "properties": {
            "role": { "enum": ["system", "developer", "user", "assistant", "tool"] },
            "tool_calls": { "type": ["array", "null"], "items": call, "description": "Of an assistant" },
            "tool_call_id": { "type": ["string", "null"], "description": "Of a tool: what it answers" },
            "content": { "oneOf": [{ "type": "null" }, { "type": "string" }, { "type": "array", "items": {
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
            "response_format": {
                "type": ["object", "null"], "required": ["type"], "properties": {
                    "type": { "enum": ["text", "json_object", "json_schema"] },
                    "json_schema": {
                        "type": "object", "required": ["name", "schema"], "properties": {
                            "name": { "type": "string" }, "description": { "type": ["string", "null"] },
                            "strict": { "type": ["boolean", "null"] }, "schema": { "type": "object" }
                        }
                    }
                },
                "description": "The answer is held to the schema, strict or not"
            },
            "tools": { "type": ["array", "null"], "maxItems": 128, "items": {
                "type": "object", "required": ["type", "function"], "properties": {
                    "type": { "const": "function" },
                    "function": { "type": "object", "required": ["name"], "properties": {
                        "name": { "type": "string" }, "description": { "type": ["string", "null"] },
                        "parameters": { "type": ["object", "null"] },
                        "strict": { "type": ["boolean", "null"], "description": "Calls match `parameters` also where the model decides whether to call" }
                    }}
                }
            }},
            "tool_choice": { "oneOf": [{ "type": "null" }, { "enum": ["none", "auto", "required"] }, {
                "type": "object", "required": ["type", "function"], "properties": {
                    "type": { "const": "function" }, "function": function(json!(false))
                }
            }], "description": "Calls that are asked for are held to their parameters" },
            "parallel_tool_calls": { "type": ["boolean", "null"] }
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
    let finish = json!({ "enum": ["stop", "length", "tool_calls", null] });
    let answer = object(
        &["role", "content"],
        json!({
            "role": { "const": "assistant" }, "content": { "type": ["string", "null"] },
            "tool_calls": { "type": "array", "items": call }
        }),
    );
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
    let ms = json!({ "type": "number", "minimum": 0 });
    let timings = object(
        &["queue_ms", "prefill_ms", "decode_ms"],
        json!({ "queue_ms": ms, "prefill_ms": ms, "decode_ms": ms }),
    );
    let usage_fields = json!({
        "prompt_tokens": count, "completion_tokens": count, "total_tokens": count, "timings": timings,
        "prompt_tokens_details": object(&["cached_tokens"], json!({ "cached_tokens": count })),
        "completion_tokens_details": object(&["accepted_prediction_tokens", "rejected_prediction_tokens"], json!({
            "accepted_prediction_tokens": count, "rejected_prediction_tokens": count
        }))
    });
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
    let item = json!({ "type": "object", "properties": {
        "type": { "enum": ["message", "function_call", "function_call_output"] }, "role": text,
        "content": { "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "object" } }] },
        "call_id": text, "name": text, "arguments": text, "output": text, "id": text, "status": text
    }});
    let response_fields = json!({
        "model": text,
        "input": { "oneOf": [{ "type": "string" }, { "type": "array", "minItems": 1, "items": item }] },
        "instructions": { "type": ["string", "null"] },
        "max_output_tokens": { "type": ["integer", "null"], "minimum": 1 },
        "temperature": sampling["temperature"], "top_p": sampling["top_p"], "stream": sampling["stream"],
        "store": { "type": ["boolean", "null"], "const": false, "description": "Nothing is stored here" },
        "text": { "type": ["object", "null"], "properties": { "format": { "type": ["object", "null"] } } },
        "tools": { "type": ["array", "null"], "maxItems": 128, "items": { "type": "object" } },
        "tool_choice": { "type": ["string", "object", "null"] },
        "parallel_tool_calls": { "type": ["boolean", "null"] }
    });
    let response = object(
        &["id", "object", "created_at", "status", "model", "output"],
        json!({
            "id": text, "object": { "const": "response" }, "created_at": count,
            "status": { "enum": ["completed", "incomplete"] }, "model": text,
            "output": { "type": "array", "items": item }, "usage": { "type": "object" }
        }),
    );
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 } });
    let model = json!({ "model": { "type": ["string", "null"] } });
    let conversation = chat_fields["messages"].clone();
    let strict = |required: &[&str], fields: Value| {
        merged(object(required, fields), &json!({ "additionalProperties": false }))
    };
    let of_sampling = |names: &[&str]| {
        let fields = names.iter().map(|name| ((*name).to_owned(), sampling[*name].clone()));
        Value::Object(fields.collect())
    };
    let wishes = of_sampling(&[
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
        "stop",
        "min_tokens",
        "ignore_eos",
        "speculation",
        "stream",
    ]);
    let generate = json!({
        "prompt": { "oneOf": [{ "type": "string" }, ids] }, "messages": conversation,
        "structured_outputs": sampling["structured_outputs"]
    });
    let written =
        json!({ "id": text, "model": text, "finish_reason": { "enum": ["stop", "length"] }, "usage": usage });
    let read =
        object(&["prompt_tokens", "total_tokens"], json!({ "prompt_tokens": count, "total_tokens": count }));
    let vector = json!({ "type": "array", "items": { "type": "number" } });
    let embed = json!({
        "input": { "description": "A text, texts, token ids or lists of them", "anyOf": [
            text, ids, { "type": "array", "minItems": 1, "maxItems": 2048, "items": { "anyOf": [text, ids] } }
        ] },
        "encoding_format": { "enum": ["float", "base64", null] },
        "dimensions": { "type": ["integer", "null"], "minimum": 1 },
        "truncate": { "type": ["boolean", "null"], "description": "Cut what is too long instead of refusing it" },
        "user": { "type": ["string", "null"] }
    });
    let native = json!({
        "TokenizeRequest": strict(&[], merged(json!({
            "prompt": text, "messages": conversation, "add_special_tokens": { "type": ["boolean", "null"] },
            "return_token_strs": { "type": ["boolean", "null"] }
        }), &model)),
        "Tokenize": object(&["count", "max_model_len", "tokens", "token_strs"], json!({
            "count": count, "max_model_len": count, "tokens": ids,
            "token_strs": { "type": ["array", "null"], "items": text }
        })),
        "DetokenizeRequest": strict(&["tokens"], merged(json!({ "tokens": ids }), &model)),
        "Detokenize": object(&["prompt"], json!({ "prompt": text })),
        "EmbeddingsRequest": strict(&["input"], merged(embed.clone(), &model)),
        "EmbedRequest": strict(&["input"], merged(embed, &model)),
        "Embeddings": object(&["object", "data", "model", "usage"], json!({
            "object": { "type": "string", "const": "list" }, "model": text, "usage": read,
            "data": { "type": "array", "items": object(&["object", "index", "embedding"], json!({
                "object": { "type": "string", "const": "embedding" }, "index": count,
                "embedding": { "anyOf": [vector, { "type": "string", "description": "Base64 of little-endian f32" }] }
            })) }
        })),
        "Embed": object(&["model", "embeddings", "usage"], json!({
            "model": text, "embeddings": { "type": "array", "items": vector }, "usage": read
        })),
        "RerankRequest": strict(&["query", "documents"], merged(json!({
            "query": text,
            "documents": { "type": "array", "minItems": 1, "maxItems": 2048, "items": { "anyOf": [
                text, object(&["text"], json!({ "text": text }))
            ] } },
            "top_n": { "type": ["integer", "null"], "minimum": 1 },
            "return_documents": { "type": ["boolean", "null"] },
            "max_tokens_per_doc": { "type": ["integer", "null"], "minimum": 1, "description": "Of each document, the first so many tokens are read" },
            "raw_scores": { "type": ["boolean", "null"], "description": "The model's own scores, not their logistic function" },
            "truncate": { "type": ["boolean", "null"], "description": "Cut what is too long (default)" }
        }), &model)),
        "Rerank": object(&["id", "model", "results", "usage"], json!({
            "id": text, "model": text, "usage": read,
            "results": { "type": "array", "description": "Best first", "items": object(&["index", "relevance_score"], json!({
                "index": count, "relevance_score": { "type": "number" },
                "document": object(&["text"], json!({ "text": text }))
            })) }
        })),
        "TokenClassifyRequest": strict(&["input"], merged(json!({
            "input": { "anyOf": [text, { "type": "array", "minItems": 1, "maxItems": 2048, "items": text }] },
            "aggregation_strategy": {
                "enum": ["none", "simple", "first", "average", "max", null],
                "description": "`none`: tokens; `simple` (default): neighbours with the same label; the others: of whole words, with the label of the first token, of the mean of all, or of the surest"
            },
            "ignore_labels": { "type": ["array", "null"], "maxItems": 1024, "items": text, "description": "Default: `[\"O\"]`" },
            "truncate": { "type": ["boolean", "null"], "description": "Cut what is too long instead of refusing it" }
        }), &model)),
        "TokenClassify": object(&["model", "entities", "usage"], json!({
            "model": text, "usage": read,
            "entities": { "type": "array", "description": "For each text what is named in it", "items": {
                "type": "array", "items": object(&["score", "word", "start", "end"], json!({
                    "entity": { "type": "string", "description": "Label of a token, with `none`" },
                    "entity_group": { "type": "string", "description": "Label without `B-` or `I-`" },
                    "score": { "type": "number" }, "index": count, "word": text,
                    "start": { "type": "integer", "minimum": 0, "description": "Characters of the text" },
                    "end": { "type": "integer", "minimum": 0 }
                }))
            } }
        })),
        "GenerateRequest": strict(&[], merged(merged(generate, &wishes), &model)),
        "Generate": object(
            &["id", "model", "text", "finish_reason", "usage"],
            merged(json!({ "text": text }), &written)
        ),
        "SummarizeRequest": strict(&["text"], merged(merged(json!({
            "text": text,
            "instructions": { "type": ["string", "null"], "description": "What the summary should be like" }
        }), &wishes), &model)),
        "Summarize": object(
            &["id", "model", "summary", "finish_reason", "chunks", "rounds", "usage"],
            merged(json!({ "summary": text, "chunks": count, "rounds": count }), &written)
        ),
        "Problem": object(&["type", "title", "status", "detail"], json!({
            "type": text, "title": text, "status": count, "detail": text, "code": text, "param": text
        }))
    });
    let openai = json!({
        "ChatRequest": merged(object(&["model", "messages"], chat_fields), &json!({ "additionalProperties": false })),
        "CompletionRequest": merged(object(&["model", "prompt"], text_fields), &json!({ "additionalProperties": false })),
        "ResponseRequest": object(&["model", "input"], response_fields),
        "Response": response,
        "Chat": whole(chat_choice),
        "Completion": whole(text_choice),
        "Model": object(&["id", "object", "created", "owned_by"], json!({
            "id": text, "object": { "const": "model" }, "created": count, "owned_by": text
        })),
        "ModelList": object(&["object", "data"], json!({
            "object": { "const": "list" }, "data": { "type": "array", "items": reference("Model") }
        })),
        "Error": object(&["error"], json!({ "error": detail }))
    });
    merged(openai, &native)
}
