//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use candela_engine::{SpecialTokens, TokenLogprob};
use candela_wire::openai::{
    Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReason, Prompt, Usage,
};

use super::{
    answer::{self, Head, Piece, Shape},
    chat::finite,
    error::ApiError,
    no_such_model,
    prepare::{self, Job, generate_request},
};
use crate::{app::App, model::Served};

/// What OpenAI documents for requests that do not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let job = prepare::job(&app, request, parse).await?;
    answer::respond::<Text>(&app, job).await
}

fn parse(app: &App, served: &Served, body: &[u8]) -> Result<Job, ApiError> {
    let mut request = CompletionRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    if request.model != served.name {
        return Err(no_such_model(&request.model, served));
    }
    let facts = served.engine.facts();
    let tokens = match request.prompt {
        Prompt::Text(text) => {
            let encoded = served.engine.encode(&text, SpecialTokens::Add);
            encoded.map_err(|err| ApiError::text(&err, "prompt"))?
        }
        Prompt::Tokens(tokens) => {
            if let Some(at) = tokens.iter().position(|id| *id >= facts.vocabulary_size) {
                let message = format!("`prompt[{at}]` is no token: ids are below {}", facts.vocabulary_size);
                return Err(ApiError::invalid("prompt", message));
            }
            tokens
        }
    };
    if tokens.is_empty() {
        let message = "`prompt` is empty, and this model has no token to begin a text with";
        return Err(ApiError::invalid("prompt", message));
    }
    if request.sampling.max_tokens.is_none() {
        let room = facts.context_length.saturating_sub(tokens.len().try_into().unwrap_or(u32::MAX));
        request.sampling.max_tokens = Some(DEFAULT_MAX_TOKENS.min(room).max(1));
    }
    let engine_request = generate_request(served, tokens, request.sampling, request.logprobs)?;
    Ok(Job {
        arrived: tokio::time::Instant::now(),
        request: engine_request,
        stream: request.stream,
        include_usage: request.include_usage,
    })
}

/// Answers of this route; chunks look like whole answers.
struct Text;

impl Shape for Text {
    const ID_PREFIX: &'static str = "cmpl-";
    type Whole = Completion;
    type Chunk = Completion;

    fn whole(head: &Head, pieces: Vec<Piece>, reason: FinishReason, usage: Usage) -> Completion {
        let mut text = String::new();
        let mut offset = 0;
        let mut logprobs = head.logprobs.then(CompletionLogprobs::default);
        for piece in pieces {
            if let Some(value) = piece.logprob {
                push(logprobs.get_or_insert_default(), value, offset);
            }
            offset += piece.text.chars().count() as u64;
            text.push_str(&piece.text);
        }
        completion(head, vec![choice(text, logprobs, Some(reason))], Some(usage))
    }

    fn opening(_head: &Head) -> Option<Completion> {
        None
    }

    fn piece(head: &Head, piece: Piece, offset: u64) -> Completion {
        let logprobs = piece.logprob.map(|value| {
            let mut logprobs = CompletionLogprobs::default();
            push(&mut logprobs, value, offset);
            logprobs
        });
        completion(head, vec![choice(piece.text, logprobs, None)], None)
    }

    fn closing(head: &Head, reason: FinishReason) -> Completion {
        completion(head, vec![choice(String::new(), None, Some(reason))], None)
    }

    fn usage(head: &Head, usage: Usage) -> Completion {
        completion(head, Vec::new(), Some(usage))
    }
}

fn completion(head: &Head, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
    Completion {
        id: head.id.clone(),
        object: "text_completion".to_owned(),
        created: head.created,
        model: head.model.clone(),
        system_fingerprint: Some(head.fingerprint.clone()),
        choices,
        usage,
    }
}

fn choice(
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<FinishReason>,
) -> CompletionChoice {
    CompletionChoice { index: 0, text, logprobs, finish_reason }
}

fn push(logprobs: &mut CompletionLogprobs, of: TokenLogprob, offset: u64) {
    let top = of.top.into_iter().map(|top| (top.token, finite(top.logprob)));
    logprobs.top_logprobs.push(top.collect());
    logprobs.tokens.push(of.token);
    logprobs.token_logprobs.push(finite(of.logprob));
    logprobs.text_offset.push(offset);
}
