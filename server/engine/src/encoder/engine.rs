//! The handle to a loaded encoder: a bounded queue, and a thread that computes what waits in batches of tokens.
//!
//! There is no delay to collect a batch: while one is computed the next one gathers, and an idle engine begins at once.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokenizers::Tokenizer;

use super::{
    graph::{Encoder, Row},
    load,
    pooling::{self, Recipe},
};
use crate::{
    CancelToken, EngineConfig, LoadError, LoadProgress, ModelFacts, ModelSource, TextError, contained,
    text::{Text, guarded},
};

/// A loaded encoder; cheap to clone. When the last clone goes, its thread is joined.
#[derive(Clone)]
pub struct EncoderEngine {
    inner: Arc<Inner>,
}

struct Inner {
    facts: ModelFacts,
    limits: EncoderLimits,
    text: Text,
    /// The same tokenizer, cutting what is too long.
    truncating: Tokenizer,
    door: Arc<Door>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

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
    /// Length of its vectors.
    pub dimensions: usize,
}

/// One text, or a pair of texts, in tokens. Made by [`EncoderEngine::encode`].
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    ids: Vec<u32>,
    /// Which of a pair's texts a token is of; empty = all of the first.
    types: Vec<u32>,
    /// Bytes of the text that each token stands for; empty for the tokenizer's own, and where ids were given.
    spans: Vec<(usize, usize)>,
}

impl Input {
    /// Tokens, the tokenizer's own included.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }
}

/// What became of one input.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Embedding(Vec<f32>),
    /// As the model computes it: the larger, the more relevant. Its logistic function lies in (0, 1).
    Score(f32),
    /// For each token that stands for text, in order.
    Labels(Vec<TokenLabel>),
}

/// The likeliest label of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLabel {
    /// As `id2label` names it.
    pub label: String,
    /// Its probability.
    pub score: f32,
    /// Bytes of the text that the token stands for.
    pub start: usize,
    pub end: usize,
    /// The token continues a word that the one before began.
    pub continues: bool,
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
        "input {input} has {tokens} tokens, the model takes {max_tokens}; shorten it, or ask for truncation"
    )]
    TooLong { input: usize, tokens: usize, max_tokens: usize },
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
    /// Requests of which some inputs are computed now.
    pub running: usize,
    /// Requests that wait.
    pub queued: usize,
    pub queued_tokens: usize,
    /// Since the thread last finished a batch; zero when it has nothing to do. Large = wedged.
    pub heartbeat_age: Duration,
    pub accepting: bool,
    pub inputs_total: u64,
    pub tokens_total: u64,
    pub batches_total: u64,
}

struct Job {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    results: Option<Results>,
    deadline: Option<Instant>,
    cancel: CancelToken,
}

