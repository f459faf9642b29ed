//! Work for an engine becomes tensors again.

use std::{sync::Arc, time::Duration};

use candela_engine::{Finished, Output as Computed};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    contract::{Kind, Work},
    terms::Terms,
};
use crate::{
    api::{
        ApiError, Clock, Generation, Happening, Job, computed, finish_reason, relevance, request_limit,
        shortened,
    },
    app::App,
    trust::Caller,
};

/// What a request turned out to be: tensors, and what else there is to say.
pub(crate) struct Answer {
    pub(crate) output: Output,
    pub(crate) parameters: Map<String, Value>,
}

/// The one output that each kind of model has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<i64>,
    pub(crate) values: Values,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    Text(String),
    Floats(Vec<f32>),
}

impl Output {
    pub(crate) fn text(text: String) -> Self {
        Self { name: Kind::Generate.output().name, shape: vec![1], values: Values::Text(text) }
    }

    pub(crate) fn datatype(&self) -> &'static str {
        match self.values {
            Values::Text(_) => "BYTES",
            Values::Floats(_) => "FP32",
        }
    }

    /// Little-endian; a text with its length before it.
    pub(crate) fn raw(&self) -> Vec<u8> {
        match &self.values {
            Values::Floats(floats) => floats.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Values::Text(text) => {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                [&length.to_le_bytes(), text.as_bytes()].concat()
            }
        }
    }

    /// Flat, as the protocol has it.
    pub(crate) fn json(&self) -> Value {
        match &self.values {
            Values::Floats(floats) => json!(floats),
            Values::Text(text) => json!([text]),
        }
    }
}

/// For whom and until when.
#[derive(Clone, Copy)]
pub(crate) struct Since {
    pub(crate) arrived: Instant,
    pub(crate) caller: Caller,
}

impl Since {
    pub(crate) fn clock(&self, app: &App) -> Clock {
        Clock { arrived: self.arrived, limit: self.caller.within(request_limit(app)) }
    }

    fn limit(&self, app: &App, terms: &Terms) -> Duration {
        let limit = self.caller.within(request_limit(app));
        terms.timeout.map_or(limit, |timeout| timeout.min(limit))
    }

    /// The job with its time limit and its salt.
    pub(crate) fn bound(&self, app: &App, terms: &Terms, mut job: Job) -> Job {
        job.arrived = self.arrived;
        job.request.deadline = Some((self.arrived + self.limit(app, terms)).into_std());
        job.request.salt = self.caller.salt;
        job
    }
}

/// Computes all of it. Dropped, it is cancelled in the engine.
pub(crate) async fn whole(
    app: &Arc<App>,
    work: Work,
    terms: &Terms,
    since: Since,
) -> Result<Answer, ApiError> {
    let limit = since.limit(app, terms);
    match work {
        Work::Generate(job) => {
            let job = since.bound(app, terms, *job);
            let mut generation = Generation::begin(app, &job.target, job.request, job.arrived)?;
            let mut text = String::new();
            loop {
                match generation.next().await? {
                    Happening::Token(token) => text.push_str(&token.text),
                    Happening::Finished(finished) => {
                        text.push_str(&finished.text);
                        return Ok(Answer { output: Output::text(text), parameters: ending(&finished) });
                    }
                }
            }
        }
        Work::Embed(job) => {
            let (outputs, _) =
                computed(app, &job.label, &job.engine, job.inputs, since.arrived, limit).await?;
            let vectors = outputs.into_iter().filter_map(|output| match output {
                Computed::Embedding(vector) => Some(shortened(vector, job.wishes.dimensions)),
                _ => None,
            });
            let vectors: Vec<_> = vectors.collect();
            let width = vectors.first().map_or(0, Vec::len);
            let shape = vec![vectors.len() as i64, width as i64];
            let name = Kind::Embed { dimensions: width }.output().name;
            let output = Output { name, shape, values: Values::Floats(vectors.concat()) };
            Ok(Answer { output, parameters: Map::new() })
        }
        Work::Rerank(job) => {
            let (outputs, _) =
                computed(app, &job.label, &job.engine, job.inputs, since.arrived, limit).await?;
            let raw = job.wishes.raw_scores;
            let scores = outputs.into_iter().filter_map(|output| match output {
                Computed::Score(score) => Some(if raw { score } else { relevance(score) }),
                _ => None,
            });
            let scores: Vec<f32> = scores.collect();
            let shape = vec![scores.len() as i64];
            let output = Output { name: Kind::Rerank.output().name, shape, values: Values::Floats(scores) };
            Ok(Answer { output, parameters: Map::new() })
        }
    }
}

/// How a generation ended, as parameters of its last response.
pub(crate) fn ending(finished: &Finished) -> Map<String, Value> {
    let ending = json!({
        "finish_reason": finish_reason(finished),
        "num_input_tokens": finished.usage.prompt_tokens,
        "num_output_tokens": finished.usage.completion_tokens,
    });
    match ending {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
