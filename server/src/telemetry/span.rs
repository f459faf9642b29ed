//! The span of one request. It ends when the last of those who hold it lets go: the handler, or a stream's body.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use candela_engine::{GenerateRequest, Timings, Usage};
use http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, task_local, time::Instant};

use super::{
    context::{Context, random_id},
    otlp::{KeyValue, Kind, Span, Status, Value},
};

task_local! {
    /// Of the request whose handler runs here.
    static CURRENT: RequestSpan;
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct RequestSpan(Arc<Inner>);

struct Inner {
    data: Mutex<Data>,
    finished: mpsc::Sender<Span>,
    dropped: Counter,
}

struct Data {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<Context>,
    began: (SystemTime, Instant),
    method: Method,
    route: &'static str,
    status: Option<StatusCode>,
    /// What keeps a request from being answered well after its status was sent.
    failed: Option<&'static str>,
    model: Option<String>,
    attributes: Vec<KeyValue>,
    input_tokens: u64,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    reasons: Vec<&'static str>,
    /// Name, begin and length of what happened within.
    phases: Vec<(&'static str, Instant, Duration)>,
}

/// Spans of phases that one request may have: a text that is summarised in a thousand parts has the first ones.
const MAX_PHASES: usize = 48;

/// Runs a handler with its span at hand.
pub(crate) async fn scoped<F: Future>(span: Option<RequestSpan>, work: F) -> F::Output {
    match span {
        Some(span) => CURRENT.scope(span, work).await,
        None => work.await,
    }
}

/// Work that goes on after its handler has answered keeps the handler's span.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    scoped(current(), work)
}

/// The span of the request that is handled here, if it is recorded.
pub(crate) fn current() -> Option<RequestSpan> {
    CURRENT.try_with(Clone::clone).ok()
}

impl RequestSpan {
    pub(super) fn new(
        parent: Option<Context>,
        method: &Method,
        route: &'static str,
        finished: mpsc::Sender<Span>,
        dropped: Counter,
    ) -> Self {
        let data = Data {
            trace_id: parent.as_ref().map_or_else(random_id, |parent| parent.trace_id),
            span_id: random_id(),
            parent,
            began: (SystemTime::now(), Instant::now()),
            method: method.clone(),
            route,
            status: None,
            failed: None,
            model: None,
            attributes: Vec::new(),
            input_tokens: 0,
            cached_tokens: None,
            output_tokens: None,
            reasons: Vec::new(),
            phases: Vec::new(),
        };
        Self(Arc::new(Inner { data: Mutex::new(data), finished, dropped }))
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        self.0.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answered(&self, status: StatusCode) {
        self.data().status = Some(status);
    }

    /// A generation was admitted for it.
    pub(crate) fn admitted(&self, model: &str, request: &GenerateRequest) {
        let mut data = self.data();
        // With several answers or parts, what the first one says.
        if data.model.is_none() {
            data.model = Some(model.to_owned());
            data.input_tokens = request.prompt_tokens.len() as u64;
            data.output_tokens = Some(0);
            let sampling = &request.sampling;
            let mut add = |key: &str, value: Value| data.attributes.push(KeyValue::new(key, value));
            if let Some(most) = request.max_tokens {
                add("gen_ai.request.max_tokens", u64::from(most).into());
            }
            add("gen_ai.request.temperature", f64::from(sampling.temperature).into());
            add("gen_ai.request.top_p", f64::from(sampling.top_p).into());
        }
    }

    /// A generation ended for this reason; with what the engine says of it, if it came so far.
    pub(crate) fn generated(&self, reason: &'static str, of_engine: Option<(Usage, Timings)>) {
        let now = Instant::now();
        let mut data = self.data();
        data.reasons.push(reason);
        if !matches!(reason, "stop" | "length" | "client_gone") {
            data.failed = Some(reason);
        }
        let Some((usage, timings)) = of_engine else { return };
        let tokens = u64::from(usage.completion_tokens);
        data.output_tokens = Some(data.output_tokens.unwrap_or(0) + tokens);
        let cached = u64::from(usage.cached_tokens);
        data.cached_tokens = Some(data.cached_tokens.map_or(cached, |least| least.min(cached)));
        if data.phases.len() >= MAX_PHASES {
            return;
        }
        let mut at =
            now.checked_sub(timings.queue + timings.prefill + timings.decode).unwrap_or(data.began.1);
        for (name, took) in
            [("queue", timings.queue), ("prefill", timings.prefill), ("decode", timings.decode)]
        {
            data.phases.push((name, at, took));
            at += took;
        }
    }

    /// Texts were encoded for it.
    pub(crate) fn encoded(&self, model: &str, tokens: u64) {
        let mut data = self.data();
        data.model = Some(model.to_owned());
        data.input_tokens += tokens;
    }
}

/// What OpenTelemetry's conventions for generative AI call a route; `None` = it is none of that.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/v1/responses" => Some("chat"),
        "/v1/completions" | "/generate" | "/summarize" => Some("text_completion"),
        "/v1/embeddings" | "/embed" => Some("embeddings"),
        "/v1/rerank" | "/rerank" => Some("rerank"),
        "/token-classify" => Some("token_classification"),
        _ => None,
    }
}

