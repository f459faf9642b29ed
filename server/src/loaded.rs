//! A loaded model of either kind: one that generates text, or one that reads it.

use std::time::{Duration, Instant};

use candela_engine::{EncoderEngine, EncoderStats, EncoderTask, Engine, ModelFacts, Stats};
use candela_wire::config::Task;

use crate::metrics::SeenEngine;

/// What computes.
#[derive(Clone)]
pub(crate) enum Loaded {
    Generator(Engine),
    Encoder(EncoderEngine),
}

/// What an engine of either kind is doing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Number of the engine, which its threads bear in their names.
    pub(crate) engine: usize,
    pub(crate) running: usize,
    pub(crate) queued: usize,
    /// Since it last finished a step or batch; zero when it has nothing to do.
    pub(crate) heartbeat_age: Duration,
}

impl Loaded {
    pub(crate) fn facts(&self) -> &ModelFacts {
        match self {
            Self::Generator(engine) => engine.facts(),
            Self::Encoder(engine) => engine.facts(),
        }
    }

    pub(crate) fn load(&self) -> Load {
        match self {
            Self::Generator(engine) => {
                let Stats { number: engine, running, queued, heartbeat_age, .. } = engine.stats();
                Load { engine, running, queued, heartbeat_age }
            }
            Self::Encoder(engine) => {
                let EncoderStats { number: engine, running, queued, heartbeat_age, .. } = engine.stats();
                Load { engine, running, queued, heartbeat_age }
            }
        }
    }

    /// All that its engine says of itself, for the metrics.
    pub(crate) fn seen(&self) -> SeenEngine {
        match self {
            Self::Generator(engine) => SeenEngine::Generator(engine.stats()),
            Self::Encoder(engine) => SeenEngine::Encoder(engine.stats()),
        }
    }

    /// What its architecture is for.
    pub(crate) fn task(&self) -> Task {
        match self {
            Self::Generator(_) => Task::Generate,
            Self::Encoder(engine) => match engine.limits().task {
                EncoderTask::Embed => Task::Embed,
                EncoderTask::Rerank => Task::Rerank,
                EncoderTask::TokenClassify => Task::TokenClassify,
            },
        }
    }

    /// Admits nothing from now on; what was admitted finishes.
    pub(crate) fn drain(&self) {
        match self {
            Self::Generator(engine) => engine.drain(),
            Self::Encoder(engine) => engine.drain(),
        }
    }

    /// Blocks until nothing runs or waits. False = `deadline` came first.
    pub(crate) fn wait_idle(&self, deadline: Instant) -> bool {
        match self {
            Self::Generator(engine) => engine.wait_idle(deadline),
            Self::Encoder(engine) => engine.wait_idle(deadline),
        }
    }

    pub(crate) fn shutdown(&self) {
        match self {
            Self::Generator(engine) => engine.shutdown(),
            Self::Encoder(engine) => engine.shutdown(),
        }
    }
}

/// Computes one short text, so that what is built lazily exists before the first client comes. Blocks.
pub(crate) fn warm_up_encoder(engine: &EncoderEngine) -> Result<Duration, String> {
    let began = Instant::now();
    let (sender, receiver) = std::sync::mpsc::channel();
    let results = Box::new(move |how| drop(sender.send(how)));
    engine.submit(vec![engine.from_ids(vec![0; 4])], None, results).map_err(|err| err.to_string())?;
    match receiver.recv() {
        Ok(candela_engine::Encoded::Done(_)) => Ok(began.elapsed()),
        Ok(other) => Err(format!("{other:?}")),
        Err(_) => Err("the engine let go of it".to_owned()),
    }
}
