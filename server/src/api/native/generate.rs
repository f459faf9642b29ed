//! `POST /generate`: text from a prompt or a conversation, without OpenAI's wrapping.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_wire::{
    native::{GenerateAnswer, GenerateRequest},
    openai::{Delivery, FinishReason, Usage},
};
use serde_json::json;
use tokio::time::Instant;

use super::{Problem, check_model, named, tokens};
use crate::{
    api::{
        answer::{self, Choice, Head, Piece, Writer},
        error::ApiError,
        prepare::{self, Job, Target, generate_request, held_to},
    },
    app::App,
    model::Served,
};

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let (job, ()) = prepare::job(&app, request, parse).await?;
    let writer = Native { head: Head::new("gen-", &job), text: String::new(), reason: FinishReason::Stop };
    Ok(answer::respond(&app, job, writer).await?)
}

pub(crate) fn parse(app: &App, served: &Served, body: &[u8]) -> Result<(Job, ()), ApiError> {
    let request = GenerateRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    check_model(served, request.model.as_deref())?;
    let tokens = tokens(served, request.input)?;
    let mut engine_request = generate_request(served, tokens, request.sampling, None)?;
    if let Some(format) = &request.format {
        engine_request.constraint = Some(held_to(served.engine()?, format)?);
    }
    let job = Job {
        target: Target::of(served)?,
        request: engine_request,
        n: 1,
        calls: None,
        delivery: Delivery { stream: request.stream, ..Delivery::default() },
        arrived: Instant::now(),
    };
    Ok((job, ()))
}

/// Events `token` with `text`, then `done` with the answer, or `error` with a problem.
struct Native {
    head: Head,
    text: String,
    reason: FinishReason,
}

impl Native {
    fn answer(&mut self, usage: Usage) -> GenerateAnswer {
        GenerateAnswer {
            id: self.head.id.clone(),
            model: self.head.model.clone(),
            text: std::mem::take(&mut self.text),
            finish_reason: self.reason,
            usage,
        }
    }
}

impl Writer for Native {
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response {
        for choice in choices {
            self.text.extend(choice.pieces.iter().map(Piece::text));
            self.reason = choice.reason;
        }
        Json(self.answer(usage)).into_response()
    }

    fn opening(&mut self, _out: &mut String) {}

    fn piece(&mut self, _index: u32, piece: Piece, _so_far: Option<Usage>, out: &mut String) {
        self.text.push_str(piece.text());
        out.push_str(&named("token", &json!({"text": piece.text()})));
    }

    fn closing(&mut self, _index: u32, reason: FinishReason, _so_far: Option<Usage>, _out: &mut String) {
        self.reason = reason;
    }

    fn end(&mut self, usage: Usage, out: &mut String) {
        let answer = self.answer(usage);
        out.push_str(&named("done", &answer));
    }

    fn failed(&mut self, err: &ApiError, out: &mut String) {
        out.push_str(&named("error", &err.problem()));
    }
}
