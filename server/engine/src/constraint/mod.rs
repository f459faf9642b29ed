//! Constraints on an output: JSON of a schema, a regular expression, a grammar. Compiled by llguidance into a parser
//! that says, before each token, which tokens may come.
//!
//! Compiling happens on the caller's side, within bounds, and never on the engine's thread. Masks are computed on a
//! thread of their own while the model computes the next logits, so that a step seldom waits for one.

mod compiler;
mod grammar;
mod mask;
#[cfg(test)]
mod tests;

pub(crate) use compiler::Compiler;
pub use grammar::Grammar;
pub(crate) use mask::Tracker;

use std::{fmt, sync::Arc};

use llguidance::{Matcher, toktrie::SimpleVob};

use mask::Masks;

/// A compiled grammar for one model, before its first token. Clones are independent outputs.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    /// Tokens that may come first.
    first: Arc<SimpleVob>,
    masks: Masks,
}

impl Constraint {
    /// How many of these tokens an output may begin with, and whether it may end after them.
    pub(crate) fn takes(&self, tokens: &[u32]) -> (usize, bool) {
        let mut matcher = self.matcher.clone();
        let n = matcher.try_consume_tokens(tokens).unwrap_or(0);
        (n, n == tokens.len() && matcher.is_accepting().unwrap_or(false))
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("first_tokens", &self.first.num_set()).finish_non_exhaustive()
    }
}

/// Why a grammar cannot be kept to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The client's affair: the grammar says what cannot be expressed, or nothing satisfies it.
    #[error("{0}")]
    Refused(String),
    /// Likewise: it is larger or deeper than may be, or compiling it takes too much.
    #[error("{0}; send a smaller one")]
    TooLarge(String),
    /// So many grammars are being compiled that one more would have to wait.
    #[error("too many grammars are being compiled; retry soon")]
    Busy,
    /// This model cannot be constrained.
    #[error("this model's output cannot be constrained: {0}")]
    Model(String),
}
