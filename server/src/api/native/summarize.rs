//! `POST /summarize`: a text of any length, by summarising its parts side by side, then their summaries, until one
//! is left.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use candela_engine::{Finished, GenerateRequest, SpecialTokens};
use candela_wire::{
    config::Task,
    native::{SummarizeAnswer, SummarizeProgress, SummarizeRequest},
    openai::{FinishReason, Message, Sampling, Usage},
    sse,
};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{Problem, check_model, named, split::split};
use crate::{
    api::{
        answer::{event_stream, finish_reason},
        chat,
        error::ApiError,
        generation::{Generation, Next},
        prepare::{self, Target, generate_request, request_limit},
        random_hex,
    },
    app::App,
    model::Served,
    telemetry,
    trust::Caller,
};

/// Of the summary, where a request does not say.
const DEFAULT_MAX_TOKENS: u32 = 256;
/// Parts of one text; more would take longer than anybody waits.
const MAX_PARTS: usize = 256;
/// Parts in the engine at the same time: the queue is everybody's.
const SIDE_BY_SIDE: usize = 4;
/// A model that cannot hold so many tokens of text beside the question and a summary is of no use for this.
const LEAST_ROOM: usize = 32;
/// A text may become a few tokens more in the midst of a prompt than it is alone.
const SEAM: usize = 8;

pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Result<Response, Problem> {
    let arrived = Instant::now();
    let caller = Caller::of(&request);
    let (plan, prompts) = prepare::parsed_long(&app, request, Task::Generate, plan).await?;
    let streamed = plan.stream;
    let (report, receiver) = mpsc::channel(64);
    let deadline = arrived + caller.within(request_limit(&app));
    let (chunks, begun) = (prompts.len(), AtomicBool::new(false));
    let work = Work { app, plan: Arc::new(plan), caller, chunks, arrived, deadline, begun, report };
    let work = async move {
        let event = work.run(prompts).await.map(Event::Done);
        // Whoever would read it also polls this.
        let _ = work.report.send(event).await;
    };
    let mut events = Events { work: Some(Box::pin(telemetry::carried(work))), receiver };
    if !streamed {
        while let Some(event) = events.next().await {
            if let Event::Done(answer) = event? {
                return Ok(Json(answer).into_response());
            }
        }
        return Err(ApiError::ShuttingDown.into());
    }
    // What fails before the first event is an HTTP error.
    let first = events.next().await.transpose()?;
    let rest = stream::unfold(events, |mut events| async { Some((events.next().await?, events)) });
    let frames = stream::iter(first.map(Ok)).chain(rest).map(|event| {
        Ok::<_, Infallible>(match event {
            Ok(Event::Frame(frame)) => frame,
            Ok(Event::Done(answer)) => named("done", &answer),
            Err(err) => named("error", &err.problem()),
        })
    });
    Ok(event_stream(Body::from_stream(frames)))
}

/// What the work reports. An error or [`Event::Done`] comes last.
enum Event {
    Frame(String),
    Done(SummarizeAnswer),
}

/// Does the work while it is asked for its events; dropped with the connection.
struct Events {
    work: Option<BoxFuture<'static, ()>>,
    receiver: mpsc::Receiver<Result<Event, ApiError>>,
}

