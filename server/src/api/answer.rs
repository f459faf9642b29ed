//! Turns generations into an HTTP answer, whole or streamed, in the words of a route.

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use candela_engine::{FinishReason as EngineReason, Finished, GenerateRequest, TokenLogprob};
use candela_wire::{
    openai::{CalledFunction, FinishReason, ToolCall, ToolCallDelta, Usage},
    sse,
};
use futures::stream;
use http::{HeaderValue, header};
use serde::Serialize;

use super::{
    choices::{Choices, Happened},
    error::ApiError,
    generation::Next,
    prepare::Job,
    random_hex,
    tools::{Notation, Parser, Part},
};
use crate::app::App;

/// What all parts of one answer repeat.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    /// Log-probabilities were asked for; an answer without tokens has an empty list of them.
    pub(crate) logprobs: bool,
}

impl Head {
    pub(crate) fn new(id_prefix: &str, job: &Job) -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            id: format!("{id_prefix}{}", random_hex()),
            created: since_epoch.map_or(0, |since| since.as_secs()),
            model: job.target.name.clone(),
            fingerprint: job.target.fingerprint.clone(),
            logprobs: job.request.logprobs.is_some(),
        }
    }
}

/// What became certain, and the token that made it so.
pub(crate) struct Piece {
    pub(crate) content: Content,
    pub(crate) logprob: Option<TokenLogprob>,
}

pub(crate) enum Content {
    Text(String),
    Call(ToolCallDelta),
}

impl Piece {
    pub(crate) fn text(&self) -> &str {
        match &self.content {
            Content::Text(text) => text,
            Content::Call(_) => "",
        }
    }
}

/// One of the answers, whole.
pub(crate) struct Choice {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) reason: FinishReason,
}

/// How a route writes its answers. Methods of a stream append frames to `out`; `so_far` is there if the client wants
/// the usage in every chunk.
pub(crate) trait Writer: Send + 'static {
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response;
    /// Before the first piece.
    fn opening(&mut self, out: &mut String);
    fn piece(&mut self, index: u32, piece: Piece, so_far: Option<Usage>, out: &mut String);
    /// After the last piece of one answer.
    fn closing(&mut self, index: u32, reason: FinishReason, so_far: Option<Usage>, out: &mut String);
    /// After all answers.
    fn end(&mut self, usage: Usage, out: &mut String);
    /// In the place of what was to come. A client must be able to tell a broken answer from a whole one.
    fn failed(&mut self, err: &ApiError, out: &mut String);
}

pub(crate) async fn respond<W: Writer>(
    app: &Arc<App>,
    job: Job,
    mut writer: W,
) -> Result<Response, ApiError> {
    if !job.delivery.stream {
        check_logprobs(&job)?;
    }
    let mut choices = Choices::begin(app, &job.target, &job.request, job.n, job.arrived)?;
    let mut voices: Vec<Voice> = (0..job.n).map(|_| Voice::new(&job)).collect();
    if !job.delivery.stream {
        let whole = whole(app, &mut choices, &mut voices).await?;
        return Ok(writer.whole(whole, choices.usage()));
    }
    // What fails before the first token is an HTTP error that a proxy may retry, not an event in a 200.
    let first = loop {
        match choices.next(app.limits.keep_alive).await? {
            Some(Happened::Silence) => {}
            first => break first,
        }
    };
    let streaming = Streaming {
        app: Arc::clone(app),
        choices: Some(choices),
        first,
        opened: false,
        continuous_usage: job.delivery.continuous_usage,
        voices,
        writer,
    };
    let events = stream::unfold(streaming, |mut streaming| async {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(bytes), streaming))
    });
    Ok(event_stream(Body::from_stream(events)))
}

