//! `POST /v1/responses`: OpenAI's newer shape of a chat, without its memory.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_wire::{
    openai::{Delivery, FinishReason, ResponsesRequest, ToolCall, Usage},
    sse,
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    answer::{self, Choice, Content, Head, Piece, Writer},
    chat::{calls_of, prompt_tokens},
    error::ApiError,
    no_such_model,
    prepare::{self, Job, Target, constraint, generate_request, held_to},
    random_hex,
};
use crate::{app::App, model::Served};

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (job, repeated) = prepare::job(&app, request, parse).await?;
    let head = Head::new("resp_", &job);
    let writer = Responses { head, repeated, items: Vec::new(), open: None, n_events: 0, reason: None };
    answer::respond(&app, job, writer).await
}

fn parse(app: &App, served: &Served, body: &[u8]) -> Result<(Job, Map<String, Value>), ApiError> {
    let request = ResponsesRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    if !served.answers_to(&request.model) {
        return Err(no_such_model(&request.model, served));
    }
    let prompt = prompt_tokens(served, &request.messages, request.tools.as_ref(), "input")?;
    let mut engine_request = generate_request(served, prompt, request.sampling, None)?;
    let mut calls = None;
    if let Some(tools) = &request.tools {
        calls = calls_of(served, tools)?;
        if let Some(grammar) = calls.map(|calls| calls.notation.grammar(tools)).transpose()?.flatten() {
            engine_request.constraint = Some(constraint(served.engine()?, &grammar, "tools")?);
        }
    }
    if let Some(format) = &request.format {
        if calls.is_some() {
            let message = "`text.format` cannot be kept together with `tools`, since a call has a form of its own: set \
                           `tool_choice` to `none`";
            return Err(ApiError::invalid("text.format", message));
        }
        engine_request.constraint = Some(held_to(served.engine()?, format)?);
    }
    let job = Job {
        target: Target::of(served)?,
        request: engine_request,
        n: 1,
        calls,
        delivery: Delivery { stream: request.stream, ..Delivery::default() },
        arrived: Instant::now(),
    };
    Ok((job, request.repeated))
}

/// An answer of this route: items, each of which opens, grows and is done.
struct Responses {
    head: Head,
    repeated: Map<String, Value>,
    /// Those that are done.
    items: Vec<Value>,
    /// The text item that grows.
    open: Option<OpenText>,
    n_events: u64,
    reason: Option<FinishReason>,
}

struct OpenText {
    id: String,
    text: String,
}

impl OpenText {
    fn part(&self) -> Value {
        json!({"type": "output_text", "annotations": [], "logprobs": [], "text": self.text})
    }

    fn item(&self, status: &str) -> Value {
        let content = if status == "in_progress" { json!([]) } else { json!([self.part()]) };
        json!({"id": self.id, "type": "message", "status": status, "content": content, "role": "assistant"})
    }
}

fn call_item(id: &str, call: &ToolCall, arguments: &str, status: &str) -> Value {
    json!({
        "id": id, "type": "function_call", "status": status, "arguments": arguments, "call_id": call.id,
        "name": call.function.name
    })
}

impl Responses {
    /// The answer as it stands.
    fn answer(&self, status: &str, usage: Option<Usage>) -> Value {
        let cut = status == "incomplete";
        let mut answer = json!({
            "id": self.head.id, "object": "response", "created_at": self.head.created, "status": status,
            "background": false, "error": null,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
            "model": self.head.model, "output": self.items, "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null}, "service_tier": "default", "store": false,
            "truncation": "disabled", "user": null, "metadata": {},
            "usage": usage.map(|usage| json!({
                "input_tokens": usage.prompt_tokens, "input_tokens_details": usage.prompt_tokens_details.unwrap_or_default(),
                "output_tokens": usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens, "timings": usage.timings
            }))
        });
        if let Some(answer) = answer.as_object_mut() {
            answer.extend(self.repeated.clone());
        }
        answer
    }

