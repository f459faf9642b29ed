//! `POST /token-classify`: what is named in texts.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Request, State},
};
use candela_engine::{Aggregation, EncoderEngine, Output};
use candela_wire::{
    config::Task,
    entities::{AggregationStrategy, Entity, TokenClassifyAnswer, TokenClassifyRequest},
};
use tokio::time::Instant;

use super::{
    encoders::{Job, bounded, check_model, computed},
    error::ApiError,
    native::Problem,
    prepare,
};
use crate::{app::App, model::Served, trust::Caller};

pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<TokenClassifyAnswer>, Problem> {
    let (arrived, caller) = (Instant::now(), Caller::of(&request));
    let Job { engine, model, label, inputs, wishes, _hold, kept } =
        prepare::parsed_long(&app, request, Task::TokenClassify, job).await?;
    let limit = caller.within(prepare::request_limit(&app));
    let (outputs, usage) = computed(&app, &label, &engine, inputs, arrived, limit).await?;
    let closed = |_| ApiError::ShuttingDown;
    // As long as it takes: what was computed is not thrown away because others wait to be tokenised.
    let turn = Arc::clone(&app.tokenising).acquire_owned().await.map_err(closed)?;
    let work = move || {
        let _held = (turn, kept);
        entities(&engine, &wishes, &outputs)
    };
    // It ends without a result only if it panicked, and then so does the process.
    let entities = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::ShuttingDown)??;
    Ok(Json(TokenClassifyAnswer { model, entities, usage }))
}

fn job(app: &App, served: &Served, body: &[u8]) -> Result<Job<TokenClassifyRequest>, ApiError> {
    let wishes = TokenClassifyRequest::parse(body).map_err(ApiError::Invalid)?;
    check_model(served, wishes.model.as_ref())?;
    let engine = served.encoder(Task::TokenClassify)?;
    let input = |(at, text): (usize, &String)| {
        let tokens = engine.encode(text, wishes.truncate);
        tokens.map_err(|err| ApiError::text(&err, &format!("input[{at}]")))
    };
    let inputs = bounded(engine, wishes.inputs.iter().enumerate().map(input), "input")?;
    // The texts wait with the request, and count as bodies do.
    let full = ApiError::QueueFull { retry_after: Duration::from_secs(1) };
    let kept = app.bodies.take(wishes.inputs.iter().map(String::len).sum()).ok_or(full)?;
    Ok(Job {
        engine: engine.clone(),
        model: served.name.clone(),
        label: served.label.clone(),
        inputs,
        wishes,
        _hold: served.hold(),
        kept: Some(kept),
    })
}

fn entities(
    engine: &EncoderEngine,
    wishes: &TokenClassifyRequest,
    outputs: &[Output],
) -> Result<Vec<Vec<Entity>>, ApiError> {
    let how = match wishes.aggregation_strategy {
        AggregationStrategy::None => Aggregation::None,
        AggregationStrategy::Simple => Aggregation::Simple,
        AggregationStrategy::First => Aggregation::First,
        AggregationStrategy::Average => Aggregation::Average,
        AggregationStrategy::Max => Aggregation::Max,
    };
    let labels = outputs.iter().filter_map(|output| match output {
        Output::Labels(labels) => Some(labels),
        _ => None,
    });
    let of_text = |(at, (text, labels)): (usize, (&String, _))| {
        let found = engine.entities(text, labels, how, &wishes.ignore_labels);
        let found = found.map_err(|err| ApiError::text(&err, &format!("input[{at}]")))?;
        Ok(found.into_iter().map(entity).collect())
    };
    wishes.inputs.iter().zip(labels).enumerate().map(of_text).collect()
}

fn entity(found: candela_engine::Entity) -> Entity {
    let candela_engine::Entity { label, score, index, word, start, end } = found;
    // Only a single token has an index.
    let (entity, entity_group) = if index.is_some() { (Some(label), None) } else { (None, Some(label)) };
    Entity { entity, entity_group, score, index, word, start, end }
}
