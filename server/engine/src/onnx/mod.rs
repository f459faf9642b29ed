//! Encoders as ONNX graphs, computed by the runtime `rten` (docs/adr/0012-onnx-by-rten.md).
//!
//! A graph brings its own operators, so it does not have the promises of our kernels: a text's vector may differ in its
//! last bits with the texts that are computed beside it.

mod config;
mod graph;
mod inspect;
mod load;
mod protobuf;

pub(crate) use config::is_encoder;
pub(crate) use graph::Graph;
pub(crate) use load::load;
