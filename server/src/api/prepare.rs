//! From a request's body to a job for the engine: bounded reading, then parsing and tokenising off the async
//! threads.

use std::{sync::Arc, time::Duration};

use axum::extract::Request;
use candela_engine::{
    Constraint, ConstraintError, Engine, GenerateRequest, Grammar, SamplingParams, Speculation,
};
use candela_wire::{
    config::Task,
    openai::{Delivery, Format, FormatKind, InvalidField, Logprobs, Sampling},
};
use tokio::time::{Instant, timeout_at};

use super::{body, error::ApiError, models, tools::Notation};
use crate::{
    app::App,
    model::Served,
    registry::{Chosen, Hold, Lease, name_in},
    trust::Caller,
};

/// The model that answers a request, found once and kept until the answer is whole.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) engine: Engine,
    pub(crate) name: String,
    /// For metrics.
    pub(crate) label: String,
    pub(crate) fingerprint: String,
    /// It is not unloaded before the last request has begun.
    _hold: Hold,
}

impl Target {
    pub(crate) fn of(served: &Served) -> Result<Self, ApiError> {
        let engine = served.engine()?.clone();
        Ok(Self {
            engine,
            name: served.name.clone(),
            label: served.label.clone(),
            fingerprint: served.fingerprint(),
            _hold: served.hold(),
        })
    }
}

/// What all requests for text come down to.
pub(crate) struct Job {
    pub(crate) target: Target,
    pub(crate) request: GenerateRequest,
    /// Answers wanted.
    pub(crate) n: u32,
    /// How calls of tools are read from an answer; `None` = it is text.
    pub(crate) calls: Option<Calls>,
    pub(crate) delivery: Delivery,
    /// When its head was read; every time limit counts from here.
    pub(crate) arrived: Instant,
}

#[derive(Clone, Copy)]
pub(crate) struct Calls {
    pub(crate) notation: Notation,
    /// Further calls of an answer are left out.
    pub(crate) first_only: bool,
    /// The request names the function.
    pub(crate) named: bool,
}

/// From a body to what a route makes of it; may block.
pub(crate) type Parse<T> = fn(&App, &Served, &[u8]) -> Result<T, ApiError>;

/// Reads the body, then lets `parse` turn it into a job on a blocking thread. `T` is what the route keeps of the request
/// for its answer.
pub(crate) async fn job<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    parse: Parse<(Job, T)>,
) -> Result<(Job, T), ApiError> {
    let arrived = Instant::now();
    let caller = Caller::of(&request);
    let (mut job, kept) = parsed(app, request, Task::Generate, parse).await?;
    job.arrived = arrived;
    job.request.deadline = Some((arrived + caller.within(request_limit(app))).into_std());
    job.request.salt = caller.salt;
    Ok((job, kept))
}

/// Reads the body, then runs `parse` on a blocking thread, of which a bounded number is busy so. A request that names no
/// model is for the first that does `task`.
pub(crate) async fn parsed<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    task: Task,
    parse: Parse<T>,
) -> Result<T, ApiError> {
    parsed_within(app, request, None, task, parse).await
}

/// The same for a route whose text may be longer than the model's context.
pub(crate) async fn parsed_long<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    task: Task,
    parse: Parse<T>,
) -> Result<T, ApiError> {
    parsed_within(app, request, Some(u32::MAX), task, parse).await
}

/// `tokens` bounds the bytes of the body, beside the limits that hold for all; `None` = the model's context.
async fn parsed_within<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    tokens: Option<u32>,
    task: Task,
    parse: Parse<T>,
) -> Result<T, ApiError> {
    // Before the body: nobody should upload megabytes to be told to come back.
    let context_length = models(app)?.longest_context();
    let clock = Clock::start(app, &request);
    let chosen = request.extensions().get::<Chosen>().cloned().unwrap_or_default();
    let (body, room) = body::read(app, tokens.unwrap_or(context_length), request).await?;
    let held = match models(app)?.loads_on_demand() {
        false => None,
        true => {
            let asked = body.clone();
            let name = off_thread(app, move |_| Ok(name_in(&asked))).await?;
            match name {
                Some(name) => demanded(app, &name, None, clock).await?,
                None => None,
            }
        }
    };
    let work = off_thread(app, move |app| {
        let _room = (room, held);
        body::check_values(&body, context_length)?;
        let served = models(app)?.asked(&body, task)?;
        chosen.set(&served);
        parse(app, &served, &body)
    });
    clock.bound(work).await
}

