//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use candela_engine::{ChatRequest as Turns, SpecialTokens, TokenLogprob as EngineLogprob};
use candela_wire::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs, ChatMessage,
    ChatRequest, FinishReason, TokenLogprob, TopLogprob, Usage,
};
use serde_json::Value;

use super::{
    answer::{self, Head, Piece, Shape},
    error::ApiError,
    no_such_model,
    prepare::{self, Job, generate_request},
};
use crate::{app::App, model::Served};

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let job = prepare::job(&app, request, parse).await?;
    answer::<Chat>(&app, job).await
}

async fn answer<S: Shape>(app: &Arc<App>, job: Job) -> Result<Response, ApiError> {
    answer::respond::<S>(app, job).await
}

fn parse(app: &App, served: &Served, body: &[u8]) -> Result<Job, ApiError> {
    let request = ChatRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    if request.model != served.name {
        return Err(no_such_model(&request.model, served));
    }
    let turns = Turns {
        messages: serde_json::to_value(&request.messages)
            .map_err(|err| ApiError::invalid("messages", err.to_string()))?,
        tools: Value::Null,
        add_generation_prompt: true,
        variables: serde_json::Map::new(),
    };
    let refuse = |err| ApiError::text(&err, "messages");
    let prompt = served.engine.render_chat(&turns).map_err(refuse)?;
    let tokens = served.engine.encode(&prompt, SpecialTokens::AsWritten).map_err(refuse)?;
    let request_usage = request.include_usage;
    let engine_request = generate_request(served, tokens, request.sampling, request.logprobs)?;
    Ok(Job {
        arrived: tokio::time::Instant::now(),
        request: engine_request,
        stream: request.stream,
        include_usage: request_usage,
    })
}

/// Answers of this route.
pub(super) struct Chat;

impl Shape for Chat {
    const ID_PREFIX: &'static str = "chatcmpl-";
    type Whole = ChatCompletion;
    type Chunk = ChatChunk;

    fn whole(head: &Head, pieces: Vec<Piece>, reason: FinishReason, usage: Usage) -> ChatCompletion {
        let mut content = String::new();
        let mut logprobs = Vec::new();
        for piece in pieces {
            content.push_str(&piece.text);
            logprobs.extend(piece.logprob.map(logprob));
        }
        let choice = ChatChoice {
            index: 0,
            message: ChatMessage { role: "assistant".to_owned(), content, refusal: None },
            logprobs: head.logprobs.then_some(ChatLogprobs { content: logprobs, refusal: None }),
            finish_reason: reason,
        };
        ChatCompletion {
            id: head.id.clone(),
            object: "chat.completion".to_owned(),
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: Some(head.fingerprint.clone()),
            choices: vec![choice],
            usage,
        }
    }

    fn opening(head: &Head) -> Option<ChatChunk> {
        let delta = ChatDelta { role: Some("assistant".to_owned()), content: Some(String::new()) };
        Some(chunk(head, vec![choice(delta, None, None)], None))
    }

    fn piece(head: &Head, piece: Piece, _offset: u64) -> ChatChunk {
        let logprobs =
            piece.logprob.map(|value| ChatLogprobs { content: vec![logprob(value)], refusal: None });
        let delta = ChatDelta { role: None, content: Some(piece.text) };
        chunk(head, vec![choice(delta, logprobs, None)], None)
    }

    fn closing(head: &Head, reason: FinishReason) -> ChatChunk {
        chunk(head, vec![choice(ChatDelta::default(), None, Some(reason))], None)
    }

    fn usage(head: &Head, usage: Usage) -> ChatChunk {
        chunk(head, Vec::new(), Some(usage))
    }
}

fn chunk(head: &Head, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
    ChatChunk {
        id: head.id.clone(),
        object: "chat.completion.chunk".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: Some(head.fingerprint.clone()),
        choices,
        usage,
    }
}

fn choice(
    delta: ChatDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<FinishReason>,
) -> ChatChunkChoice {
    ChatChunkChoice { index: 0, delta, logprobs, finish_reason }
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