impl Job {
    fn end(&mut self, how: Encoded) {
        if let Some(results) = self.results.take()
            && contained::run(|| results(how)).is_err()
        {
            tracing::error!("a sink panicked");
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Draining,
    Stopping,
}

struct State {
    queue: VecDeque<Job>,
    queued_tokens: usize,
    running: usize,
    phase: Phase,
    idle: bool,
    heartbeat: Instant,
    /// Exponentially weighted.
    tokens_per_second: f64,
    inputs: u64,
    tokens: u64,
    batches: u64,
}

struct Door {
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
    max_queue: usize,
    max_queue_tokens: usize,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section is a few assignments: a panic cannot leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        self.work.notify_all();
    }
}

impl EncoderEngine {
    /// Reads and checks a folder, converts its weights and starts the engine's thread. Blocks; `progress` is called on
    /// this thread. Of `config`, the KV cache and sequences mean nothing here; `step_tokens` bounds a batch (but a
    /// single input may be longer).
    pub fn load(
        source: &ModelSource,
        config: &EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let loaded = load::load(source, config, progress)?;
        let limits = loaded.limits;
        let door = Arc::new(Door {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_tokens: 0,
                running: 0,
                phase: Phase::Open,
                idle: true,
                heartbeat: Instant::now(),
                tokens_per_second: 1000.0,
                inputs: 0,
                tokens: 0,
                batches: 0,
            }),
            work: Condvar::new(),
            idle: Condvar::new(),
            max_queue: config.max_queue,
            max_queue_tokens: config.max_queue.saturating_mul(limits.max_tokens),
        });
        let worker = Worker {
            encoder: loaded.encoder,
            recipe: loaded.recipe,
            task: limits.task,
            batch_tokens: load::batch_tokens(config),
            door: Arc::clone(&door),
        };
        let thread = thread::Builder::new()
            .name("candela-encoder".to_owned())
            .spawn(move || worker.run())
            .map_err(LoadError::Thread)?;
        let inner = Inner {
            facts: loaded.facts,
            limits,
            text: loaded.text,
            truncating: loaded.truncating,
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

    /// Tokens of a text, or of a pair for a reranker. With `truncate`, the longer of the two loses its end until both
    /// fit; else one that is too long is refused by [`EncoderEngine::submit`]. CPU work proportional to the text:
    /// keep it off an async runtime's threads.
    pub fn encode(&self, text: &str, second: Option<&str>, truncate: bool) -> Result<Input, TextError> {
        let max_tokens = self.inner.limits.max_tokens;
        // What is cut off need not be tokenised first; no token is longer than the longest.
        let limit_bytes = self.inner.text.longest_token.saturating_mul(max_tokens).saturating_mul(4);
        let bytes = text.len() + second.map_or(0, str::len);
        if bytes > limit_bytes && !truncate {
            return Err(TextError::TooLong { bytes, limit_bytes });
        }
        let (text, second) = (head(text, limit_bytes), second.map(|text| head(text, limit_bytes)));
        let tokenizer = if truncate { &self.inner.truncating } else { &self.inner.text.tokenizer };
        let encoding = guarded(|| match second {
            None => tokenizer.encode(text, true),
            Some(second) => tokenizer.encode((text, second), true),
        })?;
        let own = encoding.get_special_tokens_mask();
        let spans = encoding.get_offsets().iter().zip(own);
        Ok(Input {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            spans: spans.map(|(span, own)| if *own == 1 { (0, 0) } else { *span }).collect(),
        })
    }

    /// Token ids as they are, for clients that tokenise themselves.
    pub fn from_ids(&self, ids: Vec<u32>) -> Input {
        Input { ids, types: Vec::new(), spans: Vec::new() }
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
        let door = &self.inner.door;
        let mut state = door.lock();
        if state.phase != Phase::Open {
            return Err(EncoderSubmitError::ShuttingDown);
        }
        let full =
            state.queue.len() >= door.max_queue || state.queued_tokens + tokens > door.max_queue_tokens;
        // One request alone is always admitted: the limit is for what waits behind others.
        if full && !state.queue.is_empty() {
            let seconds = (state.queued_tokens as f64 / state.tokens_per_second).ceil().clamp(1.0, 60.0);
            return Err(EncoderSubmitError::QueueFull {
                queued_tokens: state.queued_tokens,
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
            results: Some(results),
            deadline,
            cancel: cancel.clone(),
        });
        door.work.notify_one();
        Ok(cancel)
    }

    pub fn stats(&self) -> EncoderStats {
        let state = self.inner.door.lock();
        let resting = state.idle && state.queue.is_empty();
        EncoderStats {
            running: state.running,
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

/// At most so many bytes of a text, whole characters.
fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

struct Worker {
    encoder: Encoder,
    recipe: Recipe,
    task: EncoderTask,
    batch_tokens: usize,
    door: Arc<Door>,
}

impl Worker {
    fn run(mut self) {
        // Requests of which some inputs are done: long ones are computed in several batches, in turn with others.
        let mut under_way: VecDeque<Job> = VecDeque::new();
        while let Some(phase) = self.take(&mut under_way) {
            let now = Instant::now();
            under_way.retain_mut(|job| {
                let how = match () {
                    () if phase == Phase::Stopping || job.cancel.is_cancelled() => Encoded::Cancelled,
                    () if job.deadline.is_some_and(|deadline| deadline <= now) => Encoded::Deadline,
                    () => return true,
                };
                job.end(how);
                false
            });
            self.batch(&mut under_way);
        }
    }

    /// Waits for work, then moves what waits to `under_way` as far as a batch reaches. `None` = the engine stops.
    fn take(&self, under_way: &mut VecDeque<Job>) -> Option<Phase> {
        let mut state = self.door.lock();
        state.running = under_way.len();
        state.heartbeat = Instant::now();
        while under_way.is_empty() && state.queue.is_empty() {
            state.idle = true;
            self.door.idle.notify_all();
            if state.phase == Phase::Stopping {
                return None;
            }
            state = self.door.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.idle, state.heartbeat) = (false, Instant::now());
        let mut tokens: usize =
            under_way.iter().map(|job| rest(job).map(Input::n_tokens).sum::<usize>()).sum();
        while tokens < self.batch_tokens || under_way.is_empty() || state.phase == Phase::Stopping {
            let Some(job) = state.queue.pop_front() else { break };
            let n: usize = job.inputs.iter().map(Input::n_tokens).sum();
            state.queued_tokens -= n;
            tokens += n;
            under_way.push_back(job);
        }
        state.running = under_way.len();
        Some(state.phase)
    }

    /// Computes the next inputs, first come first served, as many as a batch holds.
    fn batch(&mut self, under_way: &mut VecDeque<Job>) {
        let (mut inputs, mut tokens): (Vec<&Input>, usize) = (Vec::new(), 0);
        let mut shares = Vec::new();
        for job in under_way.iter() {
            let before = inputs.len();
            for input in rest(job) {
                if !inputs.is_empty() && tokens + input.n_tokens() > self.batch_tokens {
                    break;
                }
                tokens += input.n_tokens();
                inputs.push(input);
            }
            shares.push(inputs.len() - before);
            if tokens >= self.batch_tokens {
                break;
            }
        }
        if inputs.is_empty() {
            return;
        }
        let began = Instant::now();
        let n_inputs = inputs.len();
        let outcome = contained::run(|| compute(&mut self.encoder, self.recipe, self.task, &inputs));
        drop(inputs);
        match outcome {
            Ok(Ok(outputs)) => {
                let mut outputs = outputs.into_iter();
                for (job, share) in under_way.iter_mut().zip(shares) {
                    job.outputs.extend(outputs.by_ref().take(share));
                }
            }
            failed => {
                let message = match failed {
                    Ok(Err(message)) => message,
                    _ => "a batch panicked".to_owned(),
                };
                tracing::error!(message, "a batch failed");
                for (job, _) in under_way.iter_mut().zip(shares).filter(|(_, share)| *share > 0) {
                    job.end(Encoded::Error(message.clone()));
                }
            }
        }
        self.count(n_inputs, tokens, began.elapsed());
        under_way.retain_mut(|job| {
            if job.results.is_some() && job.outputs.len() == job.inputs.len() {
                let outputs = std::mem::take(&mut job.outputs);
                job.end(Encoded::Done(outputs));
            }
            job.results.is_some()
        });
    }

    /// Counted before the results go out: whoever hears of them finds them in the figures.
    fn count(&self, inputs: usize, tokens: usize, took: Duration) {
        let mut state = self.door.lock();
        state.inputs += inputs as u64;
        state.tokens += tokens as u64;
        state.batches += 1;
        let speed = tokens as f64 / took.as_secs_f64().max(1e-6);
        state.tokens_per_second = state.tokens_per_second.mul_add(0.75, 0.25 * speed);
    }
}

/// Inputs that are not computed yet.
fn rest(job: &Job) -> impl Iterator<Item = &Input> {
    job.inputs.iter().skip(job.outputs.len())
}

fn compute(
    encoder: &mut Encoder,
    recipe: Recipe,
    task: EncoderTask,
    inputs: &[&Input],
) -> Result<Vec<Output>, String> {
    let rows: Vec<Row<'_>> =
        inputs.iter().map(|input| Row { tokens: &input.ids, types: &input.types }).collect();
    let hidden = encoder.shape.hidden;
    match task {
        EncoderTask::Embed => {
            let mut states = &*encoder.hidden(&rows)?;
            let embedding = |input: &&Input| {
                let (own, rest) = states.split_at(input.n_tokens() * hidden);
                states = rest;
                let mut vector = pooling::pooled(recipe.pooling, own, hidden);
                if recipe.normalize {
                    pooling::normalize(&mut vector);
                }
                Output::Embedding(vector)
            };
            Ok(inputs.iter().map(embedding).collect())
        }
        EncoderTask::Rerank => Ok(encoder.logits(&rows)?.into_iter().map(Output::Score).collect()),
        EncoderTask::TokenClassify => {
            let logits = encoder.logits(&rows)?;
            let names = &encoder.shape.labels;
            let mut rows = logits.chunks_exact(names.len());
            let labels = |input: &&Input| {
                let own = rows.by_ref().take(input.n_tokens());
                Output::Labels(token_labels(names, own, &input.spans))
            };
            Ok(inputs.iter().map(labels).collect())
        }
    }
}

fn token_labels<'l>(
    names: &[String],
    rows: impl Iterator<Item = &'l [f32]>,
    spans: &[(usize, usize)],
) -> Vec<TokenLabel> {
    let mut end_before = None;
    rows.enumerate()
        .filter_map(|(i, row)| {
            let (start, end) = spans.get(i).copied().filter(|(start, end)| end > start)?;
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))?;
            let total: f32 = row.iter().map(|x| (x - row[best]).exp()).sum();
            let continues = end_before.replace(end) == Some(start);
            Some(TokenLabel { label: names[best].clone(), score: 1.0 / total, start, end, continues })
        })
        .collect()
}
