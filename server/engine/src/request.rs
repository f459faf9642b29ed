//! One request to generate text, and what comes back.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{Constraint, ModelFacts};

/// Receives the events of one request, in order, on the engine's thread: it must not block (hand over to a
/// channel with `try_send`). `Break` cancels the request, as [`CancelToken::cancel`] does. Exactly one
/// [`Event::Finished`] comes last, unless the sink broke off; then the sink is dropped without it.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateRequest {
    pub prompt_tokens: Vec<u32>,
    pub sampling: SamplingParams,
    /// Upper bound on output tokens; `None` = until the context is full.
    pub max_tokens: Option<u32>,
    /// Generation ends before the first occurrence of one of these in the output text.
    pub stop: Vec<String>,
    /// Wall-clock limit, queueing included, checked at every step.
    pub deadline: Option<Instant>,
    /// `Some(n)`: report the log-probability of each token and of the `n` likeliest ones.
    pub logprobs: Option<u32>,
    /// Do not end at the model's end-of-text tokens (for load tests).
    pub ignore_eos: bool,
    /// Neither an end-of-text token nor a stop string ends the output before it has so many tokens. A constraint may,
    /// once nothing else can follow.
    pub min_tokens: u32,
    /// What the output must be. It ends with [`FinishReason::Stop`] once it is whole; cut off by `max_tokens` or a stop
    /// string, it is a beginning of what it must be.
    pub constraint: Option<Constraint>,
    /// Whose keys and values may be used again: those of earlier requests with the same salt. `None` = of all others
    /// without one.
    pub salt: Option<[u8; 32]>,
    /// Guess tokens ahead, which changes the speed and not the output.
    pub speculation: Option<Speculation>,
}

/// Guessing by prompt lookup: what followed the last tokens when they occurred before is computed along with them, and
/// kept as far as it is what the model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens that must have occurred before, 1 to 16.
    pub ngram: u32,
    /// Tokens to guess at most, 1 to 32.
    pub max_draft: u32,
}

/// How the next token is chosen. The defaults sample from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 = greedy.
    pub temperature: f32,
    /// Keep the likeliest tokens up to this mass, in (0, 1]; 1 = off.
    pub top_p: f32,
    /// Keep the `k` likeliest; 0 = off.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the likeliest one, in [0, 1); 0 = off.
    pub min_p: f32,
    /// Same seed, prompt and parameters: same output. `None` = a new one each time.
    pub seed: Option<u64>,
    /// In [-2, 2]: subtracted once from each token that the output contains.
    pub presence_penalty: f32,
    /// In [-2, 2]: subtracted once per occurrence in the output.
    pub frequency_penalty: f32,
    /// > 0, 1 = off: divides the logits of tokens in prompt or output.
    pub repetition_penalty: f32,
    /// Added to single logits, in [-100, 100].
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// What a sink receives.
#[derive(Clone, Debug)]
pub enum Event {
    Token(Token),
    Finished(Finished),
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    /// Text that became certain with this token: whole characters, free of stop strings; often empty, since
    /// text that may be the start of a stop string or of a character is held back.
    pub text: String,
    pub logprob: Option<TokenLogprob>,
}

/// Log-probabilities at one position, of the model's distribution before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub logprob: f32,
    /// The token's own text.
    pub token: String,
    /// What the token stands for, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<TopLogprob>,
}

/// One alternative.
#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    pub id: u32,
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// The last event of a request.
#[derive(Clone, Debug)]
pub struct Finished {
    pub reason: FinishReason,
    /// Text that was still held back; append it to the output.
    pub text: String,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    pub usage: Usage,
    pub timings: Timings,
}

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End-of-text token or stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    Cancelled,
    Deadline,
    /// The engine failed on this request; a fault of ours.
    Error(String),
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    /// Guessed tokens that were what the model says. They are among `completion_tokens`.
    pub accepted_draft_tokens: u32,
    /// Guessed tokens that were computed in vain.
    pub rejected_draft_tokens: u32,
    /// Prompt tokens whose keys and values were there already and not computed again.
    pub cached_tokens: u32,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission until a sequence slot was free.
    pub queue: Duration,
    /// From then to the first token (or the end, without one).
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// 429 with `Retry-After`.
    #[error("the queue is full ({queued} requests wait); retry in {} s", retry_after.as_secs())]
    QueueFull { queued: usize, retry_after: Duration },
    /// 400.
    #[error(
        "the prompt has {prompt_tokens} tokens, the context holds {context_length} with the output; shorten it"
    )]
    PromptTooLong { prompt_tokens: usize, context_length: u32 },
    /// 400: `field` is the name in [`GenerateRequest`] or [`SamplingParams`].
    #[error("`{field}`: {what}")]
    Invalid { field: &'static str, what: String },
    /// 503.
    #[error("the engine is shutting down; retry elsewhere")]
    ShuttingDown,
}