    fn status(&self) -> &'static str {
        if self.reason == Some(FinishReason::Length) { "incomplete" } else { "completed" }
    }

    fn event(&mut self, kind: &str, mut data: Value, out: &mut String) {
        data["type"] = kind.into();
        data["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        out.push_str(&format!("event: {kind}\n{}", sse::frame(&data.to_string())));
    }

    fn text(&mut self, text: &str, out: &mut String) {
        let at = self.items.len();
        if self.open.is_none() {
            let open = OpenText { id: format!("msg_{}", random_hex()), text: String::new() };
            let (item, part, id) = (open.item("in_progress"), open.part(), open.id.clone());
            self.open = Some(open);
            self.event("response.output_item.added", json!({"output_index": at, "item": item}), out);
            let part = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part});
            self.event("response.content_part.added", part, out);
        }
        if let Some(open) = &mut self.open {
            open.text.push_str(text);
            let id = open.id.clone();
            let delta =
                json!({"item_id": id, "output_index": at, "content_index": 0, "delta": text, "logprobs": []});
            self.event("response.output_text.delta", delta, out);
        }
    }

    /// Ends the text item, if one is open; `status` is its last.
    fn close(&mut self, status: &str, out: &mut String) {
        let Some(open) = self.open.take() else { return };
        let at = self.items.len();
        let (id, part, item) = (&open.id, open.part(), open.item(status));
        let done = json!({
            "item_id": id, "output_index": at, "content_index": 0, "text": open.text, "logprobs": []
        });
        self.event("response.output_text.done", done, out);
        let done = json!({"item_id": id, "output_index": at, "content_index": 0, "part": part});
        self.event("response.content_part.done", done, out);
        self.event("response.output_item.done", json!({"output_index": at, "item": item}), out);
        self.items.push(item);
    }

    fn call(&mut self, call: &ToolCall, out: &mut String) {
        self.close("completed", out);
        let (at, id) = (self.items.len(), format!("fc_{}", random_hex()));
        let arguments = &call.function.arguments;
        let begun = call_item(&id, call, "", "in_progress");
        self.event("response.output_item.added", json!({"output_index": at, "item": begun}), out);
        let delta = json!({"item_id": id, "output_index": at, "delta": arguments});
        self.event("response.function_call_arguments.delta", delta, out);
        let done = json!({
            "item_id": id, "output_index": at, "arguments": arguments, "name": call.function.name
        });
        self.event("response.function_call_arguments.done", done, out);
        let item = call_item(&id, call, arguments, "completed");
        self.event("response.output_item.done", json!({"output_index": at, "item": item}), out);
        self.items.push(item);
    }
}

impl Writer for Responses {
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response {
        // What a stream would have said, less the events.
        let mut unsent = String::new();
        for choice in choices {
            for piece in choice.pieces {
                self.piece(0, piece, None, &mut unsent);
            }
            self.closing(0, choice.reason, None, &mut unsent);
            unsent.clear();
        }
        Json(self.answer(self.status(), Some(usage))).into_response()
    }

    fn opening(&mut self, out: &mut String) {
        for kind in ["response.created", "response.in_progress"] {
            let answer = self.answer("in_progress", None);
            self.event(kind, json!({"response": answer}), out);
        }
    }

    fn piece(&mut self, _index: u32, piece: Piece, _so_far: Option<Usage>, out: &mut String) {
        match piece.content {
            Content::Text(text) => self.text(&text, out),
            Content::Call(call) => self.call(&call.call, out),
        }
    }

    fn closing(&mut self, _index: u32, reason: FinishReason, _so_far: Option<Usage>, out: &mut String) {
        self.reason = Some(reason);
        if self.items.is_empty() && self.open.is_none() {
            // An answer without a word is a message all the same.
            self.text("", out);
        }
        self.close(self.status(), out);
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        let status = self.status();
        let answer = self.answer(status, Some(usage));
        self.event(&format!("response.{status}"), json!({"response": answer}), out);
    }

    fn failed(&mut self, err: &ApiError, out: &mut String) {
        let detail = err.body().error;
        let data = json!({"code": detail.code, "message": detail.message, "param": detail.param});
        self.event("error", data, out);
    }
}
