//! How Candela is proved: an in-memory API server, a fault proxy, scenarios on it and on real clusters.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod conformance;
pub mod fake;
