//! The messages and the service of the Open Inference Protocol's gRPC half, made from Triton's .proto files, and the codec
//! that looks at a message before it is built.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod codec;

/// Package `inference` of the .proto files.
#[allow(clippy::all, missing_docs, unreachable_pub, rustdoc::all, reason = "generated")]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}
