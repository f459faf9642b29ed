//! Every refusal on the public listener, and the one function that maps it to HTTP.

use std::{error::Error, fmt, time::Duration};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use candela_engine::{SubmitError, TextError};
use candela_wire::{
    openai::{ErrorBody, ErrorDetail, ErrorKind, InvalidField},
    problem::Problem,
    trust::AUTHORIZATION,
};
use http::{HeaderValue, StatusCode, header};

use crate::trust::Refusal;

/// What went wrong; the text of each is public.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ApiError {
    Invalid(InvalidField),
    MediaType,
    BodyTooLarge {
        limit: usize,
    },
    BodyTooSlow {
        limit: Duration,
    },
    BodyBroken,
    NoRoute {
        path: String,
    },
    Method {
        allowed: &'static str,
    },
    NoSuchModel {
        asked: String,
        served: String,
    },
    /// The model is there, and does not answer.
    Unavailable {
        model: String,
        why: String,
        /// Asking again may help.
        passes: bool,
    },
    /// The model is there, and for something else.
    WrongTask {
        model: String,
        task: &'static str,
        does: String,
    },
    ContextLength {
        prompt_tokens: usize,
        max_tokens: u32,
        context_length: u32,
    },
    QueueFull {
        retry_after: Duration,
    },
    Loading {
        phase: &'static str,
    },
    ShuttingDown,
    Deadline {
        limit: Duration,
    },
    FirstToken {
        limit: Duration,
    },
    SlowReader,
    /// A token that is there and not good.
    GatewayToken(Refusal),
    /// What only the gateway may ask for.
    GatewayOnly {
        what: &'static str,
    },
    /// A header of the gateway's that cannot be.
    GatewayHeader {
        name: &'static str,
        what: String,
    },
    /// A fault of ours.
    Engine(String),
}

