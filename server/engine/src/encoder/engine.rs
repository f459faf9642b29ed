//! The handle to a loaded encoder: a bounded queue, and a thread that computes what waits in batches of tokens.
//!
//! There is no delay to collect a batch: while one is computed the next one gathers, and an idle engine begins at once.

mod door;

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    entities::{Aggregation, Entity, Namer, TokenLabels},
    input::{Input, Pairs, Tokens},
    load,
    worker::{Job, Worker},
};
use crate::{
    CancelToken, EngineConfig, LoadError, LoadProgress, ModelFacts, ModelSource, TextError,
    kernels::thread_name,
};
pub(super) use door::{Door, Phase, State};

/// A loaded encoder; cheap to clone. When the last clone goes, its thread is joined.
#[derive(Clone)]
pub struct EncoderEngine {
    inner: Arc<Inner>,
}

struct Inner {
    facts: ModelFacts,
    number: usize,
    limits: EncoderLimits,
    tokens: Tokens,
    namer: Namer,
    door: Arc<Door>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Tokens of all inputs of one request, as with OpenAI; models with many labels take fewer.
pub const MAX_REQUEST_TOKENS: usize = 300_000;

/// What an encoder was trained to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderTask {
    /// A vector for a text.
    Embed,
    /// One score for a pair of texts.
    Rerank,
    /// A label for each token.
    TokenClassify,
}

/// What an encoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderLimits {
    pub task: EncoderTask,
    /// Of one input, the tokenizer's own included.
    pub max_tokens: usize,
    /// Of all inputs of one request.
    pub max_request_tokens: usize,
    /// Length of its vectors.
    pub dimensions: usize,
}

/// What became of one input.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Embedding(Vec<f32>),
    /// As the model computes it: the larger, the more relevant. Its logistic function lies in (0, 1).
    Score(f32),
    /// See [`EncoderEngine::entities`].
    Labels(TokenLabels),
}

impl Output {
    /// Damaged weights give numbers that nobody can use.
    pub(super) fn is_finite(&self) -> bool {
        match self {
            Self::Embedding(vector) => vector.iter().all(|x| x.is_finite()),
            Self::Score(score) => score.is_finite(),
            Self::Labels(labels) => labels.is_finite(),
        }
    }
}

/// Hears of a request once, on the engine's thread: it must not block.
pub type Results = Box<dyn FnOnce(Encoded) + Send>;

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoded {
    /// One for each input, in order.
    Done(Vec<Output>),
    Cancelled,
    Deadline,
    /// The engine failed on this request; a fault of ours.
    Error(String),
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EncoderSubmitError {
    /// 429 with `Retry-After`.
    #[error("{queued_tokens} tokens wait already; retry in {} s", retry_after.as_secs())]
    QueueFull { queued_tokens: usize, retry_after: Duration },
    /// 400.
    #[error(
        "input {input} has {tokens} tokens, the model takes {max_tokens}; shorten it, or ask for it to be cut (`truncate`)"
    )]
    TooLong { input: usize, tokens: usize, max_tokens: usize },
    /// 400.
    #[error(
        "the inputs of the request have {tokens} tokens together, {most} are the most; send several requests"
    )]
    TooMany { tokens: usize, most: usize },
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 503.
    #[error("the engine is shutting down; retry elsewhere")]
    ShuttingDown,
}

/// What an encoder is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderStats {
    /// Its number in this process: [`thread_name`] of it is how the names of its threads begin.
    pub number: usize,
    /// Requests of which some inputs are computed now.
    pub running: usize,
    /// Requests that wait.
    pub queued: usize,
    pub queued_tokens: usize,
    /// Since [`EncoderEngine::stats`] first saw the last progress: a batch that began or ended, or one of the tasks in
    /// it. Zero when there is nothing to do. Large = wedged.
    pub heartbeat_age: Duration,
    pub accepting: bool,
    pub inputs_total: u64,
    pub tokens_total: u64,
    pub batches_total: u64,
}

