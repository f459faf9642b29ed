//! What the nodes could hold, from their labels and what they offer; what is free at the moment is the scheduler's
//! knowledge and comes with the pods.

use std::collections::BTreeSet;

use candela_crds::LlmDeployment;

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
}

pub(crate) fn fit(cr: &LlmDeployment, seen: &Observed) -> Fit {
    let Some(accelerator) = &cr.spec.accelerator else { return Fit::Possible };
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
    if candidates.iter().any(|node| offer(node) >= wanted) {
        return Fit::Possible;
    }
    // Ties go to the first name, so that the same nodes always give the same words.
    let nearest = candidates
        .iter()
        .map(|node| (offer(node), node))
        .filter(|(count, _)| *count > 0)
        .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.name.cmp(&a.1.name)))
        .map(|(count, node)| (node.name.clone(), count));
    Fit::TooMany { resource: resource.to_owned(), wanted, nearest }
}

fn existing_products(seen: &Observed) -> Vec<String> {
    let products: BTreeSet<&String> =
        seen.nodes.iter().filter_map(|node| node.labels.get(PRODUCT_LABEL)).collect();
    products.into_iter().cloned().collect()
}

impl Fit {
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
        }
    }

    /// The most that one node offers, when that is not enough.
    pub(crate) fn nearest(&self) -> Option<String> {
        match self {
            Self::TooMany { resource, nearest: Some((node, count)), .. } => {
                Some(format!("{resource}: {count} on node {node}"))
            }
            Self::UnknownProduct { existing, .. } if !existing.is_empty() => Some(existing.join(", ")),
            _ => None,
        }
    }
}
