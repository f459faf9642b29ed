//! Random valid bodies, and random partial ones for patches, of each kind under test.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

/// Kinds under test: plural path, apiVersion, kind.
pub(super) const KINDS: [(&str, &str, &str); 8] = [
    ("api/v1", "configmaps", "ConfigMap"),
    ("api/v1", "services", "Service"),
    ("apis/apps/v1", "deployments", "Deployment"),
    ("apis/policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("apis/networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    ("apis/coordination.k8s.io/v1", "leases", "Lease"),
    ("api/v1", "serviceaccounts", "ServiceAccount"),
    ("apis/candela.dev/v1alpha1", "llmdeployments", "LlmDeployment"),
];

fn sometimes(rng: &mut StdRng) -> bool {
    rng.random_bool(0.5)
}

fn pick<'a>(rng: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(rng).copied().unwrap_or_default()
}

/// Some of a few keys, each with one of a few values: overlaps between writers are what we want.
fn small_map(rng: &mut StdRng) -> Value {
    let mut out = Map::new();
    // Never empty: who owns an empty map after others came and went is not modelled.
    out.insert("z".to_owned(), json!(pick(rng, &["1", "2"])));
    for key in ["a", "b", "c"] {
        if sometimes(rng) {
            out.insert(key.to_owned(), json!(pick(rng, &["1", "2"])));
        }
    }
    Value::Object(out)
}

pub(super) fn metadata(rng: &mut StdRng) -> Value {
    let mut out = json!({});
    if sometimes(rng) {
        out["labels"] = small_map(rng);
    }
    if sometimes(rng) {
        out["annotations"] = small_map(rng);
    }
    out
}