impl ApiError {
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid(InvalidField::value(param, message))
    }

    pub(crate) fn submit(err: SubmitError, max_tokens: Option<u32>) -> Self {
        match err {
            SubmitError::QueueFull { retry_after, .. } => Self::QueueFull { retry_after },
            SubmitError::PromptTooLong { prompt_tokens, context_length } => {
                let max_tokens = max_tokens.unwrap_or(0);
                Self::ContextLength { prompt_tokens, max_tokens, context_length }
            }
            SubmitError::Invalid { field, what } => {
                let param = if field == "prompt_tokens" { "prompt" } else { field };
                Self::invalid(param, format!("`{param}`: {what}"))
            }
            SubmitError::ShuttingDown => Self::ShuttingDown,
        }
    }

    /// `param` is the field that the text came from.
    pub(crate) fn text(err: &TextError, param: &str) -> Self {
        match err {
            TextError::Tokenizer(what) => Self::Engine(format!("the tokenizer failed: {what}")),
            TextError::TooLong { .. } | TextError::TooManyTokens { .. } => Self::Invalid(InvalidField {
                param: Some(param.to_owned()),
                message: err.to_string(),
                code: "context_length_exceeded",
            }),
            TextError::NoChatTemplate | TextError::ChatTemplate(_) => Self::invalid(param, err.to_string()),
        }
    }

    /// More tokens than the model takes.
    pub(crate) fn too_long(param: &str, err: &impl fmt::Display) -> Self {
        Self::Invalid(InvalidField {
            param: Some(param.to_owned()),
            message: err.to_string(),
            code: "context_length_exceeded",
        })
    }

    /// Status, OpenAI's type, our code.
    fn class(&self) -> (StatusCode, ErrorKind, &'static str) {
        use ErrorKind::{
            InvalidRequestError, RateLimitError, ServerError, ServiceUnavailableError, TimeoutError,
        };
        match self {
            Self::Invalid(field) => (StatusCode::BAD_REQUEST, InvalidRequestError, field.code),
            Self::MediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, InvalidRequestError, "unsupported_media_type")
            }
            Self::BodyTooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, InvalidRequestError, "request_too_large")
            }
            Self::BodyTooSlow { .. } => (StatusCode::REQUEST_TIMEOUT, TimeoutError, "request_body_timeout"),
            Self::BodyBroken => (StatusCode::BAD_REQUEST, InvalidRequestError, "request_body_broken"),
            Self::NoRoute { .. } => (StatusCode::NOT_FOUND, InvalidRequestError, "unknown_url"),
            Self::Method { .. } => {
                (StatusCode::METHOD_NOT_ALLOWED, InvalidRequestError, "method_not_allowed")
            }
            Self::NoSuchModel { .. } => (StatusCode::NOT_FOUND, InvalidRequestError, "model_not_found"),
            Self::WrongTask { .. } => (StatusCode::BAD_REQUEST, InvalidRequestError, "unsupported_task"),
            Self::ContextLength { .. } => {
                (StatusCode::BAD_REQUEST, InvalidRequestError, "context_length_exceeded")
            }
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, RateLimitError, "queue_full"),
            Self::Loading { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, ServiceUnavailableError, "model_loading")
            }
            Self::Unavailable { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, ServiceUnavailableError, "model_unavailable")
            }
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, ServiceUnavailableError, "shutting_down"),
            Self::Deadline { .. } => (StatusCode::GATEWAY_TIMEOUT, TimeoutError, "request_timeout"),
            Self::FirstToken { .. } => (StatusCode::GATEWAY_TIMEOUT, TimeoutError, "first_token_timeout"),
            Self::SlowReader => (StatusCode::REQUEST_TIMEOUT, TimeoutError, "client_too_slow"),
            Self::GatewayToken(_) => (StatusCode::UNAUTHORIZED, InvalidRequestError, "invalid_gateway_token"),
            Self::GatewayOnly { .. } => {
                (StatusCode::FORBIDDEN, InvalidRequestError, "gateway_token_required")
            }
            Self::GatewayHeader { .. } => (StatusCode::BAD_REQUEST, InvalidRequestError, "invalid_header"),
            Self::Engine(_) => (StatusCode::INTERNAL_SERVER_ERROR, ServerError, "engine_error"),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.class().0
    }

    pub(crate) fn body(&self) -> ErrorBody {
        let (_, kind, code) = self.class();
        let param = match self {
            Self::Invalid(field) => field.param.clone(),
            Self::NoSuchModel { .. } | Self::WrongTask { .. } | Self::Unavailable { .. } => {
                Some("model".to_owned())
            }
            Self::GatewayToken(_) | Self::GatewayOnly { .. } => Some(AUTHORIZATION.to_owned()),
            Self::GatewayHeader { name, .. } => Some((*name).to_owned()),
            _ => None,
        };
        ErrorBody {
            error: ErrorDetail { message: self.to_string(), kind, param, code: Some(code.to_owned()) },
        }
    }

    /// For routes that are not OpenAI's.
    pub(crate) fn problem(&self) -> Problem {
        let (status, ..) = self.class();
        let ErrorDetail { code, param, .. } = self.body().error;
        Problem { code, param, ..Problem::of_status(status, self.to_string()) }
    }

    /// When to come back, for errors that pass.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after } => Some(*retry_after),
            Self::Loading { .. } => Some(Duration::from_secs(5)),
            Self::Unavailable { passes: true, .. } => Some(Duration::from_secs(10)),
            Self::ShuttingDown => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the same request would only fail again, at the same cost. OpenAI's clients repeat every 408 and 5xx
    /// twice unless told not to.
    fn repeat_is_useless(&self) -> bool {
        matches!(
            self,
            Self::BodyTooSlow { .. }
                | Self::Deadline { .. }
                | Self::FirstToken { .. }
                | Self::SlowReader
                | Self::Engine(_)
                | Self::Unavailable { passes: false, .. }
        )
    }

    /// Whether unread bytes of the request may follow, so that the connection cannot be used again.
    fn leaves_body(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } | Self::BodyBroken | Self::MediaType
        )
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(field) => write!(out, "{field}"),
            Self::MediaType => write!(out, "send the body as `content-type: application/json`"),
            Self::BodyTooLarge { limit } => {
                write!(out, "the request body is larger than {limit} bytes: send less text")
            }
            Self::BodyTooSlow { limit } => {
                write!(out, "the request body did not arrive within {} s", limit.as_secs_f32())
            }
            Self::BodyBroken => write!(out, "the request body ended before its announced end"),
            Self::NoRoute { path } => {
                write!(out, "there is nothing at `{path}`: see /openapi.json for what there is")
            }
            Self::Method { allowed } => write!(out, "use {allowed} here"),
            Self::NoSuchModel { served, .. } if served.is_empty() => {
                write!(out, "this server has no model that answers now")
            }
            Self::NoSuchModel { asked, served } if asked.is_empty() => {
                write!(
                    out,
                    "no model is loaded that a request without `model` could mean: name one of `{served}`"
                )
            }
            Self::NoSuchModel { asked, served } => {
                write!(out, "the model `{asked}` does not exist here; this server serves `{served}`")
            }
            Self::Unavailable { model, why, .. } => {
                write!(out, "the model `{model}` does not answer now: {why}")
            }
            Self::WrongTask { model, task, does } => {
                write!(out, "the model `{model}` is for {does}, not for {task}: name another in `model`")
            }
            Self::ContextLength { prompt_tokens, max_tokens, context_length } => write!(
                out,
                "the model's context holds {context_length} tokens, but the prompt has {prompt_tokens} and \
                 {max_tokens} more are asked for: shorten the prompt or lower `max_tokens`"
            ),
            Self::QueueFull { retry_after } => {
                write!(
                    out,
                    "the server is busy and its queue is full: retry in {} s",
                    whole_seconds(*retry_after)
                )
            }
            Self::Loading { phase } => write!(out, "the model is not ready yet (phase {phase}): retry soon"),
            Self::ShuttingDown => write!(out, "the server is shutting down: retry, another one will answer"),
            Self::Deadline { limit } => write!(
                out,
                "the answer was not complete within {} s: lower `max_tokens` or raise the request timeout",
                limit.as_secs_f32()
            ),
            Self::FirstToken { limit } => {
                write!(out, "the first token did not come within {} s: retry later", limit.as_secs_f32())
            }
            Self::SlowReader => write!(out, "the stream was not read fast enough"),
            Self::GatewayToken(refusal) => write!(
                out,
                "the token in the header `{AUTHORIZATION}` {}: leave the header out, or send the gateway's own token",
                refusal.says()
            ),
            Self::GatewayOnly { what } => {
                write!(
                    out,
                    "only the gateway may {what} here: send its token in the header `{AUTHORIZATION}`"
                )
            }
            Self::GatewayHeader { name, what } => write!(out, "the header `{name}` {what}"),
            Self::Engine(what) => write!(out, "the server failed on this request: {what}"),
        }
    }
}

