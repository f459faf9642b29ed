//! How Candela is proved: an in-memory API server, a fault proxy, scenarios on it and on real clusters.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod cluster;
pub mod conformance;
pub mod fake;
pub mod proxy;
pub mod sim;