/// Everything but metadata, complete enough to be created.
pub(super) fn content(kind: &str, rng: &mut StdRng) -> Value {
    match kind {
        "ConfigMap" => json!({"data": small_map(rng)}),
        "Service" => json!({"spec": service(rng)}),
        "Deployment" => json!({"spec": deployment(rng)}),
        "PodDisruptionBudget" => {
            let selector = json!({"matchLabels": {"app": pick(rng, &["a", "b"])}});
            let mut spec = json!({"selector": selector, "maxUnavailable": rng.random_range(1..3)});
            if sometimes(rng) {
                spec["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
            }
            json!({"spec": spec})
        }
        "NetworkPolicy" => json!({"spec": network_policy(rng)}),
        "Lease" => {
            let mut spec = json!({"leaseDurationSeconds": rng.random_range(1..4)});
            if sometimes(rng) {
                spec["holderIdentity"] = json!(pick(rng, &["one", "two"]));
            }
            json!({"spec": spec})
        }
        "ServiceAccount" => json!({"automountServiceAccountToken": sometimes(rng)}),
        _ => json!({"spec": llm(rng)}),
    }
}

fn service(rng: &mut StdRng) -> Value {
    let mut ports = vec![json!({"name": "http", "port": 80, "targetPort": pick(rng, &["http", "web"])})];
    if sometimes(rng) {
        ports.push(json!({"name": "metrics", "port": 9090}));
    }
    if sometimes(rng) {
        ports.reverse();
    }
    json!({"ports": ports, "selector": {"app": pick(rng, &["a", "b"])}})
}

fn container(rng: &mut StdRng, name: &str) -> Value {
    let mut out = json!({"name": name, "image": pick(rng, &["i:1", "i:2", "i"])});
    if sometimes(rng) {
        let names: Vec<&str> = ["A", "B", "C"].into_iter().filter(|_| sometimes(rng)).collect();
        out["env"] = names.iter().map(|n| json!({"name": n, "value": pick(rng, &["1", "2"])})).collect();
    }
    if sometimes(rng) {
        out["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    }
    if sometimes(rng) {
        out["resources"] = json!({"limits": {"memory": pick(rng, &["1Gi", "2Gi"])}});
    }
    if sometimes(rng) {
        out["readinessProbe"] = json!({"httpGet": {"path": "/readyz", "port": 9090}});
    }
    if sometimes(rng) {
        out["args"] = json!(["serve", pick(rng, &["a", "b"])]);
    }
    if sometimes(rng) {
        out["volumeMounts"] = json!([{"name": "config", "mountPath": "/etc/c", "readOnly": true}]);
    }
    if sometimes(rng) {
        out["securityContext"] = json!({"runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}});
    }
    out
}

fn deployment(rng: &mut StdRng) -> Value {
    let mut containers = vec![container(rng, "server")];
    if sometimes(rng) {
        containers.push(container(rng, "side"));
    }
    if sometimes(rng) {
        containers.reverse();
    }
    let mut pod =
        json!({"containers": containers, "volumes": [{"name": "config", "configMap": {"name": "c"}}]});
    if sometimes(rng) {
        pod["nodeSelector"] = small_map(rng);
    }
    if sometimes(rng) {
        pod["serviceAccountName"] = json!("one");
    }
    if sometimes(rng) {
        pod["terminationGracePeriodSeconds"] = json!(rng.random_range(1..3));
    }
    let mut template = json!({"metadata": {"labels": {"app": "a"}}, "spec": pod});
    if sometimes(rng) {
        template["metadata"]["annotations"] = small_map(rng);
    }
    let mut spec = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template});
    if sometimes(rng) {
        spec["replicas"] = json!(rng.random_range(0..3));
    }
    if sometimes(rng) {
        spec["strategy"] = match pick(rng, &["rolling", "recreate"]) {
            "recreate" => json!({"type": "Recreate"}),
            _ => {
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": rng.random_range(1..3), "maxUnavailable": 0}})
            }
        };
    }
    if sometimes(rng) {
        spec["progressDeadlineSeconds"] = json!(rng.random_range(100..103));
    }
    spec
}

fn network_policy(rng: &mut StdRng) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": pick(rng, &["a", "b"])}}});
    if sometimes(rng) {
        spec["ingress"] = json!([{"ports": [{"port": rng.random_range(80..82)}]}]);
    }
    if sometimes(rng) {
        spec["egress"] = json!([{"to": [{"podSelector": {}}]}]);
    }
    if sometimes(rng) {
        spec["policyTypes"] = json!(["Ingress"]);
    }
    spec
}

fn llm(rng: &mut StdRng) -> Value {
    let mut spec = json!({"model": {"uri": "builtin://demo"}, "engine": {"name": "Candle"}, "replicas": rng.random_range(0..3)});
    if sometimes(rng) {
        spec["model"]["contextLength"] = json!(pick(rng, &["512", "1024"]).parse::<u32>().unwrap_or(512));
    }
    if sometimes(rng) {
        spec["model"]["servedName"] = json!(pick(rng, &["one", "two"]));
    }
    if sometimes(rng) {
        spec["placement"] = json!({"nodeSelector": small_map(rng)});
    }
    if sometimes(rng) {
        spec["podTemplate"] = json!({"labels": small_map(rng)});
    }
    if sometimes(rng) {
        spec["rollout"] = json!({"strategy": "RollingUpdate", "maxSurge": 1});
    }
    spec
}

/// A merge patch of what may change later.
pub(super) fn patch(kind: &str, rng: &mut StdRng) -> Value {
    let mut out = json!({});
    if sometimes(rng) {
        out["metadata"] = json!({"labels": {pick(rng, &["a", "b"]): pick(rng, &["1", "2"])}});
    }
    if sometimes(rng) {
        out["metadata"]["annotations"] = json!({pick(rng, &["a", "b"]): null});
    }
    match kind {
        "ConfigMap" if sometimes(rng) => {
            out["data"] = json!({pick(rng, &["a", "b"]): null, "c": pick(rng, &["1", "2"])})
        }
        "ConfigMap" => {}
        "Deployment" | "LlmDeployment" => out["spec"] = json!({"replicas": rng.random_range(0..3)}),
        "Service" => out["spec"] = json!({"selector": {"app": pick(rng, &["a", "b", "c"])}}),
        "Lease" => out["spec"] = json!({"holderIdentity": pick(rng, &["one", "two"])}),
        "ServiceAccount" => out["automountServiceAccountToken"] = json!(sometimes(rng)),
        _ => {}
    }
    out
}

/// A status that the server's validation takes.
pub(super) fn status(kind: &str, rng: &mut StdRng) -> Value {
    let condition = json!({"type": pick(rng, &["Ready", "Validated"]), "status": pick(rng, &["True", "False"]),
        "reason": "Ready", "message": "m", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    match kind {
        "Deployment" => json!({"replicas": rng.random_range(1..3), "observedGeneration": 1}),
        _ => json!({"observedGeneration": rng.random_range(1..3), "conditions": [condition]}),
    }
}
