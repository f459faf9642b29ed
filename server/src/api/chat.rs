//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_engine::{ChatRequest as Turns, Engine, SpecialTokens, TokenLogprob as EngineLogprob};
use candela_wire::{
    openai::{
        ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage,
        ChatRequest, FinishReason, Message, TokenLogprob, ToolChoice, Tools, TopLogprob, Usage,
    },
    sse,
};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    answer::{self, Choice, Content, Head, Piece, Writer, event},
    error::ApiError,
    no_such_model,
    prepare::{self, Calls, Job, constraint, generate_request, held_to},
    tools::Notation,
};
use crate::{app::App, model::Served};

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (job, ()) = prepare::job(&app, request, parse).await?;
    let writer =
        Chat { head: Head::new("chatcmpl-", &job), n: job.n, include_usage: job.delivery.include_usage };
    answer::respond(&app, job, writer).await
}

fn parse(app: &App, served: &Served, body: &[u8]) -> Result<(Job, ()), ApiError> {
    let request = ChatRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    if !served.answers_to(&request.model) {
        return Err(no_such_model(&request.model, served));
    }
    let prompt = prompt_tokens(served, &request.messages, request.tools.as_ref(), "messages")?;
    let mut engine_request = generate_request(served, prompt, request.sampling, request.logprobs)?;
    let mut calls = None;
    if let Some(tools) = &request.tools {
        calls = calls_of(served, tools)?;
        let forced = calls.map(|calls| calls.notation.grammar(tools)).transpose()?.flatten();
        if let Some(grammar) = forced {
            engine_request.constraint = Some(constraint(served.engine()?, &grammar, "tools")?);
        }
    }
    if let Some(format) = &request.format {
        if calls.is_some() {
            let message = format!(
                "`{}` cannot be kept together with `tools`, since a call has a form of its own: set `tool_choice` to \
                 `none`",
                format.param
            );
            return Err(ApiError::invalid(format.param, message));
        }
        engine_request.constraint = Some(held_to(served.engine()?, format)?);
    }
    let job = Job {
        target: prepare::Target::of(served)?,
        arrived: Instant::now(),
        request: engine_request,
        n: request.n,
        calls,
        delivery: request.delivery,
    };
    Ok((job, ()))
}

/// A conversation as the model reads it; `param` is the field that it came from.
pub(super) fn prompt_tokens(
    served: &Served,
    messages: &[Message],
    tools: Option<&Tools>,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    prompt_tokens_of(served.engine()?, messages, tools, param)
}

pub(super) fn prompt_tokens_of(
    engine: &Engine,
    messages: &[Message],
    tools: Option<&Tools>,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let turns = Turns {
        messages: serde_json::to_value(messages).map_err(|err| ApiError::invalid(param, err.to_string()))?,
        tools: tools.map_or(Value::Null, Tools::for_template),
        add_generation_prompt: true,
        variables: serde_json::Map::new(),
    };
    let refuse = |err| ApiError::text(&err, param);
    let prompt = engine.render_chat(&turns).map_err(refuse)?;
    engine.encode(&prompt, SpecialTokens::AsWritten).map_err(refuse)
}

/// How calls are read from answers of this model; `None` = they are not.
pub(super) fn calls_of(served: &Served, tools: &Tools) -> Result<Option<Calls>, ApiError> {
    // A model without a template was refused with its messages.
    let notation = Notation::of(served.engine()?.tool_template().unwrap_or_default())?;
    let named = matches!(tools.choice, ToolChoice::Named(_));
    let first_only = named || !tools.parallel;
    Ok((tools.choice != ToolChoice::None).then_some(Calls { notation, first_only, named }))
}

/// Answers of this route.
pub(super) struct Chat {
    pub(super) head: Head,
    pub(super) n: u32,
    pub(super) include_usage: bool,
}

impl Writer for Chat {
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response {
        let choices =
            choices.into_iter().zip(0..).map(|(choice, index)| self.choice(index, choice)).collect();
        let head = &self.head;
        let answer = ChatCompletion {
            id: head.id.clone(),
            object: "chat.completion".to_owned(),
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: Some(head.fingerprint.clone()),
            choices,
            usage,
        };
        Json(answer).into_response()
    }

