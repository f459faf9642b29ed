//! What the servers are given to check the gateway's token with.

use candela_planner::{ClusterKeys, Observed, OwnedKind, Plan, owned_fields_differ};
use serde_json::{Value, json};

use crate::fixtures::{known, llm, plan};

const NAME: &str = "chat-server-trust";

pub(crate) fn keys(id: &str) -> ClusterKeys {
    ClusterKeys { issuer: "https://cluster".to_owned(), keys: vec![json!({"kid": id, "kty": "RSA"})] }
}

fn planned(spec: &str, keys: Option<ClusterKeys>) -> Plan {
    let cr = llm(spec);
    plan(&cr, &Observed { cluster_keys: keys, ..known(&cr) }).plan
}

fn object(plan: &Plan, kind: OwnedKind, name: &str) -> Option<Value> {
    let child = plan.children.iter().find(|child| child.kind == kind && child.name() == name)?;
    Some(child.object.clone())
}

fn template(plan: &Plan) -> Value {
    object(plan, OwnedKind::Deployment, "chat").unwrap()["spec"]["template"].take()
}

#[test]
fn the_pods_are_the_same_whatever_the_keys_are() {
    let (none, first, second) =
        (planned("{}", None), planned("{}", Some(keys("first"))), planned("{}", Some(keys("second"))));
    assert_eq!(template(&none), template(&first));
    assert_eq!(template(&first), template(&second));
    let map = |plan| object(plan, OwnedKind::ConfigMap, NAME);
    assert_eq!(map(&none), None);
    assert!(none.kept.contains(&(OwnedKind::ConfigMap, NAME.to_owned())), "not known is not gone");
    let (first, second) = (map(&first).unwrap(), map(&second).unwrap());
    assert!(owned_fields_differ(&second, &first), "a rotation is written");
    assert_eq!(first.get("immutable"), None);
    let file: candela_wire::trust::TrustFile =
        serde_json::from_str(first["data"]["trust.json"].as_str().unwrap()).unwrap();
    assert_eq!(file.subjects, ["system:serviceaccount:candela-system:candela-gateway"]);
}

#[test]
fn it_is_planned_before_the_pods_and_for_our_servers_only() {
    let plan = planned("{}", Some(keys("a")));
    let at = |kind, name: &str| {
        plan.children.iter().position(|child| child.kind == kind && child.name() == name).unwrap()
    };
    assert!(at(OwnedKind::ConfigMap, NAME) < at(OwnedKind::Deployment, "chat"));
    let custom = "{engine: {name: Custom, image: x}, model: {uri: 'hf://a/b'}}";
    for known in [None, Some(keys("a"))] {
        let plan = planned(custom, known);
        assert_eq!(object(&plan, OwnedKind::ConfigMap, NAME), None);
        assert!(!plan.kept.contains(&(OwnedKind::ConfigMap, NAME.to_owned())));
        assert!(!template(&plan).to_string().contains("candela-trust"));
    }
}

#[test]
fn a_volume_of_the_users_cannot_stand_in_its_place() {
    for path in ["/var/run/candela/trust", "/var/run/candela", "/var/run", "/run/candela/trust"] {
        let spec = format!(
            "{{podTemplate: {{volumes: [{{name: x, emptyDir: {{}}}}], volumeMounts: [{{name: x, mountPath: {path}}}]}}}}"
        );
        let cr = llm(&spec);
        let refused = plan(&cr, &known(&cr)).resolved.unwrap_err();
        assert!(refused.message.contains("mountPath"), "{path}: {}", refused.message);
    }
}

#[test]
fn a_config_map_of_somebody_else_is_left_alone_and_told() {
    let cr = llm("{}");
    let mut seen = Observed { cluster_keys: Some(keys("a")), ..known(&cr) };
    let foreign =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": "team"}});
    seen.children.insert(OwnedKind::ConfigMap, vec![foreign]);
    let refused = plan(&cr, &seen).resolved.unwrap_err();
    assert!(refused.message.contains(NAME), "{}", refused.message);
}
