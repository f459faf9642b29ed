//! `spec.podTemplate`: the few additions to pods that are safe to hand over, never a whole pod spec.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, Quantity, schema::DNS_SUBDOMAIN};

/// Additions to the pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))")
        .message("each of podTemplate.volumeMounts must name one of podTemplate.volumes")
)]
pub struct PodTemplate {
    /// Labels of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('candela.dev/') && !k.startsWith('app.kubernetes.io/') && k != 'pod-template-hash')")
            .message("labels under candela.dev/ and app.kubernetes.io/, and pod-template-hash, are Candela's and Kubernetes' own: use a prefix of your own"),
        validation = Rule::new("self.all(k, k.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("podTemplate.labels needs keys such as team or example.org/team (at most 63 letters, digits and - _ . after the /)"),
        validation = Rule::new("self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))")
            .message("podTemplate.labels needs values of at most 63 letters, digits and - _ . that begin and end with a letter or digit")
    )]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(
        validation = Rule::new("self.all(k, !k.startsWith('candela.dev/'))")
            .message("annotations under candela.dev/ are Candela's own: use a prefix of your own"),
        validation = Rule::new("self.all(k, k.matches('^([A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))")
            .message("podTemplate.annotations needs keys such as owner or example.org/owner (at most 63 letters, digits and - _ . after the /)")
    )]
    pub annotations: BTreeMap<String, String>,
    /// Volumes of the pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub volumes: Vec<Volume>,
    /// Where the server's container sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"])
    )]
    pub volume_mounts: Vec<VolumeMount>,
    /// Time that a replica has to finish its requests when it is stopped; absent = 60s, or the request timeout and
    /// 10s if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= duration('1s') && self <= duration('24h')").message("podTemplate.terminationGracePeriod must be from 1s to 24h"))]
    pub termination_grace_period: Option<Duration>,
}

/// A volume: a name and exactly one source. Folders of the node (hostPath) are left out on purpose.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0) + (has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.emptyDir) ? 1 : 0) == 1")
        .message("each volume needs exactly one of configMap, secret, persistentVolumeClaim and emptyDir (hostPath and others are not offered)"),
    validation = Rule::new("!self.name.startsWith('candela-')")
        .message("volume names starting with candela- are Candela's own: choose another name")
)]
pub struct Volume {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Files from a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolume>,
    /// Files from a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretVolume>,
    /// A PersistentVolumeClaim in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimVolume>,
    /// An empty folder that lives as long as the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirVolume>,
}

/// Files from a ConfigMap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub name: String,
}

/// Files from a Secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretVolume {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub secret_name: String,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimVolume {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253), regex(pattern = DNS_SUBDOMAIN))]
    pub claim_name: String,
    /// True = the pods only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// An empty folder.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirVolume {
    /// Largest size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).compareTo(quantity('1E')) <= 0")
        .message("emptyDir.sizeLimit must be an amount from 0 to 1E: write a number such as 512Mi or 16Gi"))]
    pub size_limit: Option<Quantity>,
    /// `Memory` = in memory, counted against the memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), extend("enum" = ["Memory"]))]
    pub medium: Option<String>,
}

/// Where the server's container sees a volume.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Absolute path in the container.
    #[schemars(length(min = 2, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^(/[^/:]+)+$') && !self.matches('/[.][.]?(/|$)')")
            .message("mountPath must be a plain absolute path, such as /data/cache: no //, no . or .. as a part, no : and no / at the end"),
        validation = Rule::new("!['/etc/candela', '/models', '/pvc', '/tmp', '/var/run/candela', '/run/candela', '/dev', '/proc', '/sys'].exists(p, self == p || self.startsWith(p + '/') || p.startsWith(self + '/'))")
            .message("mountPath must stay out of /etc/candela, /models, /pvc, /tmp, /var/run/candela, /run/candela, /dev, /proc and /sys, and not cover them: choose another folder, such as /data")
    )]
    pub mount_path: String,
    /// Path inside the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^/:.][^:]*$"))]
    #[x_kube(validation = Rule::new("!self.matches('(^|/)[.][.](/|$)')")
        .message("subPath must stay inside the volume: write it without .. as a part"))]
    pub sub_path: Option<String>,
    /// True = the container only reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}