    fn opening(&mut self, out: &mut String) {
        for index in 0..self.n {
            let role = Some("assistant".to_owned());
            let delta = ChatDelta { role, content: Some(String::new()), ..ChatDelta::default() };
            self.chunk(Some(ChatChunkChoice { delta, ..of(index) }), None, out);
        }
    }

    fn piece(&mut self, index: u32, piece: Piece, so_far: Option<Usage>, out: &mut String) {
        let logprobs =
            piece.logprob.map(|value| ChatLogprobs { content: vec![logprob(value)], refusal: None });
        let delta = match piece.content {
            Content::Text(text) => ChatDelta { content: Some(text), ..ChatDelta::default() },
            Content::Call(call) => ChatDelta { tool_calls: vec![call], ..ChatDelta::default() },
        };
        self.chunk(Some(ChatChunkChoice { delta, logprobs, ..of(index) }), so_far, out);
    }

    fn closing(&mut self, index: u32, reason: FinishReason, so_far: Option<Usage>, out: &mut String) {
        self.chunk(Some(ChatChunkChoice { finish_reason: Some(reason), ..of(index) }), so_far, out);
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        if self.include_usage {
            self.chunk(None, Some(usage), out);
        }
        out.push_str(&sse::frame(sse::DONE));
    }

    fn failed(&mut self, err: &ApiError, out: &mut String) {
        out.push_str(&event(&err.body()));
    }
}

impl Chat {
    fn choice(&self, index: u32, choice: Choice) -> ChatChoice {
        let mut content = String::new();
        let (mut logprobs, mut tool_calls) = (Vec::new(), Vec::new());
        for piece in choice.pieces {
            match piece.content {
                Content::Text(text) => content.push_str(&text),
                Content::Call(call) => tool_calls.push(call.call),
            }
            logprobs.extend(piece.logprob.map(logprob));
        }
        let content = Some(content).filter(|content| tool_calls.is_empty() || !content.is_empty());
        ChatChoice {
            index,
            message: ChatMessage { role: "assistant".to_owned(), content, refusal: None, tool_calls },
            logprobs: self.head.logprobs.then_some(ChatLogprobs { content: logprobs, refusal: None }),
            finish_reason: choice.reason,
        }
    }

    fn chunk(&self, choice: Option<ChatChunkChoice>, usage: Option<Usage>, out: &mut String) {
        let head = &self.head;
        out.push_str(&event(&ChatChunk {
            id: head.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: Some(head.fingerprint.clone()),
            choices: choice.into_iter().collect(),
            usage,
        }));
    }
}

/// A chunk's choice without anything in it.
fn of(index: u32) -> ChatChunkChoice {
    ChatChunkChoice { index, delta: ChatDelta::default(), logprobs: None, finish_reason: None }
}

fn logprob(of: EngineLogprob) -> TokenLogprob {
    let top = of.top.into_iter().map(|top| TopLogprob {
        bytes: Some(top.bytes),
        token: top.token,
        logprob: finite(top.logprob),
    });
    TokenLogprob {
        top_logprobs: top.collect(),
        bytes: Some(of.bytes),
        logprob: finite(of.logprob),
        token: of.token,
    }
}

/// JSON has no infinities; OpenAI writes -9999 for "never".
pub(super) fn finite(logprob: f32) -> f64 {
    f64::from(logprob).max(-9999.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_tokens_has_an_empty_list_of_logprobs() {
        let logprobs = |logprobs| {
            let head = Head {
                id: String::new(),
                created: 0,
                model: "m".into(),
                fingerprint: String::new(),
                logprobs,
            };
            let chat = Chat { head, n: 1, include_usage: false };
            let choice = chat.choice(0, Choice { pieces: Vec::new(), reason: FinishReason::Stop });
            serde_json::to_value(choice).unwrap()["logprobs"].clone()
        };
        assert_eq!(logprobs(true)["content"], serde_json::json!([]));
        assert_eq!(logprobs(false), Value::Null);
    }
}