/// An answer of server-sent events.
pub(crate) fn event_stream(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks nginx-like proxies not to collect the stream before passing it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Log-probabilities that an answer may have which is held until it is whole, a few hundred bytes each.
const MAX_HELD_LOGPROBS: u64 = 64 << 10;

fn check_logprobs(job: &Job) -> Result<(), ApiError> {
    held_logprobs(&job.request, job.target.engine.facts().context_length, job.n)
}

fn held_logprobs(request: &GenerateRequest, context_length: u32, n: u32) -> Result<(), ApiError> {
    let Some(top) = request.logprobs else { return Ok(()) };
    let room = u64::from(context_length).saturating_sub(request.prompt_tokens.len() as u64);
    let tokens = request.max_tokens.map_or(room, |most| room.min(most.into()));
    let each = (1 + u64::from(top)) * u64::from(n);
    if tokens * each <= MAX_HELD_LOGPROBS {
        return Ok(());
    }
    Err(ApiError::invalid(
        "logprobs",
        format!(
            "{n} answers of up to {tokens} tokens with {top} alternatives each would be held until they are whole: set \
             `stream: true`, or `max_tokens` of at most {}",
            MAX_HELD_LOGPROBS / each
        ),
    ))
}

async fn whole(app: &App, choices: &mut Choices, voices: &mut [Voice]) -> Result<Vec<Choice>, ApiError> {
    let mut whole: Vec<Choice> =
        voices.iter().map(|_| Choice { pieces: Vec::new(), reason: FinishReason::Stop }).collect();
    while let Some(happened) = choices.next(app.limits.keep_alive).await? {
        let Happened::Of(index, next) = happened else { continue };
        let (voice, choice) = (&mut voices[index as usize], &mut whole[index as usize]);
        match next {
            Next::Token(token) => choice.pieces.extend(voice.said(&token.text, token.logprob)),
            Next::Finished(finished) => {
                let (pieces, reason) = voice.finished(&finished);
                choice.pieces.extend(pieces);
                choice.reason = reason;
            }
        }
    }
    Ok(whole)
}

/// Makes pieces of what one generation says.
struct Voice {
    reading: Option<(Notation, Parser)>,
    /// An answer with calls says so when it ends. Not where the request named the function: OpenAI says `stop` then.
    calls_are_news: bool,
}

impl Voice {
    fn new(job: &Job) -> Self {
        let reading = job.calls.map(|calls| (calls.notation, Parser::new(calls.notation, calls.first_only)));
        Self { reading, calls_are_news: job.calls.is_some_and(|calls| !calls.named) }
    }

    fn said(&mut self, text: &str, mut logprob: Option<TokenLogprob>) -> Vec<Piece> {
        let n_before = self.n_calls();
        let parts = match &mut self.reading {
            None => vec![Part::Text(text.to_owned())],
            Some((_, parser)) => parser.push(text),
        };
        let mut pieces = self.pieces(n_before, parts);
        match pieces.first_mut() {
            Some(first) => first.logprob = logprob,
            // The text comes with a later token.
            None => pieces.extend(
                logprob
                    .take()
                    .map(|logprob| Piece { content: Content::Text(String::new()), logprob: Some(logprob) }),
            ),
        }
        // Nothing certain yet.
        pieces.retain(|piece| {
            piece.logprob.is_some() || !matches!(&piece.content, Content::Text(text) if text.is_empty())
        });
        pieces
    }

    fn finished(&mut self, finished: &Finished) -> (Vec<Piece>, FinishReason) {
        let mut pieces = self.said(&finished.text, None);
        let n_before = self.n_calls();
        let rest = self.reading.as_mut().map(|(_, parser)| parser.finish()).unwrap_or_default();
        pieces.extend(self.pieces(n_before, rest));
        let reason = match finish_reason(finished) {
            FinishReason::Stop if self.calls_are_news && self.n_calls() > 0 => FinishReason::ToolCalls,
            reason => reason,
        };
        (pieces, reason)
    }

    fn n_calls(&self) -> usize {
        self.reading.as_ref().map_or(0, |(_, parser)| parser.n_calls())
    }

    fn pieces(&self, n_calls: usize, parts: Vec<Part>) -> Vec<Piece> {
        let mut index = n_calls as u32;
        let content = |part| match part {
            Part::Text(text) => Content::Text(text),
            Part::Call { name, arguments } => {
                let notation = self.reading.as_ref().map_or(Notation::Hermes, |(notation, _)| *notation);
                let id = notation.call_id(&random_hex());
                let function = CalledFunction { name, arguments };
                let call = ToolCall { id, kind: "function".to_owned(), function };
                index += 1;
                Content::Call(ToolCallDelta { index: index - 1, call })
            }
        };
        parts.into_iter().map(content).map(|content| Piece { content, logprob: None }).collect()
    }
}

/// Of a generation that did not fail.
pub(crate) fn finish_reason(finished: &Finished) -> FinishReason {
    match finished.reason {
        EngineReason::Length => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

/// A stream under way. Dropped with the connection, and the generations with it.
struct Streaming<W> {
    app: Arc<App>,
    /// `None` once the last bytes are written.
    choices: Option<Choices>,
    first: Option<Happened>,
    opened: bool,
    continuous_usage: bool,
    voices: Vec<Voice>,
    writer: W,
}

impl<W: Writer> Streaming<W> {
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = String::new();
        if !std::mem::replace(&mut self.opened, true) {
            self.writer.opening(&mut out);
        }
        while out.is_empty() || self.first.is_some() {
            let choices = self.choices.as_mut()?;
            let happened = match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => choices.next(self.app.limits.keep_alive).await,
            };
            match happened {
                Ok(Some(Happened::Silence)) => out.push_str(sse::KEEP_ALIVE),
                Ok(Some(Happened::Of(index, next))) => {
                    let so_far = self.continuous_usage.then(|| choices.usage_of(index));
                    let voice = &mut self.voices[index as usize];
                    let (pieces, reason) = match next {
                        Next::Token(token) => (voice.said(&token.text, token.logprob), None),
                        Next::Finished(finished) => {
                            let (pieces, reason) = voice.finished(&finished);
                            (pieces, Some(reason))
                        }
                    };
                    for piece in pieces {
                        self.writer.piece(index, piece, so_far, &mut out);
                    }
                    if let Some(reason) = reason {
                        self.writer.closing(index, reason, so_far, &mut out);
                    }
                }
                Ok(None) => {
                    let usage = choices.usage();
                    self.choices = None;
                    self.writer.end(usage, &mut out);
                    break;
                }
                Err(err) => {
                    self.choices = None;
                    self.writer.failed(&err, &mut out);
                    break;
                }
            }
        }
        Some(Bytes::from(out))
    }
}

/// A frame with `chunk` as JSON.
pub(crate) fn event(chunk: &impl Serialize) -> String {
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
        assert!(held_logprobs(&request(None, None), 1 << 20, 8).is_ok());
        assert!(held_logprobs(&request(None, Some(20)), 1024, 1).is_ok());
        assert!(held_logprobs(&request(None, Some(20)), 32 << 10, 1).is_err());
        assert!(held_logprobs(&request(Some(3000), Some(20)), 32 << 10, 1).is_ok());
        assert!(held_logprobs(&request(Some(3000), Some(20)), 32 << 10, 2).is_err());
        assert!(held_logprobs(&request(Some(u32::MAX), Some(0)), 32 << 10, 1).is_ok());
    }
}
