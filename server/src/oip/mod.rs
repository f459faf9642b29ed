//! The Open Inference Protocol, version 2, as KServe and Triton speak it: over HTTP with JSON or binary tensors, and over
//! gRPC. What it serves, admits and counts is that of the other routes: here are only its shapes.
//!
//! `contract` says how models are tensors, `tensor` takes inputs apart, `run` makes outputs; `http` and `body` are one way
//! in, `grpc` the other.

mod body;
mod contract;
mod generate;
pub(crate) mod grpc;
pub(crate) mod http;
mod path;
mod repository;
mod run;
mod tensor;
mod terms;

/// What `/v2` and `ServerMetadata` tell of this server.
const SERVER: &str = "candela";
const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "generate", "model_configuration", "model_repository", "parameters"];
