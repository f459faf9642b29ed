//! Decoders: shape, positions and forward pass.

mod decoder;
mod family;
mod gguf_config;
mod hf_config;
mod layer;
mod load;
mod rope;
mod shape;

pub(crate) use decoder::{BLOCK_TOKENS, Decoder, StepSequence};
pub(crate) use family::Family;
pub(crate) use gguf_config::from_gguf;
pub(crate) use hf_config::{CONFIG, HfConfig, from_hf};
pub(crate) use load::Source;
pub(crate) use shape::{Biases, Local, Shape};
