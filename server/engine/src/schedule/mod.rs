//! Who computes what in the next step, and where keys and values lie. Pure: knows of tokens and block numbers, not of
//! models, sinks or clocks, so that all of it is tested without a model.

mod blocks;
mod draft;
mod scheduler;
#[cfg(test)]
mod tests;

pub(crate) use blocks::Salt;
pub(crate) use scheduler::{Figures, Id, Limits, MAX_DRAFT_ROWS, Part, Scheduler, Work};

/// Tokens per block of keys and values.
pub(crate) use crate::model::BLOCK_TOKENS;