impl Error for ApiError {}

/// At least one: a client told to retry in 0 s retries at once.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, _) = self.class();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Self::Method { allowed } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        if let Self::GatewayToken(_) = self {
            let challenge = "Bearer realm=\"candela-data-plane\", error=\"invalid_token\"";
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.repeat_is_useless() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.leaves_body() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let response = ApiError::QueueFull { retry_after: Duration::from_millis(200) }.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
    }

    #[test]
    fn clients_repeat_what_may_pass_and_nothing_else() {
        let limit = Duration::from_secs(1);
        for useless in [
            ApiError::BodyTooSlow { limit },
            ApiError::Deadline { limit },
            ApiError::FirstToken { limit },
            ApiError::Engine("x".into()),
        ] {
            assert_eq!(useless.into_response().headers()["x-should-retry"], "false");
        }
        for passes in [ApiError::QueueFull { retry_after: limit }, ApiError::ShuttingDown] {
            assert!(!passes.into_response().headers().contains_key("x-should-retry"));
        }
    }

    #[test]
    fn the_body_is_what_openai_clients_read() {
        let err = ApiError::NoSuchModel { asked: "a".into(), served: "b".into() };
        let expected = serde_json::json!({"error": {
            "message": "the model `a` does not exist here; this server serves `b`",
            "type": "invalid_request_error", "param": "model", "code": "model_not_found"
        }});
        assert_eq!(serde_json::to_value(err.body()).unwrap(), expected);
    }
}