impl EncoderEngine {
    /// Reads and checks a folder, converts its weights and starts the engine's thread. Blocks; `progress` is called on
    /// this thread. Of `config`, the KV cache and sequences mean nothing here; `step_tokens` bounds a batch (but a
    /// single input may be longer). Requests take turns, so a long one does not keep short ones waiting.
    pub fn load(
        source: &ModelSource,
        config: &EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let loaded = load::load(source, config, progress)?;
        let limits = loaded.limits;
        let (number, pulse) = (loaded.body.pool().number(), loaded.body.pool().pulse());
        let door = Arc::new(Door {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_tokens: 0,
                rests: Vec::new(),
                phase: Phase::Open,
                idle: true,
                heartbeat: Instant::now(),
                beats: pulse.read(),
                tokens_per_second: 1000.0,
                inputs: 0,
                tokens: 0,
                batches: 0,
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            pulse,
            max_queue: config.max_queue,
            max_queue_tokens: config.max_queue_tokens.unwrap_or_else(|| {
                config.max_queue.saturating_mul(limits.max_tokens).max(2 * MAX_REQUEST_TOKENS)
            }),
            max_wait: config.max_wait,
        });
        let worker = Worker {
            body: loaded.body,
            n_labels: loaded.labels.len(),
            recipe: loaded.recipe,
            task: limits.task,
            batch_tokens: load::batch_tokens(config),
            door: Arc::clone(&door),
        };
        let thread = thread::Builder::new()
            .name(format!("{}encoder", thread_name(number)))
            .spawn(move || worker.run())
            .map_err(LoadError::Thread)?;
        let inner = Inner {
            facts: loaded.facts,
            number,
            limits,
            namer: Namer::new(loaded.labels, &loaded.tokens.text.tokenizer),
            tokens: loaded.tokens,
            door,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn facts(&self) -> &ModelFacts {
        &self.inner.facts
    }

    pub fn limits(&self) -> EncoderLimits {
        self.inner.limits
    }

    /// Tokens of a text. With `truncate` it loses its end until it fits; else one that is too long is refused. CPU work
    /// proportional to the text: keep it off an async runtime's threads.
    pub fn encode(&self, text: &str, truncate: bool) -> Result<Input, TextError> {
        self.inner.tokens.of_text(text, truncate)
    }

    /// For pairs of one query and many documents: the query is tokenised once.
    ///
    /// # Errors
    /// As [`EncoderEngine::encode`]'s, for a query that is too long by itself.
    pub fn pairs(&self, query: &str, truncate: bool) -> Result<Pairs<'_>, TextError> {
        self.inner.tokens.pairs(query, truncate)
    }

    /// What is named in a text, by the labels that became of it. Of no use with another text than its own. CPU work
    /// proportional to the text.
    ///
    /// # Errors
    /// A tokenizer that fails to write its own tokens as text.
    pub fn entities(
        &self,
        text: &str,
        labels: &TokenLabels,
        how: Aggregation,
        ignored: &[String],
    ) -> Result<Vec<Entity>, TextError> {
        self.inner.namer.entities(&self.inner.tokens.text, text, labels, how, ignored)
    }

    /// Token ids as they are, for clients that tokenise themselves.
    pub fn from_ids(&self, ids: Vec<u32>) -> Input {
        Input::of_ids(ids)
    }

    /// Admits a request or says why not; never blocks on the engine.
    pub fn submit(
        &self,
        inputs: Vec<Input>,
        deadline: Option<Instant>,
        results: Results,
    ) -> Result<CancelToken, EncoderSubmitError> {
        let EncoderLimits { max_tokens, .. } = self.inner.limits;
        if inputs.is_empty() {
            return Err(EncoderSubmitError::Invalid("there is no input".to_owned()));
        }
        let vocabulary = self.inner.facts.vocabulary_size;
        for (i, input) in inputs.iter().enumerate() {
            let tokens = input.n_tokens();
            if tokens > max_tokens {
                return Err(EncoderSubmitError::TooLong { input: i, tokens, max_tokens });
            }
            if tokens == 0 {
                return Err(EncoderSubmitError::Invalid(format!("input {i} has no tokens")));
            }
            if let Some(id) = input.ids.iter().find(|id| **id >= vocabulary) {
                let what = format!("input {i}: token {id} is outside 0..{vocabulary}");
                return Err(EncoderSubmitError::Invalid(what));
            }
        }
        let tokens: usize = inputs.iter().map(Input::n_tokens).sum();
        let most = self.inner.limits.max_request_tokens;
        if tokens > most {
            return Err(EncoderSubmitError::TooMany { tokens, most });
        }
        let door = &self.inner.door;
        let mut state = door.lock();
        if state.phase != Phase::Open {
            return Err(EncoderSubmitError::ShuttingDown);
        }
        let gone = if state.is_full(door, tokens) { state.sweep() } else { Vec::new() };
        let admitted = self.admit(state, inputs, tokens, deadline, results);
        gone.into_iter().for_each(|(mut job, how)| job.end(how));
        admitted
    }

    fn admit(
        &self,
        mut state: MutexGuard<'_, State>,
        inputs: Vec<Input>,
        tokens: usize,
        deadline: Option<Instant>,
        results: Results,
    ) -> Result<CancelToken, EncoderSubmitError> {
        let door = &self.inner.door;
        if state.is_full(door, tokens) {
            let waiting = state.queued_tokens + state.rests.iter().sum::<usize>();
            let seconds = (waiting as f64 / state.tokens_per_second).ceil().clamp(1.0, 60.0);
            return Err(EncoderSubmitError::QueueFull {
                queued_tokens: waiting,
                retry_after: Duration::from_secs(seconds as u64),
            });
        }
        if state.idle {
            state.heartbeat = Instant::now();
        }
        let cancel = CancelToken::default();
        state.queued_tokens += tokens;
        state.queue.push_back(Job {
            outputs: Vec::with_capacity(inputs.len()),
            inputs,
            tokens,
            results: Some(results),
            deadline,
            cancel: cancel.clone(),
        });
        door.work.notify_one();
        Ok(cancel)
    }

    pub fn stats(&self) -> EncoderStats {
        let mut state = self.inner.door.lock();
        let beats = self.inner.door.pulse.read();
        if beats != state.beats {
            (state.beats, state.heartbeat) = (beats, Instant::now());
        }
        let resting = state.idle && state.queue.is_empty();
        EncoderStats {
            number: self.inner.number,
            running: state.rests.len(),
            queued: state.queue.len(),
            queued_tokens: state.queued_tokens,
            heartbeat_age: if resting { Duration::ZERO } else { state.heartbeat.elapsed() },
            accepting: state.phase == Phase::Open,
            inputs_total: state.inputs,
            tokens_total: state.tokens,
            batches_total: state.batches,
        }
    }

    /// Admits nothing from now on; what was admitted finishes.
    pub fn drain(&self) {
        self.inner.door.advance(Phase::Draining);
    }

    /// Waits until nothing runs or waits. False = `deadline` came first.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        let mut state = self.inner.door.lock();
        while !(state.idle && state.queue.is_empty()) {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                return false;
            };
            (state, _) =
                self.inner.door.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Admits nothing, cancels what waits (each request still hears of it) and joins the thread.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl std::fmt::Debug for EncoderEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncoderEngine").field("facts", &self.inner.facts).finish_non_exhaustive()
    }
}

impl Inner {
    fn stop(&self) {
        self.door.advance(Phase::Stopping);
        let handle = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A sink may own the last clone: the engine's thread cannot join itself, and ends on its own.
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != thread::current().id())
            && handle.join().is_err()
        {
            tracing::error!("the encoder's thread ended by a panic");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}
