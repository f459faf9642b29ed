//! The handle to a loaded model.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    CancelToken, Constraint, ConstraintError, EngineConfig, Event, FinishReason, GenerateRequest, Grammar,
    LoadError, LoadProgress, ModelFacts, ModelSource, SamplingParams, Sink, SubmitError, TextError,
    admission::{Admission, Pending, Phase},
    constraint::Compiler,
    kernels::thread_name,
    load, request, step,
    text::Text,
};

/// A loaded model; cheap to clone. When the last clone goes, its requests are cancelled and its thread is joined.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    facts: ModelFacts,
    number: usize,
    text: Arc<Text>,
    admission: Arc<Admission>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Made when the first constraint is wanted: the trie of a large vocabulary takes tenths of a second and some MB.
    compiler: OnceLock<Result<Compiler, ConstraintError>>,
}

/// Whether [`Engine::encode`] adds the tokens that the tokenizer puts around a text, such as begin-of-text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// For plain text (completions).
    Add,
    /// For the output of [`Engine::render_chat`], which contains what it needs.
    AsWritten,
}

/// Input of a chat template. Values are passed to it as they are.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// Array of `{role, content, …}`.
    pub messages: serde_json::Value,
    /// Array of tool definitions, or null.
    pub tools: serde_json::Value,
    /// End with the start of an answer.
    pub add_generation_prompt: bool,
    /// Further variables (`chat_template_kwargs`).
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// Tokens in a block of the KV cache.
pub const KV_BLOCK_TOKENS: usize = crate::kernels::BLOCK_TOKENS;

/// What an engine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Its number in this process: [`thread_name`] of it is how the names of its threads begin.
    pub number: usize,
    /// Sequences that hold a slot.
    pub running: usize,
    /// Requests that wait for one.
    pub queued: usize,
    /// Since [`Engine::stats`] first saw the last progress: a step that began or ended, or one of the many tasks in it.
    /// Zero when there is nothing to do. So it tells seconds of silence, however long a step is, if it is asked more
    /// often than that. Large = wedged.
    pub heartbeat_age: Duration,
    /// False once [`Engine::drain`] or [`Engine::shutdown`] was called.
    pub accepting: bool,
    /// Prompt tokens of the requests that wait.
    pub queued_tokens: usize,
    /// Tokens of running sequences whose keys and values are there; those that several share count for each.
    pub kv_tokens: u64,
    /// Blocks of 32 tokens that sequences hold, and all there are. Others may have contents to be used again.
    pub kv_blocks_used: usize,
    pub kv_blocks_total: usize,
    pub prompt_tokens_total: u64,
    pub completion_tokens_total: u64,
    pub steps_total: u64,
    /// Tokens that they computed, of prompts and behind them.
    pub step_tokens_total: u64,
    /// Prompt tokens that were looked for in the blocks, and those that were there and not computed again.
    pub prefix_query_tokens_total: u64,
    pub prefix_hit_tokens_total: u64,
    /// Sequences that lost their blocks to older ones, and computed their keys and values again later.
    pub preemptions_total: u64,
    /// Tokens that were guessed ahead, and those of them that were right.
    pub draft_tokens_total: u64,
    pub accepted_tokens_total: u64,
}

impl Engine {
    /// Reads and checks a model's files, converts its weights and starts the engine's thread. Blocks; `progress`
    /// is called on this thread at least once per tensor.
    /// The engine computes on [`EngineConfig::threads`] threads of its own; several engines share nothing.
    pub fn load(
        source: &ModelSource,
        config: &EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        let loaded = load::load(source, config, progress)?;
        let admission = Arc::new(Admission::new(config.into(), loaded.model.pool().pulse()));
        let text = Arc::new(loaded.text);
        let number = loaded.model.pool().number();
        let worker = step::Worker::new(
            loaded.model,
            Arc::clone(&text),
            Arc::clone(&admission),
            step::Limits {
                context_length: loaded.facts.context_length as usize,
                step_tokens: config.step_tokens,
                n_blocks: loaded.n_blocks,
            },
        );
        let thread = thread::Builder::new()
            .name(format!("{}engine", thread_name(number)))
            .spawn(move || worker.run())
            .map_err(LoadError::Thread)?;
        Ok(Self {
            inner: Arc::new(Inner {
                facts: loaded.facts,
                number,
                text,
                admission,
                thread: Mutex::new(Some(thread)),
                compiler: OnceLock::new(),
            }),
        })
    }

    pub fn facts(&self) -> &ModelFacts {
        &self.inner.facts
    }

