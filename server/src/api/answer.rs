//! Turns a generation into an HTTP answer, whole or streamed, in the shape of either route.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use candela_engine::{FinishReason as EngineReason, Finished, GenerateRequest, TokenLogprob};
use candela_wire::{
    openai::{FinishReason, Usage},
    sse,
};
use futures::stream;
use http::{HeaderValue, header};
use serde::Serialize;

use super::{
    error::ApiError,
    generation::{Generation, Next},
    prepare::Job,
    random_hex, served,
};
use crate::app::App;

/// What all parts of one answer repeat.
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    /// Log-probabilities were asked for; an answer without tokens has an empty list of them.
    pub(crate) logprobs: bool,
}

/// Text that became certain, and the token that made it so.
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) logprob: Option<TokenLogprob>,
}

/// How a route writes its answers.
pub(crate) trait Shape: 'static {
    const ID_PREFIX: &'static str;
    type Whole: Serialize;
    type Chunk: Serialize;

    fn whole(head: &Head, pieces: Vec<Piece>, reason: FinishReason, usage: Usage) -> Self::Whole;
    /// The chunk before the first token, if the route has one.
    fn opening(head: &Head) -> Option<Self::Chunk>;
    /// `offset` is the piece's place in the answer, in characters.
    fn piece(head: &Head, piece: Piece, offset: u64) -> Self::Chunk;
    fn closing(head: &Head, reason: FinishReason) -> Self::Chunk;
    fn usage(head: &Head, usage: Usage) -> Self::Chunk;
}

pub(crate) async fn respond<S: Shape>(app: &Arc<App>, job: Job) -> Result<Response, ApiError> {
    let served = served(app)?;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let head = Head {
        id: format!("{}{}", S::ID_PREFIX, random_hex()),
        created: since_epoch.map_or(0, |since| since.as_secs()),
        model: served.name.clone(),
        fingerprint: served.fingerprint(),
        logprobs: job.request.logprobs.is_some(),
    };
    if !job.stream {
        check_logprobs(&job.request, served.engine.facts().context_length)?;
    }
    let mut generation = Generation::begin(app, job.request, job.arrived)?;
    if !job.stream {
        return whole::<S>(app, &head, &mut generation).await;
    }
    // What fails before the first token is an HTTP error that a proxy may retry, not an event in a 200.
    let first = loop {
        match generation.next(app.limits.keep_alive).await? {
            Next::Silence => {}
            first => break first,
        }
    };
    let streaming = Streaming::<S> {
        app: Arc::clone(app),
        head,
        generation: Some(generation),
        first: Some(first),
        opened: false,
        include_usage: job.include_usage,
        offset: 0,
        shape: std::marker::PhantomData,
    };
    let body = Body::from_stream(stream::unfold(streaming, |mut streaming| async {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(bytes), streaming))
    }));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks nginx-like proxies not to collect the stream before passing it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Log-probabilities that an answer may have which is held until it is whole, a few hundred bytes each.
const MAX_HELD_LOGPROBS: u64 = 64 << 10;

fn check_logprobs(request: &GenerateRequest, context_length: u32) -> Result<(), ApiError> {
    let Some(top) = request.logprobs else { return Ok(()) };
    let room = u64::from(context_length).saturating_sub(request.prompt_tokens.len() as u64);
    let tokens = request.max_tokens.map_or(room, |most| room.min(most.into()));
    if tokens * (1 + u64::from(top)) <= MAX_HELD_LOGPROBS {
        return Ok(());
    }
    Err(ApiError::invalid(
        "logprobs",
        format!(
            "an answer of up to {tokens} tokens with {top} alternatives each would be held until it is whole: set \
             `stream: true`, or `max_tokens` of at most {}",
            MAX_HELD_LOGPROBS / (1 + u64::from(top))
        ),
    ))
}

async fn whole<S: Shape>(app: &App, head: &Head, generation: &mut Generation) -> Result<Response, ApiError> {
    let mut pieces = Vec::new();
    loop {
        match generation.next(app.limits.keep_alive).await? {
            Next::Silence => {}
            Next::Token(token) => pieces.push(Piece { text: token.text, logprob: token.logprob }),
            Next::Finished(finished) => {
                let (reason, usage) = (reason(&finished), usage(&finished));
                pieces.push(Piece { text: finished.text, logprob: None });
                return Ok(Json(S::whole(head, pieces, reason, usage)).into_response());
            }
        }
    }
}

