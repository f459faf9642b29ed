//! Our own routes. Their errors are problem+json, and the events of their streams have names.

pub(super) mod generate;
mod split;
pub(super) mod summarize;
pub(super) mod tokenize;

use axum::response::{IntoResponse, Response};
use candela_wire::{native::Input, problem, sse};
use http::{HeaderValue, header};
use serde::Serialize;

use super::{chat, completions, error::ApiError, no_such_model};
use crate::model::Served;

/// An error in the words of these routes.
pub(crate) struct Problem(ApiError);

impl From<ApiError> for Problem {
    fn from(err: ApiError) -> Self {
        Self(err)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = axum::Json(self.0.problem());
        // With the headers that it has elsewhere.
        let mut response = self.0.into_response();
        let media_type = HeaderValue::from_static(problem::CONTENT_TYPE);
        *response.body_mut() = body.into_response().into_body();
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response
    }
}

/// `model` may be left out: it is the first one then, that of `spec.model`.
fn check_model(served: &Served, asked: Option<&str>) -> Result<(), ApiError> {
    match asked {
        Some(asked) if !served.answers_to(asked) => Err(no_such_model(asked, served)),
        _ => Ok(()),
    }
}

fn tokens(served: &Served, input: Input) -> Result<Vec<u32>, ApiError> {
    match input {
        Input::Prompt(prompt) => completions::prompt_tokens(served, prompt, "prompt"),
        Input::Messages(messages) => chat::prompt_tokens(served, &messages, None, "messages"),
    }
}

/// A named event with `data` as JSON.
fn named(event: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).expect("plain data with string keys serialises");
    format!("event: {event}\n{}", sse::frame(&data))
}
