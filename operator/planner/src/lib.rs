//! The pure half of the operator: what was observed goes in, the children that should exist and the status come
//! out. No client, no clock, no tokio; a test reads `Cargo.toml` to keep it so.
//!
//! `resolve` → `desired` → (the operator applies and prunes) → `status`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod observed;
mod owned;
mod plan;
mod resolve;
mod settings;

pub use observed::{NodeFacts, Observed, SecretFacts};
pub use owned::{OwnedKind, Presence};
pub use plan::{ApplyFailure, Blocked, Child, Plan, PlanOutcome, Stamp, Waiting};
pub use resolve::Resolved;
pub use settings::{Device, ImageRule, NetworkPolicyEnforced, Settings};

use candela_crds::{LlmDeployment, LlmDeploymentStatus};
use serde_json::Value;

/// Server-side apply's field manager for every child and status.
pub const FIELD_MANAGER: &str = "candela-operator";

/// Validates and dereferences. `Err` is a value that becomes a condition, never a reason to try again.
pub fn resolve(_cr: &LlmDeployment, _seen: &Observed, _settings: &Settings) -> Result<Resolved, Blocked> {
    unimplemented!("next commit")
}

/// The children that should exist. Total: a resolved spec always has a plan.
pub fn desired(_resolved: &Resolved, _seen: &Observed) -> Plan {
    unimplemented!("next commit")
}

/// `resolve` and `desired` in one; a blocked spec gives an incomplete plan without children.
pub fn plan(_cr: &LlmDeployment, _seen: &Observed, _settings: &Settings) -> PlanOutcome {
    unimplemented!("next commit")
}

/// The whole status, computed anew; times of conditions that did not change are kept from `cr.status`.
pub fn status(
    _cr: &LlmDeployment,
    _outcome: &PlanOutcome,
    _seen: &Observed,
    _settings: &Settings,
    _stamp: Stamp,
) -> LlmDeploymentStatus {
    unimplemented!("next commit")
}

/// True if the live object must be applied: a desired field is missing or different, or our field manager still
/// owns a field that is no longer desired.
pub fn owned_fields_differ(_desired: &Value, _live: &Value) -> bool {
    unimplemented!("next commit")
}

/// When to compute the status again although nothing changed, because it depends on how long something lasts.
pub fn recheck_after(_seen: &Observed, _stamp: &Stamp) -> Option<std::time::Duration> {
    unimplemented!("next commit")
}