/// Ends one request early; [`Event::Finished`] with [`FinishReason::Cancelled`] follows within a step.
#[derive(Clone, Debug, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
}

impl CancelToken {
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

/// Refuses what cannot be computed, by the name of the field.
pub(crate) fn validate(request: &GenerateRequest, facts: &ModelFacts) -> Result<(), SubmitError> {
    let invalid = |field, what: String| Err(SubmitError::Invalid { field, what });
    let n_prompt = request.prompt_tokens.len();
    if n_prompt == 0 {
        return invalid("prompt_tokens", "is empty; send at least one token".to_owned());
    }
    // At least one token must fit behind the prompt.
    if n_prompt >= facts.context_length as usize {
        return Err(SubmitError::PromptTooLong {
            prompt_tokens: n_prompt,
            context_length: facts.context_length,
        });
    }
    if let Some(id) = request.prompt_tokens.iter().find(|id| **id >= facts.vocabulary_size) {
        return invalid("prompt_tokens", format!("token {id} is outside 0..{}", facts.vocabulary_size));
    }
    if request.max_tokens == Some(0) {
        return invalid("max_tokens", "is 0; ask for at least 1".to_owned());
    }
    if request.max_tokens.is_some_and(|most| most < request.min_tokens) {
        return invalid("min_tokens", format!("is {}, more than `max_tokens`", request.min_tokens));
    }
    if request.stop.len() > MAX_STOP_STRINGS {
        return invalid("stop", format!("has {} strings, more than {MAX_STOP_STRINGS}", request.stop.len()));
    }
    if request.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return invalid(
            "stop",
            format!("holds a string that is empty or longer than {MAX_STOP_BYTES} bytes"),
        );
    }
    if let Some(n) = request.logprobs.filter(|n| *n > MAX_LOGPROBS) {
        return invalid("logprobs", format!("is {n}, more than {MAX_LOGPROBS}"));
    }
    if let Some(Speculation { ngram, max_draft }) = request.speculation
        && !((1..=16).contains(&ngram) && (1..=32).contains(&max_draft))
    {
        let what = format!("has ngram {ngram}, from 1 to 16, and max_draft {max_draft}, from 1 to 32");
        return invalid("speculation", what);
    }
    let s = &request.sampling;
    // `contains` is false for NaN.
    let ranges = [
        ("temperature", s.temperature, (0.0..=100.0).contains(&s.temperature), "from 0 to 100"),
        ("top_p", s.top_p, s.top_p > 0.0 && s.top_p <= 1.0, "above 0 and at most 1"),
        ("min_p", s.min_p, (0.0..1.0).contains(&s.min_p), "at least 0 and below 1"),
        ("presence_penalty", s.presence_penalty, (-2.0..=2.0).contains(&s.presence_penalty), "from -2 to 2"),
        (
            "frequency_penalty",
            s.frequency_penalty,
            (-2.0..=2.0).contains(&s.frequency_penalty),
            "from -2 to 2",
        ),
        (
            "repetition_penalty",
            s.repetition_penalty,
            s.repetition_penalty > 0.0 && s.repetition_penalty <= 100.0,
            "above 0 and at most 100",
        ),
    ];
    for (field, value, fine, allowed) in ranges {
        if !fine {
            return invalid(field, format!("is {value}, must be {allowed}"));
        }
    }
    for &(id, bias) in &s.logit_bias {
        if id >= facts.vocabulary_size || !(-100.0..=100.0).contains(&bias) {
            let what = format!(
                "{id}: {bias} is not a token below {} with a bias from -100 to 100",
                facts.vocabulary_size
            );
            return invalid("logit_bias", what);
        }
    }
    Ok(())
}

const MAX_STOP_STRINGS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_LOGPROBS: u32 = 20;
