//! The pure half of the operator: what was observed goes in, the children that should exist and the status come
//! out. No client, no clock, no tokio; a test reads `Cargo.toml` to keep it so.
//!
//! `resolve` → `desired` → (the operator applies and prunes) → `status`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod observed;
mod owned;
mod plan;
mod settings;

mod fit;
mod models;
mod names;
mod resolve;

mod children;
mod differ;
mod status;

pub mod check;
pub mod rbac;

pub use children::{desired, server_config};
pub use differ::owned_fields_differ;
pub use models::{ResolvedModel, Source};
pub use observed::{ClusterKeys, NodeFacts, Observed, SecretFacts, is_ours};
pub use owned::{OwnedKind, Presence};
pub use plan::{ApplyFailure, Blocked, Child, Plan, PlanOutcome, Stamp, Waiting};
pub use resolve::{Resolved, resolve};
pub use settings::{Device, ImageRule, NetworkPolicyEnforced, Settings};
pub use status::{recheck_after, status, unreadable};

use candela_crds::{LlmDeployment, Reason};

/// Server-side apply's field manager for every child and status.
pub const FIELD_MANAGER: &str = "candela-operator";

/// `resolve` and `desired` in one; a blocked spec gives an incomplete plan, without children unless it is to stop.
pub fn plan(cr: &LlmDeployment, seen: &Observed, settings: &Settings) -> PlanOutcome {
    let resolved = resolve(cr, seen, settings);
    let plan = match &resolved {
        Ok(resolved) => desired(resolved, seen),
        Err(blocked) => Plan {
            children: stopping(cr, seen, settings, blocked),
            waiting: Some(Waiting::Resolution),
            ..Plan::default()
        },
    };
    PlanOutcome { resolved, plan, apply_failure: None }
}

/// Somebody else's Service or ConfigMap must not keep replicas running that nobody wants: of a resource that is to
/// stop, the Deployment is scaled down although the rest cannot be applied.
fn stopping(cr: &LlmDeployment, seen: &Observed, settings: &Settings, blocked: &Blocked) -> Vec<Child> {
    if blocked.reason != Reason::NameConflict || resolve::wanted_replicas(&cr.spec) != 0 {
        return Vec::new();
    }
    let Ok(resolved) = resolve::resolve_spec(cr, seen, settings) else { return Vec::new() };
    let ours = |child: &Child| {
        seen.child(child.kind, child.name())
            .is_some_and(|live| observed::controller_uid(live) == Some(&resolved.uid))
    };
    let children = desired(&resolved, seen).children;
    children.into_iter().filter(|child| child.kind == OwnedKind::Deployment && ours(child)).collect()
}
