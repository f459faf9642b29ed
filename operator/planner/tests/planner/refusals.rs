//! What only the cluster knows: each becomes a condition with the next step, and nothing is applied or pruned.

use candela_crds::Reason;
use candela_planner::{Observed, OwnedKind, SecretFacts};
use serde_json::json;

use crate::fixtures::{UID, known, llm, plan, planned, settings};

#[track_caller]
fn check(spec: &str, change: impl FnOnce(&mut Observed), reason: Reason, says: &str) {
    let cr = llm(spec);
    let mut seen = known(&cr);
    change(&mut seen);
    let outcome = plan(&cr, &seen);
    let blocked = outcome.resolved.unwrap_err();
    assert_eq!(blocked.reason, reason, "{}", blocked.message);
    assert!(blocked.message.contains(says), "`{}` should say `{says}`", blocked.message);
    assert!(!outcome.plan.complete && outcome.plan.children.is_empty(), "nothing may be applied or pruned");
}

const FETCHED: &str = "{model: {uri: 'hf://a/b', credentialsRef: {name: hub, key: token}}}";

#[test]
fn foreign_objects_are_never_adopted() {
    for kind in OwnedKind::ALL {
        let cr = llm("{replicas: 2}");
        let planned = plan(&cr, &known(&cr)).plan.children;
        let name = planned.iter().find(|child| child.kind == *kind).unwrap().name();
        let copied = json!([{"manager": "kubectl-client-side-apply", "operation": "Update"}]);
        for owners in [json!(null), json!([{"uid": "other", "controller": true}]), json!([{"uid": UID}])] {
            // A copied manifest has our labels; what it has not is an apply of ours.
            let labels = json!({"candela.dev/llmdeployment": "chat"});
            let object = json!({"metadata": {
                "name": name, "ownerReferences": owners, "labels": labels, "managedFields": copied
            }});
            check(
                "{replicas: 2}",
                |seen| {
                    seen.children.insert(*kind, vec![object]);
                },
                Reason::NameConflict,
                &format!("{kind} `{name}` exists"),
            );
        }
    }
}

#[test]
fn a_child_that_lost_its_owner_is_taken_back_and_one_that_found_another_is_not() {
    let cr = llm("{}");
    let found = |name: &str, owners: serde_json::Value| {
        let mut seen = known(&cr);
        let object = json!({"metadata": {
            "name": "chat", "ownerReferences": owners, "labels": {"candela.dev/llmdeployment": name},
            "managedFields": [{"manager": "candela-operator", "operation": "Apply"}],
        }});
        seen.children.insert(OwnedKind::Service, vec![object]);
        plan(&cr, &seen).resolved.map(drop).map_err(|blocked| blocked.reason)
    };
    assert_eq!(found("chat", json!(null)), Ok(()));
    assert_eq!(found("chat", json!([{"uid": "note", "controller": false}])), Ok(()));
    assert_eq!(found("other", json!(null)), Err(Reason::NameConflict));
    assert_eq!(found("chat", json!([{"uid": "other", "controller": true}])), Err(Reason::NameConflict));
}

#[test]
fn our_own_children_and_objects_of_other_names_are_no_conflict() {
    let cr = llm("{}");
    let mut seen = known(&cr);
    let ours = json!({"metadata": {"name": "chat", "ownerReferences": [{"uid": UID, "controller": true}]}});
    seen.children.insert(OwnedKind::Service, vec![ours, json!({"metadata": {"name": "else"}})]);
    // One replica has no disruption budget: somebody else's is nobody's business.
    seen.children.insert(OwnedKind::PodDisruptionBudget, vec![json!({"metadata": {"name": "chat"}})]);
    assert!(plan(&cr, &seen).resolved.is_ok());
}

