//! `POST /v1/embeddings`, `POST /v1/rerank` and `/rerank`, and `POST /embed`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use candela_engine::{CancelToken, Encoded, EncoderEngine, EncoderSubmitError, Input, Output};
use candela_wire::{
    config::Task,
    encoders::{
        EmbedAnswer, Embedding, Embeddings, EmbeddingsRequest, EncoderInput, EncoderUsage, Ranked,
        RankedText, Ranking, RerankRequest, Vector,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, timeout_at},
};

use super::{error::ApiError, native::Problem, no_such_model, prepare, random_hex};
use crate::{app::App, lifecycle::Stage, model::Served, registry::Hold, telemetry, trust::Caller};

/// Texts that are tokenised, and for whom.
pub(crate) struct Job<T> {
    pub(crate) engine: EncoderEngine,
    pub(crate) model: String,
    /// For metrics.
    pub(crate) label: String,
    pub(crate) inputs: Vec<Input>,
    pub(crate) wishes: T,
    /// It is not unloaded before the request has begun.
    pub(super) _hold: Hold,
    /// For what is kept of the body until the answer.
    pub(super) kept: Option<OwnedSemaphorePermit>,
}

pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Embeddings>, ApiError> {
    let (job, vectors, usage) = embedded(&app, request).await?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: match job.base64 {
            false => Vector::Numbers(vector),
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        },
    });
    let model = job.model.unwrap_or_default();
    Ok(Json(Embeddings { object: "list", data: data.collect(), model, usage }))
}

