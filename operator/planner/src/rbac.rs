//! The rights of the operator, made from the closed list of owned kinds, and those that users are given. What watches
//! and prunes a kind cannot be without the right to, nor keep a right that it no longer needs.

use candela_crds::GROUP;
use serde_json::{Value, json};

use crate::OwnedKind;

/// Namespace and ServiceAccount of the operator as `manifests/default` installs it.
const NAMESPACE: &str = "candela-system";
const OPERATOR: &str = "candela-operator";

/// Files of `manifests/rbac`: their names and the objects that they hold.
pub fn manifests() -> Vec<(&'static str, Vec<Value>)> {
    let mut files = vec![
        ("role.yaml", vec![operator_role(), operator_binding()]),
        ("user-roles.yaml", vec![view_role(), edit_role()]),
        (
            "kustomization.yaml",
            vec![json!({
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["role.yaml", "user-roles.yaml"],
            })],
        ),
    ];
    files.iter_mut().flat_map(|(_, objects)| objects).for_each(Value::sort_all_objects);
    files
}

fn operator_role() -> Value {
    // Caches are all that reads these.
    let cache = ["list", "watch"];
    let mut rules = vec![
        rule(GROUP, "llmdeployments", &["get", "list", "watch"]),
        rule(GROUP, "llmdeployments/status", &["update"]),
        // Owner references that block deletion need it where that admission plugin is on.
        rule(GROUP, "llmdeployments/finalizers", &["update"]),
    ];
    // Server-side apply needs `create` as well as `patch` for an object that is not there yet.
    rules.extend(OwnedKind::ALL.iter().map(|kind| {
        rule(kind.group(), kind.plural(), &["get", "list", "watch", "create", "patch", "delete"])
    }));
    rules.extend([
        rule("", "pods", &cache),
        rule("apps", "replicasets", &cache),
        rule("", "nodes", &cache),
        // Only their metadata is asked for (whether it is there, when it changed), by one watch; RBAC knows no smaller
        // right. No verb `get`: nothing of ours reads one Secret.
        rule("", "secrets", &cache),
        rule("", "persistentvolumeclaims", &cache),
        rule("events.k8s.io", "events", &["create", "patch"]),
        // How the cluster's own tokens are checked, for the servers: they have no rights of their own.
        json!({
            "nonResourceURLs": ["/.well-known/openid-configuration", "/openid/v1/jwks"],
            "verbs": ["get"],
        }),
    ]);
    cluster_role(OPERATOR, json!({}), rules)
}

fn operator_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": OPERATOR},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": OPERATOR},
        "subjects": [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": NAMESPACE}],
    })
}

/// Part of Kubernetes' own role `view`, so that who reads pods reads these.
fn view_role() -> Value {
    let labels = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    let rules = vec![rule(GROUP, "llmdeployments", &["get", "list", "watch"])];
    cluster_role("candela-view", labels, rules)
}

/// Part of `edit` and `admin`: who may create pods may create these, which is no more.
fn edit_role() -> Value {
    let labels = json!({
        "rbac.authorization.k8s.io/aggregate-to-edit": "true",
        "rbac.authorization.k8s.io/aggregate-to-admin": "true",
    });
    let rules = vec![
        rule(GROUP, "llmdeployments", &["create", "update", "patch", "delete", "deletecollection"]),
        rule(GROUP, "llmdeployments/scale", &["get", "update", "patch"]),
    ];
    cluster_role("candela-edit", labels, rules)
}

fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

fn cluster_role(name: &str, labels: Value, rules: Vec<Value>) -> Value {
    let mut role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    });
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        role["metadata"]["labels"] = labels;
    }
    role
}