#[test]
fn secrets_are_used_only_as_their_owner_says() {
    check(FETCHED, |seen| seen.secrets.clear(), Reason::CredentialsNotFound, "create it");
    check(
        FETCHED,
        |seen| {
            seen.secrets.insert("hub".to_owned(), SecretFacts::default());
        },
        Reason::CredentialsNotUsable,
        "kubectl label secret hub candela.dev/usable=true",
    );
    check(
        "{model: {uri: 'https://evil.example/m.gguf', credentialsRef: {name: hub, key: token}}}",
        |_| (),
        Reason::CredentialsHostNotAllowed,
        "may not be sent to `evil.example`",
    );
    // The host is allowed: with TLS, on its own port.
    let allow = |seen: &mut candela_planner::Observed| {
        if let Some(secret) = seen.secrets.get_mut("hub") {
            secret.annotations.insert("candela.dev/hosts".to_owned(), "h.example".to_owned());
        }
    };
    let to = |uri: &str| format!("{{model: {{uri: '{uri}', credentialsRef: {{name: hub, key: token}}}}}}");
    for (uri, place) in [
        ("http://h.example/m.gguf", "http://h.example"),
        ("https://h.example:8443/m.gguf", "h.example:8443"),
        ("http://h.example:8080/m.gguf", "http://h.example:8080"),
    ] {
        let message = format!("add `{place}` there");
        check(&to(uri), allow, Reason::CredentialsHostNotAllowed, &message);
    }
    // Of a Secret only the metadata is read: a missing key is told by the init step, so the pod must come to start.
    let deployment = planned(FETCHED, OwnedKind::Deployment).unwrap();
    let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let credentials = volumes.iter().find(|volume| volume["name"] == "candela-credentials").unwrap();
    assert_eq!(credentials["secret"]["optional"], true);
}

#[test]
fn a_missing_claim_is_named() {
    check(
        "{model: {uri: 'pvc://weights/llama'}}",
        |seen| seen.claims.clear(),
        Reason::ClaimNotFound,
        "PersistentVolumeClaim `weights`",
    );
}

#[test]
fn an_engine_without_an_image_is_named_with_its_device() {
    let mut settings = settings();
    settings.images.clear();
    let cr = llm("{accelerator: {device: {count: 1}}}");
    let blocked = candela_planner::resolve(&cr, &known(&cr), &settings).unwrap_err();
    assert_eq!(blocked.reason, Reason::ImageNotConfigured);
    assert!(blocked.message.contains("engine Candle on device Nvidia"), "{}", blocked.message);
    check(
        "{accelerator: {device: {resourceName: amd.com/gpu, count: 1}}}",
        |_| (),
        Reason::ImageNotConfigured,
        "engine Custom",
    );
}

#[test]
fn what_came_past_the_api_servers_rules_is_still_refused() {
    for (spec, says) in [
        ("{model: {}}", "`spec.model.uri` is required"),
        ("{model: {uri: 's3://b/m'}}", "cannot be used"),
        ("{model: {uri: 'https://user:pw@h/m'}}", "cannot be used"),
        ("{model: {uri: 'pvc://c/../x'}}", "cannot be used"),
        ("{engine: {name: Custom}, model: {}}", "`spec.engine.image` is required"),
    ] {
        check(spec, |_| (), Reason::InvalidSpec, says);
    }
    for path in ["//etc/candela", "/etc/candela/../candela", "/etc", "/", "/models/x", "/run", "data", "/a/"]
    {
        let volume = format!(
            "volumes: [{{name: d, emptyDir: {{}}}}], volumeMounts: [{{name: d, mountPath: '{path}'}}]"
        );
        check(
            &format!("{{podTemplate: {{{volume}}}}}"),
            |_| (),
            Reason::InvalidSpec,
            &format!("mountPath `{path}`"),
        );
    }
}

#[test]
fn the_hub_is_the_one_that_the_operator_is_configured_with() {
    let cr = llm(FETCHED);
    let mut seen = known(&cr);
    let mut settings = settings();
    settings.hub_endpoint = Some("http://hub.example:8443".to_owned());
    let blocked = candela_planner::resolve(&cr, &seen, &settings).unwrap_err();
    assert!(blocked.message.contains("may not be sent to `hub.example`"), "{}", blocked.message);

    let secret = seen.secrets.get_mut("hub").unwrap();
    secret.annotations.insert("candela.dev/hosts".to_owned(), "hub.example".to_owned());
    let resolved = candela_planner::resolve(&cr, &seen, &settings).unwrap();
    let plan = candela_planner::desired(&resolved, &seen);
    let of_kind = |kind| &plan.children.iter().find(|child| child.kind == kind).unwrap().object["spec"];
    let fetch = &of_kind(OwnedKind::Deployment)["template"]["spec"]["initContainers"][0];
    assert_eq!(fetch["env"], json!([{"name": "HF_ENDPOINT", "value": "http://hub.example:8443"}]));
    let egress = of_kind(OwnedKind::NetworkPolicy)["egress"].to_string();
    assert!(egress.contains("8443"), "{egress}");

    settings.hub_endpoint = Some("hub.example".to_owned());
    let blocked = candela_planner::resolve(&cr, &seen, &settings).unwrap_err();
    assert!(blocked.message.contains("`hubEndpoint` of the operator's configuration"), "{}", blocked.message);
}
