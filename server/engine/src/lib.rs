//! The inference engine: loads a decoder and generates text for several requests at once.
//!
//! One [`Engine`] is one model. Loading is blocking; afterwards a thread of the engine's own holds the weights and
//! advances all running sequences together, one step at a time. Callers [`Engine::submit`] a request with a sink
//! that receives [`Event`]s on that thread; nothing here knows about HTTP or an async runtime.
//!
//! Everything read from a model's files is treated as hostile input: it yields a [`LoadError`] that names the file,
//! never a panic and never an allocation that the size of the files does not justify.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod admission;
mod config;
mod constraint;
mod contained;
mod encoder;
mod engine;
mod error;
mod facts;
mod files;
#[cfg(test)]
mod golden;
mod kernels;
mod load;
mod model;
#[cfg(feature = "onnx")]
mod onnx;
mod request;
mod sampler;
mod schedule;
mod sequence;
mod step;
pub mod testing;
#[cfg(test)]
mod tests;
mod text;
mod weights;

pub use config::{EmbeddedFile, EngineConfig, KvType, ModelSource, Quantization};
pub use constraint::{Constraint, ConstraintError, Grammar};
pub use contained::panic_is_contained;
pub use encoder::{
    Aggregation, Encoded, EncoderEngine, EncoderLimits, EncoderStats, EncoderSubmitError, EncoderTask,
    Entity, Input, MAX_REQUEST_TOKENS, Output, Pairs, Results, TokenLabels, is_encoder,
};
pub use engine::{ChatRequest, Engine, KV_BLOCK_TOKENS, SpecialTokens, Stats, WarmUpError};
pub use error::{LoadError, LoadPhase, LoadProgress, TextError};
pub use facts::{Memory, ModelFacts};
pub use kernels::thread_name;
pub use request::{
    CancelToken, Event, FinishReason, Finished, GenerateRequest, SamplingParams, Sink, Speculation,
    SubmitError, Timings, Token, TokenLogprob, TopLogprob, Usage,
};