impl Data {
    fn nanos(&self, at: Instant) -> u64 {
        let (began, clock) = self.began;
        let since_epoch = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let since = since_epoch + at.saturating_duration_since(clock);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The request's own span, then those of its phases.
    fn spans(&mut self) -> Vec<Span> {
        let end = self.nanos(Instant::now());
        let mut attributes = std::mem::take(&mut self.attributes);
        let mut add = |key: &str, value: Value| attributes.push(KeyValue::new(key, value));
        // Of methods that anybody may invent, OpenTelemetry's conventions want none.
        let known =
            matches!(self.method.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH");
        let method = if known { self.method.as_str() } else { "_OTHER" };
        add("http.request.method", method.into());
        add("http.route", self.route.into());
        if let Some(status) = self.status {
            add("http.response.status_code", u64::from(status.as_u16()).into());
        }
        let operation = operation(self.route);
        if let Some(operation) = operation {
            add("gen_ai.operation.name", operation.into());
            add("gen_ai.provider.name", "candela".into());
        }
        let mut name = match operation {
            Some(operation) => operation.to_owned(),
            None if known => format!("{method} {}", self.route),
            None => format!("HTTP {}", self.route),
        };
        if let Some(model) = &self.model {
            name = format!("{name} {model}");
            add("gen_ai.request.model", model.as_str().into());
            add("gen_ai.response.model", model.as_str().into());
            add("gen_ai.usage.input_tokens", self.input_tokens.into());
            if let Some(tokens) = self.output_tokens {
                add("gen_ai.usage.output_tokens", tokens.into());
            }
            if let Some(tokens) = self.cached_tokens {
                add("gen_ai.usage.cache_read.input_tokens", tokens.into());
            }
            if !self.reasons.is_empty() {
                add("gen_ai.response.finish_reasons", self.reasons.clone().into());
            }
        }
        let status = self.status.filter(|status| status.is_server_error());
        let error =
            self.failed.map(str::to_owned).or_else(|| status.map(|status| status.as_u16().to_string()));
        if let Some(error) = &error {
            add("error.type", error.as_str().into());
        }
        let flags = 1 | self.parent.as_ref().map_or(0, |_| REMOTE_PARENT);
        let (parent_span_id, trace_state) = match &self.parent {
            Some(parent) => (parent.span_id.to_vec(), parent.state.clone()),
            None => Default::default(),
        };
        let whole = Span {
            trace_id: self.trace_id.to_vec(),
            span_id: self.span_id.to_vec(),
            trace_state,
            parent_span_id,
            name,
            kind: Kind::Server.into(),
            start: self.nanos(self.began.1),
            end,
            attributes,
            status: error.map(|message| Status { message, code: Status::ERROR }),
            flags,
        };
        let phase = |(name, at, took): &(&'static str, Instant, Duration)| Span {
            trace_id: self.trace_id.to_vec(),
            span_id: random_id::<8>().to_vec(),
            parent_span_id: self.span_id.to_vec(),
            name: (*name).to_owned(),
            kind: Kind::Internal.into(),
            start: self.nanos(*at),
            end: self.nanos(*at + *took),
            flags: 1,
            ..Span::default()
        };
        let phases: Vec<Span> = self.phases.iter().map(phase).collect();
        std::iter::once(whole).chain(phases).collect()
    }
}

/// In a span's flags: it is known where the parent is, and it is in another process.
const REMOTE_PARENT: u32 = 0x300;

impl Drop for Inner {
    fn drop(&mut self) {
        let data = self.data.get_mut().unwrap_or_else(PoisonError::into_inner);
        for span in data.spans() {
            if self.finished.try_send(span).is_err() {
                self.dropped.inc();
            }
        }
    }
}
