//! The inference server: OpenAI API over the engine, fetching of weights, and a process's life from start to drain.
//! No model code here: that is `candela-engine`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod cli;
pub mod serve;

pub mod fetch;

mod api;
mod app;
mod exit;
mod health;
mod http2;
mod internal;
mod lifecycle;
mod listen;
mod loaded;
mod metrics;
mod model;
mod oip;
mod progress;
mod registry;
mod resources;
mod resting;
pub mod telemetry;
mod trust;

pub use app::Limits;
pub use exit::Fatal;
pub use registry::{Alias, Control, RegistryOptions};
