//! The invariant checker itself: each fault that is planted into a sound plan must be named.

use candela_planner::{OwnedKind, Plan, check::check_plan};
use serde_json::{Value, json};

use crate::fixtures::{UID, known, llm, plan};

fn sound() -> Plan {
    let cr = llm("{replicas: 2, model: {uri: 'hf://a/b'}}");
    plan(&cr, &known(&cr)).plan
}

fn of_kind(plan: &mut Plan, kind: OwnedKind) -> &mut Value {
    &mut plan.children.iter_mut().find(|child| child.kind == kind).unwrap().object
}

#[test]
fn a_planted_fault_is_named() {
    use OwnedKind::{ConfigMap, Deployment, NetworkPolicy, PodDisruptionBudget, Service, ServiceAccount};
    let server = "/spec/template/spec/containers/0";
    let faults: [(OwnedKind, String, Value, &str); 19] = [
        (Service, "/metadata/ownerReferences".into(), json!([]), "is not owned"),
        (Service, "/metadata/ownerReferences/0/uid".into(), json!("other"), "is not owned"),
        (ConfigMap, "/metadata/namespace".into(), json!("elsewhere"), "in the namespaces"),
        (ServiceAccount, "/metadata/name".into(), json!("a".repeat(64)), "too long"),
        (Service, "/spec/selector".into(), json!({"app": "x"}), "does not select"),
        (PodDisruptionBudget, "/spec/selector/matchLabels".into(), json!({}), "does not select"),
        (NetworkPolicy, "/spec/podSelector".into(), json!({}), "does not select"),
        (Service, "/spec/ports/0/targetPort".into(), json!(1), "leads nowhere"),
        (Deployment, format!("{server}/readinessProbe/httpGet/port"), json!("nowhere"), "lacks a probe"),
        (
            Deployment,
            format!("{server}/securityContext/allowPrivilegeEscalation"),
            json!(true),
            "not restricted",
        ),
        (Deployment, format!("{server}/securityContext/capabilities/drop"), json!([]), "not restricted"),
        (Deployment, "/spec/template/spec/automountServiceAccountToken".into(), json!(true), "token"),
        (Deployment, "/spec/template/spec/securityContext/runAsNonRoot".into(), json!(false), "as root"),
        (Deployment, format!("{server}/volumeMounts/0/name"), json!("absent"), "unknown volume"),
        (Deployment, "/spec/template/spec/serviceAccountName".into(), json!("other"), "service account"),
        (Deployment, "/spec/strategy/rollingUpdate/maxSurge".into(), json!(0), "neither add nor remove"),
        (ConfigMap, "/data/server.json".into(), json!("{}"), "not named after its content"),
        (ConfigMap, "/metadata/name".into(), json!("chat-0123456789"), "not named after its content"),
        (ConfigMap, "/immutable".into(), json!(false), "can be changed"),
    ];
    assert_eq!(check_plan(&sound(), UID), Vec::<String>::new());
    for (kind, pointer, value, says) in faults {
        let mut faulty = sound();
        *of_kind(&mut faulty, kind).pointer_mut(&pointer).unwrap() = value;
        let notes = check_plan(&faulty, UID);
        assert!(
            notes.iter().any(|note| note.contains(says)),
            "{kind}{pointer}: {notes:?} should say `{says}`"
        );
    }
}

#[test]
fn children_planned_twice_in_the_wrong_order_or_not_at_all_are_named() {
    let says = |faulty: &Plan, text: &str| {
        let notes = check_plan(faulty, UID);
        assert!(notes.iter().any(|note| note.contains(text)), "{notes:?} should say `{text}`");
    };
    let mut twice = sound();
    twice.children.push(twice.children[0].clone());
    says(&twice, "is planned twice");
    let mut reversed = sound();
    reversed.children.reverse();
    says(&reversed, "not planned before");
    let mut without = sound();
    without.children.retain(|child| child.kind != OwnedKind::Deployment);
    says(&without, "has no Deployment");
    let silent = Plan { complete: false, ..Plan::default() };
    says(&silent, "does not say what it waits for");
    let mut host = sound();
    let volumes =
        of_kind(&mut host, OwnedKind::Deployment).pointer_mut("/spec/template/spec/volumes").unwrap();
    volumes.as_array_mut().unwrap().push(json!({"name": "root", "hostPath": {"path": "/"}}));
    says(&host, "folder of the node");
    let mut claimed = sound();
    of_kind(&mut claimed, OwnedKind::Service)["metadata"]["labels"]["app.kubernetes.io/instance"] =
        json!("chat");
    says(&claimed, "Argo CD");
}
