//! The kinds that the in-memory API server knows.

use serde_json::{Value, json};

use super::schema::Place;

/// One resource type.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
    pub has_status: bool,
    pub has_scale: bool,
    /// Whether `metadata.generation` counts spec changes.
    pub counts_generations: bool,
}

const fn kind(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        namespaced: true,
        has_status: false,
        has_scale: false,
        counts_generations: false,
    }
}

/// All kinds. Custom ones are those of the `candela.dev` group.
pub static KINDS: [Kind; 18] = [
    Kind { namespaced: false, has_status: true, ..kind("", "v1", "Namespace", "namespaces") },
    Kind { namespaced: false, has_status: true, ..kind("", "v1", "Node", "nodes") },
    Kind { has_status: true, counts_generations: true, ..kind("", "v1", "Pod", "pods") },
    kind("", "v1", "ConfigMap", "configmaps"),
    kind("", "v1", "Secret", "secrets"),
    kind("", "v1", "ServiceAccount", "serviceaccounts"),
    Kind { has_status: true, ..kind("", "v1", "Service", "services") },
    Kind { has_status: true, ..kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims") },
    kind("", "v1", "Event", "events"),
    kind("events.k8s.io", "v1", "Event", "events"),
    Kind {
        has_status: true,
        has_scale: true,
        counts_generations: true,
        ..kind("apps", "v1", "Deployment", "deployments")
    },
    Kind {
        has_status: true,
        has_scale: true,
        counts_generations: true,
        ..kind("apps", "v1", "ReplicaSet", "replicasets")
    },
    Kind {
        has_status: true,
        counts_generations: true,
        ..kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
    },
    Kind { counts_generations: true, ..kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies") },
    kind("coordination.k8s.io", "v1", "Lease", "leases"),
    kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    Kind {
        namespaced: false,
        has_status: true,
        counts_generations: true,
        ..kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
    },
    Kind {
        has_status: true,
        has_scale: true,
        counts_generations: true,
        ..kind("candela.dev", "v1alpha1", "LlmDeployment", "llmdeployments")
    },
];

impl Kind {
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|k| k.group == group && k.version == version && k.plural == plural)
    }

    /// By the words of an owner reference.
    pub fn of(api_version: &str, kind: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|k| k.api_version() == api_version && k.kind == kind)
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`, as the server's messages say.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn is_custom(&self) -> bool {
        self.group == "candela.dev"
    }

    /// How objects of this kind merge; `crd` is the OpenAPI schema of the custom kind.
    pub fn place<'a>(&'static self, crd: &'a Value) -> Place<'a> {
        if self.is_custom() { Place::OpenApi(crd) } else { Place::Builtin { kind: self.kind, field: None } }
    }

    /// What the server's typed, empty object writes out: value structs are present before anybody sets them, so
    /// nobody comes to own them as a whole.
    pub fn empty(&self) -> Value {
        let mut out = match self.kind {
            "Deployment" => json!({"spec": {"selector": null, "strategy": {},
                "template": {"metadata": {}, "spec": {"containers": null}}}, "status": {}}),
            "ReplicaSet" => {
                json!({"spec": {"selector": null, "template": {"metadata": {}, "spec": {"containers": null}}},
                "status": {"replicas": 0}})
            }
            "Pod" => json!({"spec": {"containers": null}, "status": {}}),
            "Service" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            "PodDisruptionBudget" => {
                json!({"spec": {}, "status": {"disruptionsAllowed": 0, "currentHealthy": 0,
                "desiredHealthy": 0, "expectedPods": 0}})
            }
            "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
            "Namespace" | "Node" => json!({"spec": {}, "status": {}}),
            "PersistentVolumeClaim" => json!({"spec": {"resources": {}}, "status": {}}),
            "Lease" => json!({"spec": {}}),
            _ => json!({}),
        };
        out["apiVersion"] = json!(self.api_version());
        out["kind"] = json!(self.kind);
        if !self.is_custom() {
            out["metadata"] = json!({});
        }
        out
    }
}