impl Events {
    async fn next(&mut self) -> Option<Result<Event, ApiError>> {
        loop {
            let work = async {
                match &mut self.work {
                    Some(work) => work.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.receiver.recv() => return event,
                () = work => self.work = None,
            }
        }
    }
}

/// How one text is summarised.
struct Plan {
    target: Target,
    instructions: Option<String>,
    /// Of a summary of parts: without what only the last one must keep to.
    of_parts: GenerateRequest,
    of_all: GenerateRequest,
    /// Tokens of text that fit into one prompt.
    room: usize,
    stream: bool,
}

fn plan(app: &App, served: &Served, body: &[u8]) -> Result<(Plan, Vec<Vec<u32>>), ApiError> {
    let request = SummarizeRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    check_model(served, request.model.as_deref())?;
    let context = served.engine()?.facts().context_length as usize;
    let instructions = request.instructions;
    let question = prompt(served.engine()?, instructions.as_deref(), "")?.len();
    let most = request.sampling.max_tokens;
    let most = most.unwrap_or_else(|| DEFAULT_MAX_TOKENS.min(context as u32 / 4).max(1));
    let taken = question + SEAM + most as usize;
    let room = context.saturating_sub(taken);
    if room < LEAST_ROOM {
        let message = format!(
            "`max_tokens`: the model's context holds {context} tokens, and the question takes {question}: ask for a \
             summary of at most {} tokens",
            context.saturating_sub(question + SEAM + LEAST_ROOM)
        );
        return Err(ApiError::invalid("max_tokens", message));
    }
    let wishes = Sampling { max_tokens: Some(most), ..request.sampling };
    let for_parts = Sampling {
        // Four of them fit into one prompt, so that each round leaves fewer.
        max_tokens: Some(most.min(room as u32 / 4)),
        stop: Vec::new(),
        min_tokens: 0,
        ignore_eos: false,
        ..wishes.clone()
    };
    // Their prompts come with the parts.
    let of_parts = generate_request(served, Vec::new(), for_parts, None)?;
    let of_all = generate_request(served, Vec::new(), wishes, None)?;
    let stream = request.stream;
    let plan = Plan { target: Target::of(served)?, instructions, of_parts, of_all, room, stream };
    let prompts = plan.prompts(&request.text)?;
    Ok((plan, prompts))
}

/// What the model is asked about `text`.
fn prompt(
    engine: &candela_engine::Engine,
    instructions: Option<&str>,
    text: &str,
) -> Result<Vec<u32>, ApiError> {
    let wishes = instructions.map(|wishes| format!(" {wishes}")).unwrap_or_default();
    if !engine.facts().has_chat_template {
        let prompt = format!("{text}\n\nA short summary of the text above.{wishes}\n\nSummary:");
        return engine.encode(&prompt, SpecialTokens::Add).map_err(|err| ApiError::text(&err, "text"));
    }
    let content = format!(
        "Summarize the following text. Keep names, numbers and decisions, and write nothing but the \
         summary.{wishes}\n\n{text}"
    );
    let turn = Message { role: "user", content, ..Message::default() };
    chat::prompt_tokens_of(engine, &[turn], None, "text")
}

impl Plan {
    /// Of the parts of `text`. CPU work.
    fn prompts(&self, text: &str) -> Result<Vec<Vec<u32>>, ApiError> {
        let engine = &self.target.engine;
        let mut n_parts = 0;
        let count = |text: &str| {
            n_parts += 1;
            // Each part is counted a few times before it fits.
            if n_parts > 4 * MAX_PARTS {
                return Err(too_long());
            }
            let tokens = engine.encode(text, SpecialTokens::AsWritten);
            tokens.map(|tokens| tokens.len()).map_err(|err| ApiError::text(&err, "text"))
        };
        let parts = split(text, self.room, count)?;
        if parts.len() > MAX_PARTS {
            return Err(too_long());
        }
        parts.iter().map(|part| prompt(engine, self.instructions.as_deref(), part)).collect()
    }
}

fn too_long() -> ApiError {
    let message = format!(
        "`text` has more than {MAX_PARTS} parts of what the model's context holds: send less, or use a model with a \
         longer context"
    );
    ApiError::invalid("text", message)
}

/// A text being summarised.
struct Work {
    app: Arc<App>,
    plan: Arc<Plan>,
    caller: Caller,
    /// Parts of the text.
    chunks: usize,
    arrived: Instant,
    deadline: Instant,
    /// The engine has admitted something of it.
    begun: AtomicBool,
    report: mpsc::Sender<Result<Event, ApiError>>,
}

impl Work {
    async fn run(&self, mut prompts: Vec<Vec<u32>>) -> Result<SummarizeAnswer, ApiError> {
        let mut round = 1;
        let mut usage = Usage::default();
        while prompts.len() > 1 {
            let total = prompts.len();
            let parts = stream::iter(prompts.into_iter().map(|prompt| self.part(prompt)));
            let mut parts = parts.buffered(SIDE_BY_SIDE);
            let mut summaries = Vec::new();
            while let Some((summary, finished)) = parts.try_next().await? {
                count(&mut usage, &finished);
                summaries.push(summary.trim().to_owned());
                self.progress(round, summaries.len(), total).await;
            }
            drop(parts);
            summaries.retain(|summary| !summary.is_empty());
            let plan = Arc::clone(&self.plan);
            let permit = Arc::clone(&self.app.tokenising).acquire_owned().await;
            let permit = permit.map_err(|_| ApiError::ShuttingDown)?;
            let work = move || {
                let _permit = permit;
                plan.prompts(&summaries.join("\n\n"))
            };
            // It ends without a result only if it panicked, and then so does the process.
            prompts = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::ShuttingDown)??;
            if prompts.len() >= total {
                let what = "the summaries of its parts are no shorter than the parts".to_owned();
                return Err(ApiError::Engine(what));
            }
            round += 1;
        }
        let mut answer = SummarizeAnswer {
            id: format!("sum-{}", random_hex()),
            model: self.plan.target.name.clone(),
            summary: String::new(),
            finish_reason: FinishReason::Stop,
            chunks: self.chunks,
            rounds: round,
            usage,
        };
        // None is left if the model had nothing to say of any part.
        if let Some(prompt) = prompts.pop() {
            let request = GenerateRequest { prompt_tokens: prompt, ..self.plan.of_all.clone() };
            let (summary, finished) = self.generate(request, Said::Reported).await?;
            count(&mut answer.usage, &finished);
            answer.summary = summary;
            answer.finish_reason = finish_reason(&finished);
        }
        Ok(answer)
    }

