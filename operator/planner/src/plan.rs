//! A plan: the children that should exist, and whether they are all.

use std::collections::BTreeSet;

use candela_crds::{ConditionType, Reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use crate::{OwnedKind, Resolved};

/// One child, ready to be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    pub kind: OwnedKind,
    /// The whole object as server-side apply sends it: `apiVersion`, `kind`, name, namespace, owner, our fields.
    pub object: Value,
}

impl Child {
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().expect("every child is built with a name")
    }
}

/// The children that should exist, in the order in which they are applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub children: Vec<Child>,
    /// Children of earlier plans that are not applied any more and not pruned yet, because pods still use them.
    pub kept: BTreeSet<(OwnedKind, String)>,
    /// Only then may anything be pruned.
    pub complete: bool,
    /// What an incomplete plan waits for.
    pub waiting: Option<Waiting>,
}

/// What an incomplete plan waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A spec that can be resolved.
    Resolution,
}

/// Why a spec cannot be acted on. Not an error: it becomes a condition, and nothing is applied or pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The condition that is False.
    pub condition: ConditionType,
    pub reason: Reason,
    /// What is wrong and what to do next.
    pub message: String,
}

/// A child that the API server refused, as the operator saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyFailure {
    pub kind: OwnedKind,
    pub name: String,
    /// The API server's words.
    pub message: String,
    /// True if trying again may help (timeouts, conflicts); false for refusals (403, 422).
    pub retryable: bool,
}

/// What one pass decided and did; the input of `status`.
#[derive(Clone, Debug)]
pub struct PlanOutcome {
    pub resolved: Result<Resolved, Blocked>,
    pub plan: Plan,
    /// The first child that could not be applied, if any: set by the operator after applying.
    pub apply_failure: Option<ApplyFailure>,
}

/// When, and of which generation, a status speaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    pub generation: i64,
    pub now: Time,
}
