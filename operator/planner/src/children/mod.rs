//! `desired`: one file per kind of child, built from typed structs and erased once.

mod config_map;
mod deployment;
mod disruption_budget;
mod network_policy;
mod pod;
mod scheduling;
mod service;
mod service_account;
mod trust;
mod weights;

use std::collections::BTreeSet;

use candela_crds::{GROUP, VERSION};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::Serialize;

use crate::{Child, Observed, OwnedKind, Plan, Resolved, names};

pub use config_map::server_config;
pub(crate) use config_map::{VOLUME as CONFIG_VOLUME, name_for as config_map_name};
pub(crate) use pod::SERVER;
pub(crate) use weights::FETCH;

/// The children that should exist. Total: a resolved spec always has a plan.
///
pub fn desired(resolved: &Resolved, seen: &Observed) -> Plan {
    let mut children = vec![child(OwnedKind::ServiceAccount, &service_account::service_account(resolved))];
    if let Some(config) = config_map::config_map(resolved) {
        children.push(child(OwnedKind::ConfigMap, &config));
    }
    let mut kept: BTreeSet<_> =
        config_map::in_use(seen).into_iter().map(|name| (OwnedKind::ConfigMap, name)).collect();
    match &seen.cluster_keys {
        _ if !trust::is_mounted(resolved) => {}
        Some(keys) => children.push(child(OwnedKind::ConfigMap, &trust::config_map(resolved, keys))),
        // Not known is not gone.
        None => drop(kept.insert((OwnedKind::ConfigMap, trust::name(resolved)))),
    }
    children.push(child(OwnedKind::Service, &service::service(resolved)));
    if let Some(policy) = network_policy::network_policy(resolved) {
        children.push(child(OwnedKind::NetworkPolicy, &policy));
    }
    if let Some(budget) = disruption_budget::disruption_budget(resolved) {
        children.push(child(OwnedKind::PodDisruptionBudget, &budget));
    }
    children.push(child(OwnedKind::Deployment, &deployment::deployment(resolved)));
    Plan { children, kept, complete: true, waiting: None }
}

fn child(kind: OwnedKind, object: &impl Serialize) -> Child {
    Child { kind, object: serde_json::to_value(object).expect("Kubernetes types always serialise") }
}

/// Name, namespace, labels and owner: no builder writes them itself, so none can forget one.
fn metadata(resolved: &Resolved, kind: OwnedKind) -> ObjectMeta {
    ObjectMeta {
        name: Some(names::child(kind, &resolved.name)),
        namespace: Some(resolved.namespace.clone()),
        labels: Some(names::labels(&resolved.name)),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "LlmDeployment".to_owned(),
            name: resolved.name.clone(),
            uid: resolved.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

fn label_selector(resolved: &Resolved) -> LabelSelector {
    LabelSelector { match_labels: Some(names::selector(&resolved.name)), ..LabelSelector::default() }
}