fn reason(finished: &Finished) -> FinishReason {
    match finished.reason {
        EngineReason::Length => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

fn usage(finished: &Finished) -> Usage {
    let (prompt, completion) = (finished.usage.prompt_tokens, finished.usage.completion_tokens);
    Usage {
        prompt_tokens: prompt.into(),
        completion_tokens: completion.into(),
        total_tokens: u64::from(prompt) + u64::from(completion),
    }
}

/// A stream under way. Dropped with the connection, and the generation with it.
struct Streaming<S> {
    app: Arc<App>,
    head: Head,
    /// `None` once the last bytes are written.
    generation: Option<Generation>,
    first: Option<Next>,
    opened: bool,
    include_usage: bool,
    offset: u64,
    shape: std::marker::PhantomData<fn() -> S>,
}

impl<S: Shape> Streaming<S> {
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = String::new();
        if !std::mem::replace(&mut self.opened, true) {
            text.extend(S::opening(&self.head).map(|chunk| event(&chunk)));
        }
        while text.is_empty() || self.first.is_some() {
            let next = match self.first.take() {
                Some(first) => Ok(first),
                None => self.generation.as_mut()?.next(self.app.limits.keep_alive).await,
            };
            match next {
                Ok(Next::Silence) => text.push_str(sse::KEEP_ALIVE),
                Ok(Next::Token(token)) => {
                    // Nothing certain yet: the text comes with a later token.
                    if token.text.is_empty() && token.logprob.is_none() {
                        continue;
                    }
                    text.push_str(&self.piece(Piece { text: token.text, logprob: token.logprob }));
                }
                Ok(Next::Finished(finished)) => {
                    self.generation = None;
                    let (reason, usage) = (reason(&finished), usage(&finished));
                    if !finished.text.is_empty() {
                        text.push_str(&self.piece(Piece { text: finished.text, logprob: None }));
                    }
                    text.push_str(&event(&S::closing(&self.head, reason)));
                    if self.include_usage {
                        text.push_str(&event(&S::usage(&self.head, usage)));
                    }
                    text.push_str(&sse::frame(sse::DONE));
                }
                // No `[DONE]`: a client must be able to tell a broken answer from a whole one.
                Err(err) => {
                    self.generation = None;
                    text.push_str(&event(&err.body()));
                }
            }
        }
        Some(Bytes::from(text))
    }

    fn piece(&mut self, piece: Piece) -> String {
        let offset = self.offset;
        self.offset += piece.text.chars().count() as u64;
        event(&S::piece(&self.head, piece, offset))
    }
}

fn event(chunk: &impl Serialize) -> String {
    sse::frame(&serde_json::to_string(chunk).expect("plain data with string keys serialises"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_held_has_a_bounded_number_of_logprobs() {
        let request = |max_tokens, logprobs| GenerateRequest {
            prompt_tokens: vec![1; 100],
            max_tokens,
            logprobs,
            ..GenerateRequest::default()
        };
        assert!(check_logprobs(&request(None, None), 1 << 20).is_ok());
        assert!(check_logprobs(&request(None, Some(20)), 1024).is_ok());
        assert!(check_logprobs(&request(None, Some(20)), 32 << 10).is_err());
        assert!(check_logprobs(&request(Some(3000), Some(20)), 32 << 10).is_ok());
        assert!(check_logprobs(&request(Some(u32::MAX), Some(0)), 32 << 10).is_ok());
    }

    #[test]
    fn an_answer_without_tokens_has_an_empty_list_of_logprobs() {
        let whole = |logprobs| {
            let head = Head {
                id: String::new(),
                created: 0,
                model: "m".to_owned(),
                fingerprint: String::new(),
                logprobs,
            };
            let usage = Usage { prompt_tokens: 1, completion_tokens: 0, total_tokens: 1 };
            let answer = super::super::chat::Chat::whole(&head, Vec::new(), FinishReason::Stop, usage);
            serde_json::to_value(answer).unwrap()["choices"][0]["logprobs"].clone()
        };
        assert_eq!(whole(true)["content"], serde_json::json!([]));
        assert_eq!(whole(false), serde_json::Value::Null);
    }
}
