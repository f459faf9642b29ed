//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_engine::{SpecialTokens, TokenLogprob};
use candela_wire::{
    openai::{
        Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReason, Prompt, Usage,
    },
    sse,
};
use tokio::time::Instant;

use super::{
    answer::{self, Choice, Head, Piece, Writer, event},
    chat::finite,
    error::ApiError,
    no_such_model,
    prepare::{self, Job, generate_request, held_to},
};
use crate::{app::App, model::Served};

/// What OpenAI documents for requests that do not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (job, ()) = prepare::job(&app, request, parse).await?;
    let head = Head::new("cmpl-", &job);
    let offsets = vec![0; job.n as usize];
    let writer = Text { head, offsets, include_usage: job.delivery.include_usage };
    answer::respond(&app, job, writer).await
}

fn parse(app: &App, served: &Served, body: &[u8]) -> Result<(Job, ()), ApiError> {
    let mut request = CompletionRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    if !served.answers_to(&request.model) {
        return Err(no_such_model(&request.model, served));
    }
    let tokens = prompt_tokens(served, request.prompt, "prompt")?;
    if request.sampling.max_tokens.is_none() {
        let context_length = served.engine()?.facts().context_length;
        let room = context_length.saturating_sub(tokens.len().try_into().unwrap_or(u32::MAX));
        let wanted = DEFAULT_MAX_TOKENS.max(request.sampling.min_tokens);
        request.sampling.max_tokens = Some(wanted.min(room).max(request.sampling.min_tokens).max(1));
    }
    let mut engine_request = generate_request(served, tokens, request.sampling, request.logprobs)?;
    if let Some(format) = &request.format {
        engine_request.constraint = Some(held_to(served.engine()?, format)?);
    }
    let job = Job {
        target: prepare::Target::of(served)?,
        arrived: Instant::now(),
        request: engine_request,
        n: request.n,
        calls: None,
        delivery: request.delivery,
    };
    Ok((job, ()))
}

/// A text as the model reads it; `param` is the field that it came from.
pub(super) fn prompt_tokens(served: &Served, prompt: Prompt, param: &str) -> Result<Vec<u32>, ApiError> {
    let facts = served.engine()?.facts();
    let tokens = match prompt {
        Prompt::Text(text) => {
            let encoded = served.engine()?.encode(&text, SpecialTokens::Add);
            encoded.map_err(|err| ApiError::text(&err, param))?
        }
        Prompt::Tokens(tokens) => {
            if let Some(at) = tokens.iter().position(|id| *id >= facts.vocabulary_size) {
                let message = format!("`{param}[{at}]` is no token: ids are below {}", facts.vocabulary_size);
                return Err(ApiError::invalid(param, message));
            }
            tokens
        }
    };
    if tokens.is_empty() {
        let message = format!("`{param}` is empty, and this model has no token to begin a text with");
        return Err(ApiError::invalid(param, message));
    }
    Ok(tokens)
}

/// Answers of this route; chunks look like whole answers.
struct Text {
    head: Head,
    /// Characters of each answer that are written.
    offsets: Vec<u64>,
    include_usage: bool,
}

impl Writer for Text {
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response {
        let one = |(whole, index): (Choice, u32)| {
            let mut text = String::new();
            let mut offset = 0;
            let mut logprobs = self.head.logprobs.then(CompletionLogprobs::default);
            for piece in whole.pieces {
                text.push_str(piece.text());
                let n = piece.text().chars().count() as u64;
                if let Some(value) = piece.logprob {
                    push(logprobs.get_or_insert_default(), value, offset);
                }
                offset += n;
            }
            CompletionChoice { index, text, logprobs, finish_reason: Some(whole.reason) }
        };
        let choices = choices.into_iter().zip(0..).map(one).collect();
        Json(self.completion(choices, Some(usage))).into_response()
    }

    fn opening(&mut self, _out: &mut String) {}

    fn piece(&mut self, index: u32, piece: Piece, so_far: Option<Usage>, out: &mut String) {
        let text = piece.text().to_owned();
        let offset = &mut self.offsets[index as usize];
        let logprobs = piece.logprob.map(|value| {
            let mut logprobs = CompletionLogprobs::default();
            push(&mut logprobs, value, *offset);
            logprobs
        });
        *offset += text.chars().count() as u64;
        let choice = CompletionChoice { index, text, logprobs, finish_reason: None };
        out.push_str(&event(&self.completion(vec![choice], so_far)));
    }

    fn closing(&mut self, index: u32, reason: FinishReason, so_far: Option<Usage>, out: &mut String) {
        let text = String::new();
        let choice = CompletionChoice { index, text, logprobs: None, finish_reason: Some(reason) };
        out.push_str(&event(&self.completion(vec![choice], so_far)));
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        if self.include_usage {
            out.push_str(&event(&self.completion(Vec::new(), Some(usage))));
        }
        out.push_str(&sse::frame(sse::DONE));
    }

    fn failed(&mut self, err: &ApiError, out: &mut String) {
        out.push_str(&event(&err.body()));
    }
}

impl Text {
    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        let head = &self.head;
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
}

fn push(logprobs: &mut CompletionLogprobs, of: TokenLogprob, offset: u64) {
    let top = of.top.into_iter().map(|top| (top.token, finite(top.logprob)));
    logprobs.top_logprobs.push(top.collect());
    logprobs.tokens.push(of.token);
    logprobs.token_logprobs.push(finite(of.logprob));
    logprobs.text_offset.push(offset);
}