/// The time that a request has, from its head on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) arrived: Instant,
    pub(crate) limit: Duration,
}

impl Clock {
    pub(crate) fn start(app: &App, request: &Request) -> Self {
        Self { arrived: Instant::now(), limit: Caller::of(request).within(request_limit(app)) }
    }

    /// No longer than this.
    pub(crate) fn within(self, limit: Option<Duration>) -> Self {
        Self { limit: limit.map_or(self.limit, |limit| limit.min(self.limit)), ..self }
    }

    /// Ends what takes longer than there is time.
    pub(crate) async fn bound<T>(
        self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let ended = timeout_at(self.arrived + self.limit, work).await;
        ended.unwrap_or(Err(ApiError::Deadline { limit: self.limit }))
    }
}

/// Where requests may load models: this one, while the request has time.
pub(crate) async fn demanded(
    app: &App,
    name: &str,
    version: Option<u64>,
    clock: Clock,
) -> Result<Option<Lease>, ApiError> {
    let models = models(app)?;
    clock.bound(models.demanded(name, version)).await
}

/// Runs `work`, such as tokenising, on a blocking thread. Of what would wait for one, a bounded number may.
pub(crate) async fn off_thread<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Arc<App>) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let full = ApiError::QueueFull { retry_after: Duration::from_secs(1) };
    let preparing = Arc::clone(&app.preparing).try_acquire_owned().map_err(|_| full)?;
    let closed = |_| ApiError::ShuttingDown;
    let tokenising = Arc::clone(&app.tokenising).acquire_owned().await.map_err(closed)?;
    let app = Arc::clone(app);
    let work = move || {
        let _permits = (preparing, tokenising);
        work(&app)
    };
    // It ends without a result only if it panicked, and then so does the process.
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::ShuttingDown)?
}

/// Puts a tokenised prompt and the request's wishes together.
pub(crate) fn generate_request(
    served: &Served,
    prompt_tokens: Vec<u32>,
    wishes: Sampling,
    logprobs: Logprobs,
) -> Result<GenerateRequest, ApiError> {
    let context_length = served.engine()?.facts().context_length;
    let wanted = wishes.max_tokens.unwrap_or(1).max(wishes.min_tokens);
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
        min_p: number(wishes.min_p, defaults.min_p),
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
        ignore_eos: wishes.ignore_eos,
        min_tokens: wishes.min_tokens,
        constraint: None,
        speculation: wishes
            .speculation
            .map(|wish| Speculation { ngram: wish.ngram, max_draft: wish.max_draft }),
        ..GenerateRequest::default()
    })
}

/// What an answer of this form must be.
pub(crate) fn held_to(engine: &Engine, format: &Format) -> Result<Constraint, ApiError> {
    let grammar = match &format.kind {
        FormatKind::JsonObject => Grammar::json_object(),
        FormatKind::JsonSchema(schema) => Grammar::JsonSchema(schema.clone()),
        FormatKind::Regex(regex) => Grammar::Regex(regex.clone()),
        FormatKind::Choice(texts) => Grammar::Choice(texts.clone()),
        FormatKind::Grammar(text) => Grammar::Lark(text.clone()),
    };
    constraint(engine, &grammar, format.param)
}

/// `param` is the field that asked for it.
pub(crate) fn constraint(engine: &Engine, grammar: &Grammar, param: &str) -> Result<Constraint, ApiError> {
    engine.constraint(grammar).map_err(|err| match err {
        ConstraintError::Refused(_) | ConstraintError::TooLarge(_) => {
            ApiError::invalid(param, format!("`{param}` cannot be kept to: {err}"))
        }
        ConstraintError::Busy => ApiError::QueueFull { retry_after: Duration::from_secs(1) },
        ConstraintError::Model(_) => ApiError::Invalid(InvalidField::unsupported(param, err.to_string())),
    })
}

/// The server's own, for a whole request; a caller may have less.
pub(crate) fn request_limit(app: &App) -> Duration {
    app.config.timeouts.request_ms.map_or(app.limits.request, Duration::from_millis)
}