pub(crate) async fn embed(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<EmbedAnswer>, Problem> {
    let (job, embeddings, usage) = embedded(&app, request).await?;
    Ok(Json(EmbedAnswer { model: job.model.unwrap_or_default(), embeddings, usage }))
}

/// The request with the model's own name in it, its vectors, and what they cost.
async fn embedded(
    app: &Arc<App>,
    request: Request,
) -> Result<(EmbeddingsRequest, Vec<Vec<f32>>, EncoderUsage), ApiError> {
    let (arrived, caller) = (Instant::now(), Caller::of(&request));
    let Job { engine, model, label, inputs, mut wishes, _hold, kept: _kept } =
        prepare::parsed_long(app, request, Task::Embed, embeddings_job).await?;
    let limit = caller.within(prepare::request_limit(app));
    let (outputs, usage) = computed(app, &label, &engine, inputs, arrived, limit).await?;
    wishes.model = Some(model);
    let vectors = outputs.into_iter().filter_map(|output| match output {
        Output::Embedding(vector) => Some(shortened(vector, wishes.dimensions)),
        _ => None,
    });
    let vectors = vectors.collect();
    Ok((wishes, vectors, usage))
}

pub(crate) async fn rerank(State(app): State<Arc<App>>, request: Request) -> Result<Json<Ranking>, ApiError> {
    ranked(&app, request).await.map(Json)
}

pub(crate) async fn rerank_native(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Ranking>, Problem> {
    Ok(Json(ranked(&app, request).await?))
}

async fn ranked(app: &Arc<App>, request: Request) -> Result<Ranking, ApiError> {
    let (arrived, caller) = (Instant::now(), Caller::of(&request));
    let Job { engine, model, label, inputs, wishes, _hold, kept: _kept } =
        prepare::parsed_long(app, request, Task::Rerank, rerank_job).await?;
    let limit = caller.within(prepare::request_limit(app));
    let (outputs, usage) = computed(app, &label, &engine, inputs, arrived, limit).await?;
    let RerankRequest { mut documents, top_n, return_documents, raw_scores, .. } = wishes;
    let mut results: Vec<Ranked> = outputs
        .iter()
        .enumerate()
        .filter_map(|(index, output)| match output {
            Output::Score(score) => {
                let relevance_score = if raw_scores { *score } else { relevance(*score) };
                Some(Ranked { index, relevance_score, document: None })
            }
            _ => None,
        })
        .collect();
    // A stable sort: equal scores stay in the request's order.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(top_n.unwrap_or(usize::MAX));
    if return_documents {
        for result in &mut results {
            let text = std::mem::take(&mut documents[result.index]);
            result.document = Some(RankedText { text });
        }
    }
    Ok(Ranking { id: format!("rerank-{}", random_hex()), model, results, usage })
}

/// A score on a scale from 0 to 1.
pub(crate) fn relevance(score: f32) -> f32 {
    1.0 / (1.0 + (-score).exp())
}

pub(super) fn check_model(served: &Served, asked: Option<&String>) -> Result<(), ApiError> {
    match asked {
        Some(asked) if !served.answers_to(asked) => Err(no_such_model(asked, served)),
        _ => Ok(()),
    }
}

pub(crate) fn embeddings_job(
    app: &App,
    served: &Served,
    body: &[u8],
) -> Result<Job<EmbeddingsRequest>, ApiError> {
    let mut wishes = EmbeddingsRequest::parse(body, &app.limits.shape).map_err(ApiError::Invalid)?;
    check_model(served, wishes.model.as_ref())?;
    let engine = served.encoder(Task::Embed)?;
    let dimensions = engine.limits().dimensions;
    if wishes.dimensions.is_some_and(|n| n > dimensions) {
        let message = format!("`dimensions` is more than the {dimensions} that the model's vectors have");
        return Err(ApiError::invalid("dimensions", message));
    }
    let truncate = wishes.truncate;
    let input = |(at, input)| match input {
        EncoderInput::Text(text) => {
            let param = format!("input[{at}]");
            engine.encode(&text, truncate).map_err(|err| ApiError::text(&err, &param))
        }
        EncoderInput::Tokens(ids) => Ok(engine.from_ids(ids)),
    };
    let inputs = std::mem::take(&mut wishes.inputs).into_iter().enumerate().map(input);
    let inputs = bounded(engine, inputs, "input")?;
    Ok(Job {
        engine: engine.clone(),
        model: served.name.clone(),
        label: served.label.clone(),
        inputs,
        wishes,
        _hold: served.hold(),
        kept: None,
    })
}

pub(crate) fn rerank_job(app: &App, served: &Served, body: &[u8]) -> Result<Job<RerankRequest>, ApiError> {
    let mut wishes = RerankRequest::parse(body).map_err(ApiError::Invalid)?;
    check_model(served, wishes.model.as_ref())?;
    let engine = served.encoder(Task::Rerank)?;
    let most = wishes.max_tokens_per_doc.unwrap_or(usize::MAX);
    let pairs = engine.pairs(&wishes.query, wishes.truncate).map_err(|err| ApiError::text(&err, "query"))?;
    let pair = |(at, document): (usize, &String)| {
        pairs.with(document, most).map_err(|err| ApiError::text(&err, &format!("documents[{at}]")))
    };
    let inputs = bounded(engine, wishes.documents.iter().enumerate().map(pair), "documents")?;
    let kept = if wishes.return_documents {
        // They wait with the request, and count as bodies do.
        let full = ApiError::QueueFull { retry_after: Duration::from_secs(1) };
        Some(app.bodies.take(wishes.documents.iter().map(String::len).sum()).ok_or(full)?)
    } else {
        wishes.documents = Vec::new();
        None
    };
    Ok(Job {
        engine: engine.clone(),
        model: served.name.clone(),
        label: served.label.clone(),
        inputs,
        wishes,
        _hold: served.hold(),
        kept,
    })
}

/// All inputs, or what is wrong with the first that cannot be used. Ends early where they are too many tokens.
pub(super) fn bounded(
    engine: &EncoderEngine,
    inputs: impl Iterator<Item = Result<Input, ApiError>>,
    param: &str,
) -> Result<Vec<Input>, ApiError> {
    let most = engine.limits().max_request_tokens;
    let mut tokens = 0;
    let counted = inputs.map(|input| {
        let input = input?;
        tokens += input.n_tokens();
        if tokens > most {
            return Err(ApiError::too_long(param, &EncoderSubmitError::TooMany { tokens, most }));
        }
        Ok(input)
    });
    counted.collect()
}

/// Cancels when the client leaves.
struct Cancels(CancelToken);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

pub(crate) async fn computed(
    app: &App,
    model: &str,
    engine: &EncoderEngine,
    inputs: Vec<Input>,
    arrived: Instant,
    limit: Duration,
) -> Result<(Vec<Output>, EncoderUsage), ApiError> {
    let _in_flight = app.lifecycle.begin();
    let tokens: u64 = inputs.iter().map(|input| input.n_tokens() as u64).sum();
    let deadline = arrived + limit;
    let (sender, receiver) = oneshot::channel();
    let results = Box::new(move |how| drop(sender.send(how)));
    let cancel = engine.submit(inputs, Some(deadline.into_std()), results).map_err(|err| match err {
        EncoderSubmitError::QueueFull { retry_after, .. } => ApiError::QueueFull { retry_after },
        EncoderSubmitError::TooLong { input, .. } => ApiError::too_long(&format!("input[{input}]"), &err),
        EncoderSubmitError::TooMany { .. } => ApiError::too_long("input", &err),
        EncoderSubmitError::Invalid(message) => ApiError::invalid("input", message),
        EncoderSubmitError::ShuttingDown => app.engine_ended(model),
    })?;
    let _cancels = Cancels(cancel);
    let metrics = app.metrics.of(model);
    metrics.prompt_tokens.inc_by(tokens);
    if let Some(span) = telemetry::current() {
        span.encoded(model, tokens);
    }
    let received = tokio::select! {
        received = timeout_at(deadline, receiver) => received,
        () = app.lifecycle.reached(Stage::Ending) => return Err(ApiError::ShuttingDown),
    };
    match received {
        Err(_) | Ok(Ok(Encoded::Deadline)) => Err(ApiError::Deadline { limit }),
        Ok(Ok(Encoded::Done(outputs))) => {
            metrics.latency.observe(arrived.elapsed().as_secs_f64());
            Ok((outputs, EncoderUsage::of(tokens)))
        }
        Ok(Ok(Encoded::Cancelled)) => Err(app.engine_ended(model)),
        Ok(Ok(Encoded::Error(what))) => {
            tracing::error!(error = %what, "the engine failed on a request");
            Err(ApiError::Engine("computing a batch failed".to_owned()))
        }
        Ok(Err(_)) => Err(ApiError::Engine("the engine let go of it".to_owned())),
    }
}

/// The first `n` numbers, to length 1 again, as models of nested dimensions are trained for.
pub(crate) fn shortened(mut vector: Vec<f32>, n: Option<usize>) -> Vec<f32> {
    let Some(n) = n.filter(|n| *n < vector.len()) else { return vector };
    vector.truncate(n);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
    vector
}
