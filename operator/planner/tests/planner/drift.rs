//! Drift against objects as a real API server (Kubernetes 1.35) stored them: `live/full.json` holds a resource that uses
//! most fields and its children, read back after server-side apply, with what was defaulted and who owns what.

use candela_crds::LlmDeployment;
use candela_planner::{Child, OwnedKind, owned_fields_differ};
use serde_json::{Value, json};

use crate::fixtures::{known, settings};

struct Live {
    resource: LlmDeployment,
    children: Vec<Value>,
}

fn live() -> Live {
    let text = include_str!("live/full.json");
    let mut whole: Value = serde_json::from_str(text).unwrap();
    Live {
        resource: serde_json::from_value(whole["resource"].take()).unwrap(),
        children: serde_json::from_value(whole["children"].take()).unwrap(),
    }
}

/// Kinds whose live object would be applied again.
fn drifted(live: &Live) -> Vec<OwnedKind> {
    let outcome = candela_planner::plan(&live.resource, &known(&live.resource), &settings());
    let differs = |child: &Child| {
        let found = live.children.iter().find(|object| object["kind"] == child.kind.kind()).unwrap();
        owned_fields_differ(&child.object, found)
    };
    outcome.plan.children.iter().filter(|child| differs(child)).map(|child| child.kind).collect()
}

fn of_kind(live: &mut Live, kind: OwnedKind) -> &mut Value {
    live.children.iter_mut().find(|object| object["kind"] == kind.kind()).unwrap()
}

#[test]
fn a_settled_cluster_needs_no_write() {
    assert_eq!(drifted(&live()), Vec::<OwnedKind>::new());
}

#[test]
fn every_edit_by_hand_is_seen() {
    let edits: [(OwnedKind, &str, Value); 8] = [
        (OwnedKind::Deployment, "/spec/replicas", json!(7)),
        (OwnedKind::Deployment, "/spec/template/spec/containers/0/image", json!("other")),
        (OwnedKind::Deployment, "/spec/template/spec/automountServiceAccountToken", json!(true)),
        (OwnedKind::Service, "/spec/selector", json!({"candela.dev/llmdeployment": "full", "x": "y"})),
        (OwnedKind::ConfigMap, "/data/server.json", json!("{}")),
        (OwnedKind::NetworkPolicy, "/spec/ingress", json!([{}])),
        (OwnedKind::PodDisruptionBudget, "/spec/maxUnavailable", json!(2)),
        (OwnedKind::ServiceAccount, "/metadata/ownerReferences", json!([])),
    ];
    for (kind, pointer, value) in edits {
        let mut edited = live();
        *of_kind(&mut edited, kind).pointer_mut(pointer).unwrap() = value;
        assert_eq!(drifted(&edited), [kind], "{kind}{pointer}");
    }
}

#[test]
fn what_others_add_is_left_alone() {
    let mut others = live();
    for kind in OwnedKind::ALL {
        of_kind(&mut others, *kind)["metadata"]["annotations"]["example.org/note"] = json!("added");
        of_kind(&mut others, *kind)["metadata"]["labels"]["example.org/team"] = json!("added");
    }
    of_kind(&mut others, OwnedKind::Deployment)["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] =
        json!("2026-01-01T00:00:00Z");
    assert_eq!(drifted(&others), Vec::<OwnedKind>::new());
}

#[test]
fn a_field_that_the_resource_gave_up_is_taken_away() {
    let mut given_up = live();
    given_up.resource.spec.placement = None;
    assert_eq!(drifted(&given_up), [OwnedKind::Deployment]);
    let mut given_up = live();
    given_up.resource.spec.engine.as_mut().unwrap().env.clear();
    assert_eq!(drifted(&given_up), [OwnedKind::Deployment]);
    let mut given_up = live();
    given_up.resource.spec.pod_template.as_mut().unwrap().labels.clear();
    assert_eq!(drifted(&given_up), [OwnedKind::Deployment]);
}