    /// Tokenises. CPU work proportional to the text: keep it off an async runtime's threads.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, TextError> {
        self.inner.text.encode(text, special, self.inner.facts.context_length)
    }

    /// The text of `tokens`, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.inner.text.decode(tokens)
    }

    /// The text of one token on its own, special ones included; a part of a character is `\u{fffd}`.
    pub fn token_text(&self, token: u32) -> String {
        self.inner.text.token_text(token)
    }

    /// Messages as one prompt, by the model's own template.
    pub fn render_chat(&self, request: &ChatRequest) -> Result<String, TextError> {
        self.inner.text.render_chat(request)
    }

    /// Compiles what an output must be. CPU work of up to seconds: keep it off an async runtime's threads.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint, ConstraintError> {
        let new = || Compiler::new(&self.inner.text, self.inner.facts.vocabulary_size);
        let compiler = self.inner.compiler.get_or_init(new);
        compiler.as_ref().map_err(Clone::clone)?.compile(grammar)
    }

    /// Source of the chat template that requests with tools are rendered by.
    pub fn tool_template(&self) -> Option<&str> {
        self.inner.text.template.as_ref().map(|template| template.tool_source())
    }

    /// Admits a request or says why not; never blocks on the engine.
    pub fn submit(&self, request: GenerateRequest, sink: Sink) -> Result<CancelToken, SubmitError> {
        request::validate(&request, &self.inner.facts)?;
        let cancel = CancelToken::default();
        self.inner.admission.submit(Pending {
            request,
            sink,
            cancel: cancel.clone(),
            submitted: Instant::now(),
        })?;
        Ok(cancel)
    }

    /// Generates one token, so that lazily built state exists before the first client comes. Blocks.
    pub fn warm_up(&self) -> Result<Duration, WarmUpError> {
        let start = Instant::now();
        let (sender, receiver) = mpsc::channel();
        let request = GenerateRequest {
            prompt_tokens: vec![0],
            sampling: SamplingParams::greedy(),
            max_tokens: Some(1),
            ignore_eos: true,
            ..GenerateRequest::default()
        };
        let sink: Sink = Box::new(move |event| {
            if let Event::Finished(finished) = event {
                // The receiver below outlives the request; if it is gone, nobody wants to know.
                let _ = sender.send(finished.reason);
            }
            std::ops::ControlFlow::Continue(())
        });
        self.submit(request, sink)?;
        match receiver.recv() {
            Ok(FinishReason::Error(message)) => Err(WarmUpError::Failed(message)),
            Ok(FinishReason::Cancelled) | Err(_) => Err(WarmUpError::Submit(SubmitError::ShuttingDown)),
            Ok(_) => Ok(start.elapsed()),
        }
    }

    pub fn stats(&self) -> Stats {
        use std::sync::atomic::Ordering::Relaxed;
        let seen = self.inner.admission.snapshot();
        let counters = &self.inner.admission.counters;
        Stats {
            number: self.inner.number,
            running: seen.running,
            queued: seen.queued,
            heartbeat_age: seen.heartbeat_age,
            accepting: seen.phase == Phase::Open,
            queued_tokens: seen.queued_tokens,
            kv_tokens: seen.figures.tokens as u64,
            kv_blocks_used: seen.figures.used_blocks,
            kv_blocks_total: seen.figures.total_blocks,
            prompt_tokens_total: counters.prompt_tokens.load(Relaxed),
            completion_tokens_total: counters.completion_tokens.load(Relaxed),
            steps_total: counters.steps.load(Relaxed),
            step_tokens_total: counters.step_tokens.load(Relaxed),
            prefix_query_tokens_total: seen.figures.prefix_queries,
            prefix_hit_tokens_total: seen.figures.prefix_hits,
            preemptions_total: seen.figures.preemptions,
            draft_tokens_total: seen.figures.drafted,
            accepted_tokens_total: seen.figures.accepted,
        }
    }

    /// Admits nothing from now on; what was admitted finishes.
    pub fn drain(&self) {
        self.inner.admission.advance(Phase::Draining);
    }

    /// Waits until nothing runs or waits. False = `deadline` came first.
    pub fn wait_idle(&self, deadline: Instant) -> bool {
        self.inner.admission.wait_idle(deadline)
    }

    /// Admits nothing, cancels what was admitted (each sink still gets its `Finished`) and joins the thread.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("facts", &self.inner.facts).finish_non_exhaustive()
    }
}

impl Inner {
    fn stop(&self) {
        self.admission.advance(Phase::Stopping);
        let handle = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A sink may own the last clone: the engine's thread cannot join itself, and ends on its own.
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != thread::current().id())
            && handle.join().is_err()
        {
            tracing::error!("the engine thread ended by a panic");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Why [`Engine::warm_up`] produced no token.
#[derive(Debug, thiserror::Error)]
pub enum WarmUpError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the model cannot compute a token: {0}")]
    Failed(String),
}
