//! Where pods may run: the user's placement, and what the accelerator adds to it.

use candela_crds::{Placement, WhenUnsatisfiable};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
    TopologySpreadConstraint,
};

use serde_json::Value;

use crate::{Resolved, fit::PRODUCT_LABEL};

/// Taint that GPU nodes commonly carry to keep other pods away.
const GPU_TAINT: &str = "nvidia.com/gpu";

/// Fills the scheduling fields of the pod.
pub(super) fn place(resolved: &Resolved, pod: &mut PodSpec) {
    let placement = resolved.spec.placement.clone().unwrap_or_default();
    let mut tolerations: Vec<_> = placement.tolerations.iter().cloned().map(stored_toleration).collect();
    if resolved.accelerator.as_ref().is_some_and(|(name, _)| name.starts_with("nvidia.com/"))
        && !tolerations.iter().any(|toleration| toleration.key.as_deref() == Some(GPU_TAINT))
    {
        tolerations.push(Toleration {
            key: Some(GPU_TAINT.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        });
    }
    pod.topology_spread_constraints = some(spread(resolved, &placement));
    pod.affinity = affinity(resolved, placement.affinity.map(stored_affinity));
    pod.tolerations = some(tolerations);
    pod.node_selector = (!placement.node_selector.is_empty()).then_some(placement.node_selector);
    pod.priority_class_name = placement.priority_class_name;
    pod.runtime_class_name = placement.runtime_class_name;
    pod.scheduler_name = placement.scheduler_name;
}

fn spread(resolved: &Resolved, placement: &Placement) -> Vec<TopologySpreadConstraint> {
    placement
        .topology_spread
        .iter()
        .map(|rule| TopologySpreadConstraint {
            topology_key: rule.topology_key.clone(),
            max_skew: rule.max_skew,
            when_unsatisfiable: match rule.when_unsatisfiable {
                WhenUnsatisfiable::DoNotSchedule => "DoNotSchedule",
                WhenUnsatisfiable::ScheduleAnyway => "ScheduleAnyway",
            }
            .to_owned(),
            label_selector: Some(super::label_selector(resolved)),
            // Each revision spreads by itself: pods that are about to go do not push new ones aside.
            match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
            ..TopologySpreadConstraint::default()
        })
        .collect()
}

/// The user's affinity; with product names, each of its required node terms also demands one of them, because the
/// terms are alternatives.
fn affinity(resolved: &Resolved, wanted: Option<Affinity>) -> Option<Affinity> {
    let products = resolved.spec.accelerator.as_ref().map(|accelerator| accelerator.product_names.clone());
    let Some(products) = products.filter(|products| !products.is_empty()) else { return wanted };
    let product = NodeSelectorRequirement {
        key: PRODUCT_LABEL.to_owned(),
        operator: "In".to_owned(),
        values: Some(products),
    };
    let mut affinity = wanted.unwrap_or_default();
    let node = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = node
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_expressions.get_or_insert_with(Vec::new).push(product.clone());
    }
    Some(affinity)
}

/// As the API server stores it: empty texts are left out, and would look different for ever.
fn stored_toleration(wanted: Toleration) -> Toleration {
    let full = |text: Option<String>| text.filter(|text| !text.is_empty());
    Toleration {
        effect: full(wanted.effect),
        key: full(wanted.key),
        operator: full(wanted.operator),
        toleration_seconds: wanted.toleration_seconds,
        value: full(wanted.value),
    }
}

/// Likewise: empty lists are left out, at any depth.
fn stored_affinity(wanted: Affinity) -> Affinity {
    fn drop_empty_lists(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.values_mut().for_each(drop_empty_lists);
                fields.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
            }
            Value::Array(list) => list.iter_mut().for_each(drop_empty_lists),
            _ => {}
        }
    }
    let stored = serde_json::to_value(&wanted).map(|mut value| {
        drop_empty_lists(&mut value);
        value
    });
    // Required lists that are empty make no affinity: the API server then says which.
    stored.and_then(serde_json::from_value).unwrap_or(wanted)
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}
