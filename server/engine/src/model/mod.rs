//! The Llama graph: shape, positions, cache and forward pass.

mod gguf_config;
mod hf_config;
pub(crate) mod kv_cache;
mod llama;
mod rope;
mod shape;

pub(crate) use gguf_config::from_gguf;
pub(crate) use hf_config::{CONFIG, HfConfig, from_hf};
pub(crate) use kv_cache::KvCache;
pub(crate) use llama::{Chunk, Llama};
pub(crate) use shape::{Biases, Shape};
