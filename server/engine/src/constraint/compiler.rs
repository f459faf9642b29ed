//! From a grammar to a [`Constraint`], on a thread of its own with a bounded stack, and not for longer than a client
//! may be made to wait.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use llguidance::{
    Matcher, ParserFactory,
    api::ParserLimits,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};

use super::{Constraint, ConstraintError, Grammar, mask::Masks};
use crate::{contained, text::Text};

/// For one grammar; what takes longer is refused. Bounds on the work (below) end it soon after.
const PATIENCE: Duration = Duration::from_secs(2);
/// Grammars that are compiled at the same time, those included that nobody waits for any more.
const MAX_COMPILING: usize = 8;
/// Address space; only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;
/// Longer tokens are never allowed in constrained output: the trie is built and walked byte by byte, recursively.
const MAX_TOKEN_BYTES: usize = 1024;

/// Compiles grammars for one vocabulary.
pub(crate) struct Compiler {
    factory: Arc<ParserFactory>,
    masks: Masks,
    compiling: Arc<AtomicUsize>,
}

impl Compiler {
    /// `vocabulary` is the number of logits of the model, which may be more than the tokenizer's tokens.
    pub(crate) fn new(text: &Text, vocabulary: u32) -> Result<Self, ConstraintError> {
        let refuse = |what: String| ConstraintError::Model(what);
        let mut words = text.vocabulary_bytes(vocabulary).map_err(refuse)?;
        for word in words.iter_mut().filter(|word| word.len() > MAX_TOKEN_BYTES) {
            word.clear();
        }
        let ends: BTreeSet<TokenId> =
            text.end_of_text.iter().copied().filter(|id| *id < vocabulary).collect();
        let Some(&end) = ends.first() else {
            return Err(refuse("it has no end-of-text token".to_owned()));
        };
        let ends: Vec<TokenId> = ends.into_iter().collect();
        let build = || {
            let trie = TokTrie::from(&TokRxInfo::new(vocabulary, end), &words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(Vocabulary { trie });
            let slices = SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                .map_err(|err| err.to_string())?;
            factory.quiet();
            // Its own default allows each request hundreds of megabytes of lexer states, at 1 to 2 kB.
            *factory.limits_mut() = ParserLimits {
                max_lexer_states: 8_000,
                max_grammar_size: 200_000,
                verbose_errors: false,
                ..ParserLimits::default()
            };
            Ok(factory)
        };
        let factory = contained::run(build)
            .unwrap_or_else(|_| Err("building its vocabulary's trie panicked".to_owned()))
            .map_err(refuse)?;
        let masks = Masks::start().map_err(|err| refuse(format!("no thread could be started: {err}")))?;
        Ok(Self { factory: Arc::new(factory), masks, compiling: Arc::default() })
    }

    /// CPU work of up to [`PATIENCE`]: keep it off an async runtime's threads.
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<Constraint, ConstraintError> {
        let grammar = grammar.compile()?;
        let place = Place::take(&self.compiling).ok_or(ConstraintError::Busy)?;
        let (factory, masks) = (Arc::clone(&self.factory), self.masks.clone());
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let compiled = contained::run(|| {
                let mut matcher = Matcher::new(factory.create_parser(grammar));
                let first = matcher.compute_mask().map_err(|err| ConstraintError::Refused(reason(&err)))?;
                Ok(Constraint { matcher, first: Arc::new(first), masks })
            });
            let failed = |_| Err(ConstraintError::Refused("it makes the compiler fail".to_owned()));
            // Nobody may be waiting any more.
            let _ = sender.send(compiled.unwrap_or_else(failed));
            drop(place);
        };
        let thread = thread::Builder::new().name("candela-grammar".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map_err(|_| ConstraintError::Busy)?;
        receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let what = format!("compiling it takes longer than {} s", PATIENCE.as_secs());
            Err(ConstraintError::TooLarge(what))
        })
    }
}

/// What llguidance says, without the backtraces and states that it may add.
fn reason(err: &impl std::fmt::Display) -> String {
    let text = err.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    text.chars().take(500).collect()
}

/// One of the grammars being compiled.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Option<Self> {
        // Given back by `drop` also where it was one too many.
        let place = Self(Arc::clone(all));
        (all.fetch_add(1, Ordering::AcqRel) < MAX_COMPILING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A vocabulary as llguidance sees it: bytes only. Tokenising in our place would be a guess (`is_canonical`), so it
/// forces no tokens.
struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
