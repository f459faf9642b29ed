//! `spec.resources`, `spec.accelerator` and `spec.placement`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Toleration};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Quantity, schema::DNS_SUBDOMAIN};

/// CPU and memory of each replica, as in a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)")
        .message("resources.requests must not be above resources.limits: lower the request or raise the limit"),
    validation = Rule::new("!has(self.requests) || self.requests.all(k, !k.startsWith('hugepages-') || (has(self.limits) && k in self.limits && quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) == 0))")
        .message("huge pages cannot be overcommitted: write the same amount of each hugepages-SIZE in resources.limits, or in resources.limits alone"),
    validation = Rule::new("!has(self.limits) || !self.limits.exists(k, k.startsWith('hugepages-')) || 'cpu' in self.limits || 'memory' in self.limits || (has(self.requests) && ('cpu' in self.requests || 'memory' in self.requests))")
        .message("huge pages need cpu or memory beside them: add resources.limits.memory"),
    validation = Rule::new("!has(self.limits) || self.limits.all(k, !k.startsWith('hugepages-') || (quantity(string(self.limits[k])).isInteger() && quantity(string(self.limits[k])).asInteger() > 0 && quantity(string(self.limits[k])).asInteger() % quantity(k.substring(10)).asInteger() == 0))")
        .message("an amount of hugepages-SIZE must be a whole number of pages, such as hugepages-2Mi: 64Mi")
)]
pub struct Resources {
    /// What is set aside for each replica.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(
        validation = Rule::new("self.all(k, k in ['cpu', 'memory', 'ephemeral-storage', 'hugepages-64Ki', 'hugepages-1Mi', 'hugepages-2Mi', 'hugepages-32Mi', 'hugepages-512Mi', 'hugepages-1Gi', 'hugepages-16Gi'])")
            .message("resources take cpu, memory, ephemeral-storage and hugepages-SIZE with a page size of Linux (64Ki, 1Mi, 2Mi, 32Mi, 512Mi, 1Gi, 16Gi): ask for GPUs in accelerator.device"),
        validation = Rule::new("self.all(k, quantity(string(self[k])).compareTo(quantity('0')) >= 0 && quantity(string(self[k])).compareTo(quantity('1E')) <= 0)")
            .message("resources.requests must be amounts from 0 to 1E: write a number such as 500m, 2 or 16Gi")
    )]
    pub requests: BTreeMap<String, Quantity>,
    /// What a replica may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    #[x_kube(
        validation = Rule::new("self.all(k, k in ['cpu', 'memory', 'ephemeral-storage', 'hugepages-64Ki', 'hugepages-1Mi', 'hugepages-2Mi', 'hugepages-32Mi', 'hugepages-512Mi', 'hugepages-1Gi', 'hugepages-16Gi'])")
            .message("resources take cpu, memory, ephemeral-storage and hugepages-SIZE with a page size of Linux (64Ki, 1Mi, 2Mi, 32Mi, 512Mi, 1Gi, 16Gi): ask for GPUs in accelerator.device"),
        validation = Rule::new("self.all(k, quantity(string(self[k])).compareTo(quantity('0')) >= 0 && quantity(string(self[k])).compareTo(quantity('1E')) <= 0)")
            .message("resources.limits must be amounts from 0 to 1E: write a number such as 500m, 2 or 16Gi")
    )]
    pub limits: BTreeMap<String, Quantity>,
}

/// Accelerators of each replica.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// Whole devices, or MIG slices, that a device plugin offers.
    pub device: Device,
    /// Products to choose from: exact values of the node label `nvidia.com/gpu.product`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub product_names: Vec<String>,
}

/// Devices of an extended resource.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Extended resource; absent = `nvidia.com/gpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?$') && !self.contains('kubernetes.io/') && !self.startsWith('requests.')")
        .message("accelerator.device.resourceName must be DOMAIN/NAME as the device plugin offers it, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb"))]
    pub resource_name: Option<String>,
    /// How many of them each replica gets.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 64").message("accelerator.device.count must be from 1 to 64: remove accelerator to run on CPU"))]
    pub count: i32,
}

impl Device {
    /// The resource when none is named.
    pub const DEFAULT_RESOURCE: &str = "nvidia.com/gpu";

    pub fn resource_name(&self) -> &str {
        self.resource_name.as_deref().unwrap_or(Self::DEFAULT_RESOURCE)
    }
}

/// Where replicas may run, in the words of a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Labels that a node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new("self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("placement.nodeSelector needs label keys such as zone or example.org/zone (at most 63 letters, digits and - _ . after the /)"),
        validation = Rule::new("self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
            .message("placement.nodeSelector needs label values of at most 63 letters, digits and - _ . that begin and end with a letter or digit")
    )]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that replicas tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub tolerations: Vec<Toleration>,
    /// Affinity of replicas to nodes and pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How replicas of this resource spread over zones or nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["topologyKey"])
    )]
    pub topology_spread: Vec<TopologySpread>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub runtime_class_name: Option<String>,
    /// Scheduler of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub scheduler_name: Option<String>,
}

/// One rule of spreading.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpread {
    /// Node label whose values are the places, such as `topology.kubernetes.io/zone`.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')")
        .message("topologySpread.topologyKey must be a label key, such as kubernetes.io/hostname or topology.kubernetes.io/zone"))]
    pub topology_key: String,
    /// By how many replicas two places may differ.
    #[schemars(range(min = 1, max = 1000))]
    pub max_skew: i32,
    /// What happens to a replica that would break the rule.
    pub when_unsatisfiable: WhenUnsatisfiable,
}

/// What happens to a replica that would break a rule of spreading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnsatisfiable {
    DoNotSchedule,
    ScheduleAnyway,
}
