//! The control plane of Candela: watches resources, plans (in `candela-planner`), applies, prunes, reports.
//!
//! Reading order: `reconcile` is one pass, `run` is a process, the rest is what they stand on.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admin;
pub mod apply;
pub mod backoff;
pub mod cache;
pub mod client;
mod cluster_keys;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod lease;
pub mod metrics;
pub mod observe;
pub mod permit;
pub mod planted;
pub mod prune;
pub mod pull;
pub mod queue;
pub mod reconcile;
pub mod run;
pub mod status;
#[cfg(test)]
mod testing;
pub mod watches;

pub use config::OperatorConfig;
pub use planted::{Planted, PlantedBug};
pub use run::{RunError, RunOptions, run};
