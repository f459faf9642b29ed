//! From a request's body to a job for the engine: bounded reading, then parsing and tokenising off the async
//! threads.

use std::{sync::Arc, time::Duration};

use axum::extract::Request;
use candela_engine::{GenerateRequest, SamplingParams};
use candela_wire::openai::{Logprobs, Sampling};

use tokio::time::Instant;

use super::{body, error::ApiError, served};
use crate::{app::App, model::Served};

/// What both kinds of request come down to.
pub(crate) struct Job {
    pub(crate) request: GenerateRequest,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// When its head was read; every time limit counts from here.
    pub(crate) arrived: Instant,
}

/// Reads the body, then lets `parse` turn it into a job on a blocking thread.
pub(crate) async fn job(
    app: &Arc<App>,
    request: Request,
    parse: fn(&App, &Served, &[u8]) -> Result<Job, ApiError>,
) -> Result<Job, ApiError> {
    let arrived = Instant::now();
    // Before the body: nobody should upload megabytes to be told to come back.
    let context_length = served(app)?.engine.facts().context_length;
    let (body, room) = body::read(app, context_length, request).await?;
    let full = ApiError::QueueFull { retry_after: Duration::from_secs(1) };
    let preparing = Arc::clone(&app.preparing).try_acquire_owned().map_err(|_| full)?;
    let closed = |_| ApiError::ShuttingDown;
    let tokenising = Arc::clone(&app.tokenising).acquire_owned().await.map_err(closed)?;
    let limit = request_limit(app);
    let app = Arc::clone(app);
    let work = move || {
        let _permits = (preparing, tokenising, room);
        body::check_values(&body, context_length)?;
        parse(&app, served(&app)?, &body)
    };
    // It ends without a result only if it panicked, and then so does the process.
    let mut job = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::ShuttingDown)??;
    job.arrived = arrived;
    job.request.deadline = Some((arrived + limit).into_std());
    Ok(job)
}

/// Puts a tokenised prompt and the request's wishes together.
pub(crate) fn generate_request(
    served: &Served,
    prompt_tokens: Vec<u32>,
    wishes: Sampling,
    logprobs: Logprobs,
) -> Result<GenerateRequest, ApiError> {
    let context_length = served.engine.facts().context_length;
    let wanted = wishes.max_tokens.unwrap_or(1);
    if prompt_tokens.len() as u64 + u64::from(wanted) > u64::from(context_length) {
        let max_tokens = wanted;
        return Err(ApiError::ContextLength {
            prompt_tokens: prompt_tokens.len(),
            max_tokens,
            context_length,
        });
    }
    let defaults = &served.defaults;
    let number = |wish: Option<f64>, default: f32| wish.map_or(default, |wish| wish as f32);
    let sampling = SamplingParams {
        temperature: number(wishes.temperature, defaults.temperature),
        // OpenAI allows 0, which can only mean "the likeliest".
        top_p: number(wishes.top_p, defaults.top_p).max(1e-6),
        top_k: wishes.top_k.unwrap_or(defaults.top_k),
        min_p: defaults.min_p,
        // Any integer is a seed; which one does not matter.
        seed: wishes.seed.map(|seed| seed as u64),
        presence_penalty: number(wishes.presence_penalty, defaults.presence_penalty),
        frequency_penalty: number(wishes.frequency_penalty, defaults.frequency_penalty),
        repetition_penalty: number(wishes.repetition_penalty, defaults.repetition_penalty),
        logit_bias: wishes.logit_bias,
    };
    Ok(GenerateRequest {
        prompt_tokens,
        sampling,
        max_tokens: wishes.max_tokens,
        stop: wishes.stop,
        // Set by [`job`], from the arrival.
        deadline: None,
        logprobs: logprobs.map(u32::from),
        ignore_eos: false,
    })
}

pub(crate) fn request_limit(app: &App) -> Duration {
    app.config.timeouts.request_ms.map_or(app.limits.request, Duration::from_millis)
}
