//! The planner's decisions, in the domain's words.

#![allow(clippy::unwrap_used, clippy::panic)]

mod argocd;
mod drift;
mod fixtures;
mod generated;
mod health;
mod invariants;
mod plans;
mod policy;
mod purity;
mod refusals;
mod statuses;
