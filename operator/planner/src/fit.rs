//! What the nodes could hold, from their labels and what they offer; what is free at the moment is the scheduler's
//! knowledge and comes with the pods.

use std::collections::BTreeSet;

use candela_crds::{LlmDeployment, Quantity, Reason};

use crate::{NodeFacts, Observed};

/// Node label that GPU feature discovery writes.
pub(crate) const PRODUCT_LABEL: &str = "nvidia.com/gpu.product";

/// Whether any node could ever hold a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// No accelerator is asked for, no node is known, or some node is big enough.
    Possible,
    /// No node carries one of the product names; those that exist.
    UnknownProduct { wanted: Vec<String>, existing: Vec<String> },
    /// No node offers that many; the most that one offers.
    TooMany { resource: String, wanted: i64, nearest: Option<(String, i64)> },
    /// Only nodes that take no pods, being cordoned or not ready, offer that many; the first of them.
    Unavailable { resource: String, wanted: i64, node: String, offers: i64 },
    /// No node has that much memory at all, in bytes; the most that one has.
    LittleMemory { wanted: i64, nearest: Option<(String, i64)> },
}

/// Key of a node's memory in bytes, among what it can give.
pub(crate) const MEMORY: &str = "memory";

pub(crate) fn fit(cr: &LlmDeployment, seen: &Observed) -> Fit {
    let Some(accelerator) = &cr.spec.accelerator else {
        return memory(cr, &seen.nodes.iter().collect::<Vec<_>>());
    };
    if seen.nodes.is_empty() {
        return Fit::Possible;
    }
    let products = &accelerator.product_names;
    let matches = |node: &&NodeFacts| {
        products.is_empty()
            || node.labels.get(PRODUCT_LABEL).is_some_and(|product| products.contains(product))
    };
    let candidates: Vec<&NodeFacts> = seen.nodes.iter().filter(matches).collect();
    if candidates.is_empty() {
        return Fit::UnknownProduct { wanted: products.clone(), existing: existing_products(seen) };
    }
    let resource = accelerator.device.resource_name();
    let wanted = i64::from(accelerator.device.count);
    let offer = |node: &NodeFacts| node.allocatable.get(resource).copied().unwrap_or(0);
    let enough: Vec<&NodeFacts> = candidates.iter().copied().filter(|node| offer(node) >= wanted).collect();
    if enough.iter().any(|node| !node.unschedulable) {
        return memory(cr, &enough);
    }
    match most(&candidates, offer) {
        Some((node, offers)) if offers >= wanted => {
            Fit::Unavailable { resource: resource.to_owned(), wanted, node, offers }
        }
        nearest => Fit::TooMany { resource: resource.to_owned(), wanted, nearest },
    }
}

/// The node that offers most; ties go to the first name, so that the same nodes always give the same words.
fn most(nodes: &[&NodeFacts], offer: impl Fn(&NodeFacts) -> i64) -> Option<(String, i64)> {
    nodes
        .iter()
        .map(|node| (offer(node), node))
        .filter(|(amount, _)| *amount > 0)
        .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.name.cmp(&a.1.name)))
        .map(|(amount, node)| (node.name.clone(), amount))
}

/// What a replica sets aside, against what nodes have at all. Nodes whose memory is not known may have any.
fn memory(cr: &LlmDeployment, nodes: &[&NodeFacts]) -> Fit {
    let Some(wanted) = requested_memory(cr) else { return Fit::Possible };
    let offer = |node: &NodeFacts| node.allocatable.get(MEMORY).copied().unwrap_or(i64::MAX);
    let usable: Vec<&NodeFacts> = nodes.iter().copied().filter(|node| !node.unschedulable).collect();
    if usable.is_empty() || usable.iter().any(|node| offer(node) >= wanted) {
        return Fit::Possible;
    }
    Fit::LittleMemory { wanted, nearest: most(&usable, offer) }
}

/// Bytes that each replica sets aside: the request, or the limit where only that is written, as in every pod.
fn requested_memory(cr: &LlmDeployment) -> Option<i64> {
    let resources = cr.spec.resources.as_ref()?;
    let wanted = resources.requests.get(MEMORY).or_else(|| resources.limits.get(MEMORY))?;
    i64::try_from(Quantity::nano(wanted.as_str())? / 1_000_000_000).ok()
}

/// Bytes in the largest binary unit of which there are at least ten, rounded down: short, and close enough to choose by.
fn in_units(bytes: i64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let fitting = units.iter().find(|(_, shift)| bytes >> shift >= 10);
    fitting.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

fn existing_products(seen: &Observed) -> Vec<String> {
    let products: BTreeSet<&String> =
        seen.nodes.iter().filter_map(|node| node.labels.get(PRODUCT_LABEL)).collect();
    products.into_iter().cloned().collect()
}

impl Fit {
    /// The reason of `Schedulable=False`, if something is missing.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Possible => None,
            Self::UnknownProduct { .. } => Some(Reason::UnknownProduct),
            Self::TooMany { .. } | Self::Unavailable { .. } => Some(Reason::InsufficientAccelerators),
            Self::LittleMemory { .. } => Some(Reason::InsufficientMemory),
        }
    }

    /// What is missing and what to do, if anything is.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Possible => None,
            Self::UnknownProduct { wanted, existing } => Some(format!(
                "no node carries the label {PRODUCT_LABEL} with {}: {}",
                wanted.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "),
                if existing.is_empty() {
                    "no node carries that label at all; add nodes with GPUs, or remove `spec.accelerator.productNames`"
                        .to_owned()
                } else {
                    format!(
                        "those that exist are {}; write one of them in `spec.accelerator.productNames`, or add a node",
                        existing.join(", ")
                    )
                }
            )),
            Self::TooMany { resource, wanted, nearest } => Some(match nearest {
                Some((node, count)) => format!(
                    "no node offers {wanted} of {resource}: the nearest fit is node `{node}` with {count}; lower `spec.accelerator.device.count` to {count}, or add a bigger node"
                ),
                None => format!(
                    "no node offers {resource}: add a node with it and its device plugin, or correct `spec.accelerator.device.resourceName`"
                ),
            }),
            Self::Unavailable { resource, wanted, node, offers } => Some(format!(
                "no node that takes pods offers {wanted} of {resource}: node `{node}` with {offers} is cordoned or not ready; see `kubectl describe node {node}`, run `kubectl uncordon {node}` if it may be used again, or add a node"
            )),
            Self::LittleMemory { wanted, nearest } => {
                let wanted = in_units(*wanted);
                let nearest = nearest.as_ref().map_or_else(
                    || "add a node".to_owned(),
                    |(node, bytes)| {
                        format!(
                            "the nearest fit is node `{node}` with {}; lower `spec.resources.requests.memory` if the model needs less, or add a bigger node",
                            in_units(*bytes)
                        )
                    },
                );
                Some(format!("no node has the {wanted} of memory that each replica asks for: {nearest}"))
            }
        }
    }

    /// The most that one node offers, when that is not enough.
    pub(crate) fn nearest(&self) -> Option<String> {
        match self {
            Self::TooMany { resource, nearest: Some((node, count)), .. } => {
                Some(format!("{resource}: {count} on node {node}"))
            }
            Self::Unavailable { resource, node, offers, .. } => {
                Some(format!("{resource}: {offers} on node {node}, which is cordoned or not ready"))
            }
            Self::LittleMemory { nearest: Some((node, bytes)), .. } => {
                Some(format!("memory: {} on node {node}", in_units(*bytes)))
            }
            Self::UnknownProduct { existing, .. } if !existing.is_empty() => Some(existing.join(", ")),
            _ => None,
        }
    }
}
