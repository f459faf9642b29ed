//! The planner's decisions, in the domain's words.

#![allow(clippy::unwrap_used, clippy::panic)]

mod additional_models;
mod argocd;
mod bounds;
mod drift;
mod facts;
mod fixtures;
mod generated;
mod health;
mod invariants;
mod placement;
mod plans;
mod pod_failures;
mod policy;
mod purity;
mod refusals;
mod statuses;
mod stopping;
mod trust;

/// With sorted keys, as the files to compare with are written.
fn sorted_yaml(value: &impl serde::Serialize) -> String {
    let mut value = serde_json::to_value(value).unwrap();
    value.sort_all_objects();
    serde_yaml::to_string(&value).unwrap()
}
