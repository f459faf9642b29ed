//! The keys with which the servers check the gateway's token, in a ConfigMap that changes when the cluster's keys do. The
//! pod template mounts it by a fixed name and may start without it: a rotation rolls nothing.

use std::collections::BTreeMap;

use candela_crds::EngineName;
use candela_wire::trust::{
    AUDIENCE, JwkSet, TRUST_DIR, TRUST_KEY, TRUST_VERSION, TrustFile, gateway_subject,
};
use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, Volume, VolumeMount};

use super::pod::mount;
use crate::{ClusterKeys, OwnedKind, Resolved, names};

/// The pods' volume with it.
pub(super) const VOLUME: &str = "candela-trust";
/// With the 50 of a resource's name 63; no hash of a configuration is spelled so.
const SUFFIX: &str = "-server-trust";

/// Of servers of ours; a foreign one has no use for it.
pub(super) fn is_mounted(resolved: &Resolved) -> bool {
    resolved.engine == EngineName::Candle
}

pub(super) fn name(resolved: &Resolved) -> String {
    format!("{}{SUFFIX}", names::child(OwnedKind::ConfigMap, &resolved.name))
}

pub(super) fn config_map(resolved: &Resolved, keys: &ClusterKeys) -> ConfigMap {
    let file = TrustFile {
        version: TRUST_VERSION,
        issuer: keys.issuer.clone(),
        audience: AUDIENCE.to_owned(),
        subjects: vec![gateway_subject(&resolved.operator_namespace)],
        jwks: JwkSet { keys: keys.keys.clone() },
    };
    let text = serde_json::to_string_pretty(&file).expect("plain data with string keys serialises");
    let mut metadata = super::metadata(resolved, OwnedKind::ConfigMap);
    metadata.name = Some(name(resolved));
    ConfigMap { metadata, data: Some(BTreeMap::from([(TRUST_KEY.to_owned(), text)])), ..ConfigMap::default() }
}

pub(super) fn mounts(resolved: &Resolved) -> Option<VolumeMount> {
    // The whole folder: of a single file (subPath) the kubelet never swaps the content.
    is_mounted(resolved).then(|| mount(VOLUME, TRUST_DIR, true))
}

pub(super) fn volume(resolved: &Resolved) -> Option<Volume> {
    is_mounted(resolved).then(|| Volume {
        name: VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: name(resolved),
            optional: Some(true),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    })
}
