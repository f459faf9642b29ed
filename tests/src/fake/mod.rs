//! An API server in memory, for simulations: typed by a small registry, faithful where an operator can tell
//! (resource versions, server-side apply, preconditions, watches), with faults on demand. `conformance` compares its
//! answers with the real server's, so that what is proved here holds there.

pub mod actors;
pub mod answer;
pub mod defaults;
pub mod discovery;
mod dispatch;
pub mod faults;
pub mod fields;
pub mod merge;
pub mod reads;
mod record;
pub mod registry;
pub mod route;
pub mod rules;
pub mod schema;
pub mod server;
mod service;
pub mod ssa;
pub mod store;
pub mod verbs;
pub mod watch;

#[cfg(test)]
mod tests;

pub use faults::{Fault, On, Rule};
pub use record::Record;
pub use server::FakeCluster;
pub use service::ApiService;
