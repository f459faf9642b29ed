//! The whole engine over tiny models with random weights.

mod batching;
pub(crate) mod faults;
mod generate;
mod hostile;
mod lifecycle;

use std::{
    ops::ControlFlow,
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    CancelToken, Engine, EngineConfig, Event, Finished, GenerateRequest, ModelSource, SamplingParams,
    SubmitError, Token, testing::TinyModel,
};

/// Longer than any test needs; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn config() -> EngineConfig {
    EngineConfig { max_sequences: 4, max_queue: 8, step_tokens: 16, ..EngineConfig::default() }
}

fn folder(model: &TinyModel) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    model.write_folder(dir.path()).unwrap();
    dir
}

fn engine_with(model: &TinyModel, config: &EngineConfig) -> Engine {
    let dir = folder(model);
    // The files are not needed once loaded.
    Engine::load(&ModelSource::Folder(dir.path().to_owned()), config, &mut |_| ()).unwrap()
}

fn engine() -> Engine {
    engine_with(&TinyModel::default(), &config())
}

/// Never ends by itself within a test's patience on a large context.
fn long_model() -> TinyModel {
    TinyModel { context_length: 1 << 20, ..TinyModel::default() }
}

fn greedy(prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt_tokens: prompt.to_vec(),
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateRequest::default()
    }
}

fn endless() -> GenerateRequest {
    GenerateRequest { max_tokens: None, ..greedy(&[1, 2, 3], 1) }
}

/// A submitted request.
struct Running {
    cancel: CancelToken,
    events: Receiver<Event>,
}

fn submit(engine: &Engine, request: GenerateRequest) -> Result<Running, SubmitError> {
    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    Ok(Running { cancel: engine.submit(request, sink)?, events })
}

impl Running {
    fn next(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event comes in time")
    }

    fn first_token(&self) -> Token {
        match self.next() {
            Event::Token(token) => token,
            Event::Finished(finished) => panic!("ended without a token: {finished:?}"),
        }
    }

    /// The tokens still to come, and the end. Checks that nothing follows.
    fn rest(self) -> (Vec<Token>, Finished) {
        let mut tokens = Vec::new();
        loop {
            match self.next() {
                Event::Token(token) => tokens.push(token),
                Event::Finished(finished) => {
                    assert!(self.events.recv_timeout(PATIENCE).is_err(), "an event after the last");
                    return (tokens, finished);
                }
            }
        }
    }
}

fn generate(engine: &Engine, request: GenerateRequest) -> (Vec<Token>, Finished) {
    submit(engine, request).unwrap().rest()
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn text(tokens: &[Token], finished: &Finished) -> String {
    tokens.iter().map(|token| token.text.as_str()).chain([finished.text.as_str()]).collect()
}

#[track_caller]
fn wait_idle(engine: &Engine) {
    assert!(
        engine.wait_idle(Instant::now() + PATIENCE),
        "the engine does not become idle: {:?}",
        engine.stats()
    );
}
