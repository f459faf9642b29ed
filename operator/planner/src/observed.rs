//! What the operator saw of the cluster. Taken from caches, handed in whole; the planner asks for nothing more.

use std::collections::{BTreeMap, BTreeSet};

use candela_crds::LLM_DEPLOYMENT_LABEL;
use candela_wire::internal::ProcessStatus;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::{FIELD_MANAGER, OwnedKind};

/// One namespace as seen from one LlmDeployment.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Live objects of the owned kinds: all whose controller is this LlmDeployment, and all that bear the name of a
    /// child although they are not ours (that is how `NameConflict` is found).
    pub children: BTreeMap<OwnedKind, Vec<Value>>,
    /// Pods with the label `candela.dev/llmdeployment: NAME`.
    pub pods: Vec<Pod>,
    /// ReplicaSets with the same label.
    pub replica_sets: Vec<ReplicaSet>,
    /// Nodes of the cluster; empty = unknown, then nothing is said about fit.
    pub nodes: Vec<NodeFacts>,
    /// Secrets that the spec refers to, by name; one that is not here does not exist.
    pub secrets: BTreeMap<String, SecretFacts>,
    /// Names of the PersistentVolumeClaims that exist, at least of those that the spec refers to.
    pub claims: BTreeSet<String>,
    /// Latest answer of `/internal/v1/status`, by pod name.
    pub processes: BTreeMap<String, ProcessStatus>,
    /// `None` = not known yet: then nothing is published, and what was stays.
    pub cluster_keys: Option<ClusterKeys>,
}

/// With what the cluster's ServiceAccount tokens are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterKeys {
    /// `iss` of the tokens.
    pub issuer: String,
    /// Public JWKs, in an order that does not change by itself.
    pub keys: Vec<Value>,
}

/// A node, as far as placement is concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Extended resources that the node can give, such as `nvidia.com/gpu: 4`, and its `memory` in bytes if known; other
    /// resources may be left out.
    pub allocatable: BTreeMap<String, i64>,
    /// Cordoned, or not ready: it takes no new pods.
    pub unschedulable: bool,
}

/// What is read of a Secret: its metadata, never its data, so its keys are not known. A key that is missing is told
/// by the init step, which is given the Secret.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretFacts {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Observed {
    /// The live object of this kind and name, ours or not.
    pub fn child(&self, kind: OwnedKind, name: &str) -> Option<&Value> {
        self.children.get(&kind)?.iter().find(|object| object["metadata"]["name"].as_str() == Some(name))
    }
}

/// The uid of the controller of an object, if it has one.
pub(crate) fn controller_uid(object: &Value) -> Option<&str> {
    object["metadata"]["ownerReferences"]
        .as_array()?
        .iter()
        .find(|owner| owner["controller"].as_bool() == Some(true))?["uid"]
        .as_str()
}

/// Whether a live object is this resource's to write: its controller is this resource; or it has none, as after
/// `kubectl delete --cascade=orphan` or an owner reference removed by hand, and both its label and its managed fields
/// say that this operator made it for a resource of this name. Labels alone prove nothing, they are copied with a
/// manifest; an entry of our field manager comes from an apply of ours.
pub fn is_ours(object: &Value, name: &str, uid: &str) -> bool {
    let metadata = &object["metadata"];
    match controller_uid(object) {
        Some(controller) => controller == uid,
        None => {
            let applied = |entry: &Value| {
                entry["manager"] == FIELD_MANAGER
                    && entry["operation"] == "Apply"
                    && entry.get("subresource").is_none()
            };
            metadata["labels"][LLM_DEPLOYMENT_LABEL] == name
                && metadata["managedFields"].as_array().is_some_and(|entries| entries.iter().any(applied))
        }
    }
}