    async fn part(&self, prompt: Vec<u32>) -> Result<(String, Finished), ApiError> {
        let request = GenerateRequest { prompt_tokens: prompt, ..self.plan.of_parts.clone() };
        self.generate(request, Said::Kept).await
    }

    async fn generate(
        &self,
        mut request: GenerateRequest,
        said: Said,
    ) -> Result<(String, Finished), ApiError> {
        request.deadline = Some(self.deadline.into_std());
        request.salt = self.caller.salt;
        let mut generation = self.admitted(request).await?;
        let mut text = String::new();
        loop {
            let Ok(next) = timeout(self.app.limits.keep_alive, generation.next()).await else {
                self.tell(sse::KEEP_ALIVE.to_owned()).await;
                continue;
            };
            let (piece, finished) = match next.map_err(|err| self.of_the_whole(err))? {
                Next::Token(token) => (token.text, None),
                Next::Finished(finished) => (finished.text.clone(), Some(finished)),
            };
            text.push_str(&piece);
            if said == Said::Reported && !piece.is_empty() {
                self.tell(named("token", &json!({"text": piece}))).await;
            }
            if let Some(finished) = finished {
                return Ok((text, finished));
            }
        }
    }

    /// What ran out is the request's time, of which a part knows only what it was left.
    fn of_the_whole(&self, err: ApiError) -> ApiError {
        match err {
            ApiError::Deadline { .. } => ApiError::Deadline { limit: self.deadline - self.arrived },
            other => other,
        }
    }

    /// Once a part has been admitted, the others wait for room: the work done would be lost.
    async fn admitted(&self, request: GenerateRequest) -> Result<Generation, ApiError> {
        const WAIT: Duration = Duration::from_millis(250);
        loop {
            // Each part has its own time to its first token; the deadline is that of the whole.
            match Generation::begin(&self.app, &self.plan.target, request.clone(), Instant::now()) {
                Err(ApiError::QueueFull { .. })
                    if self.begun.load(Ordering::Relaxed) && Instant::now() + WAIT < self.deadline =>
                {
                    sleep(WAIT).await;
                }
                Ok(generation) => {
                    if !self.begun.swap(true, Ordering::Relaxed) {
                        self.progress(1, 0, self.chunks).await;
                    }
                    return Ok(generation);
                }
                Err(err) => return Err(err),
            }
        }
    }

    async fn progress(&self, round: usize, done: usize, total: usize) {
        self.tell(named("progress", &SummarizeProgress { round, done, total })).await;
    }

    async fn tell(&self, frame: String) {
        // Whoever would read it also polls this.
        let _ = self.report.send(Ok(Event::Frame(frame))).await;
    }
}

/// What becomes of the text of a generation while it grows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Kept,
    Reported,
}

fn count(usage: &mut Usage, finished: &Finished) {
    usage.prompt_tokens += u64::from(finished.usage.prompt_tokens);
    usage.completion_tokens += u64::from(finished.usage.completion_tokens);
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
}
