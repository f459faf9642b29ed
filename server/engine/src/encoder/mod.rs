//! Encoders: models that read a text at once and give a vector, a score, or a label for each token.
//!
//! Several texts are computed together as packed rows without padding; a text's result has the same bits whatever is
//! beside it, as everything on these [kernels](crate::kernels).

mod body;
mod config;
mod engine;
mod entities;
#[cfg(test)]
mod golden;
mod graph;
mod input;
mod load;
mod pooling;
#[cfg(test)]
mod tests;
mod worker;

pub use engine::{
    Encoded, EncoderEngine, EncoderLimits, EncoderStats, EncoderSubmitError, EncoderTask, MAX_REQUEST_TOKENS,
    Output, Results,
};
pub use entities::{Aggregation, Entity, TokenLabels};
pub use input::{Input, Pairs};
pub use load::is_encoder;
#[cfg(feature = "onnx")]
pub(crate) use {
    body::Body,
    config::{CONFIG, Head, label_names},
    graph::Row,
    load::{Loaded, batch_tokens, context_length, limits, tokens},
    pooling::{Pooling, Recipe, pooled},
};
