//! `server.json`, and the hash of it that makes a change of configuration roll the pods.

use std::collections::BTreeMap;

use candela_crds::{Duration, EngineName, WeightsFormat};
use candela_wire::config::{
    Accelerator, CREDENTIALS_DIR, Format, ModelConfig, SERVER_CONFIG_KEY, ServerConfig, Timeouts,
};
use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest, Sha256};

use crate::{OwnedKind, Resolved, resolve::Source};

/// Seconds without progress after which a starting server gives up, however long its deadline is.
const STALL_SECS: u32 = 300;

/// The file that the pods of this resource read; `None` if none of their containers is ours.
pub fn server_config(resolved: &Resolved) -> Option<ServerConfig> {
    if resolved.engine == EngineName::Custom && resolved.fetch_image.is_none() {
        return None;
    }
    let model = &resolved.spec.model;
    let timeouts =
        resolved.spec.routing.as_ref().and_then(|routing| routing.timeouts.clone()).unwrap_or_default();
    Some(ServerConfig {
        version: 1,
        models: vec![ModelConfig {
            served_name: resolved.served_name.clone(),
            uri: model.uri.clone().unwrap_or_default(),
            revision: model.revision.clone(),
            format: model.format.map(|format| match format {
                WeightsFormat::Safetensors => Format::Safetensors,
                WeightsFormat::Gguf => Format::Gguf,
            }),
            context_length: model.context_length.map(i32::unsigned_abs),
            sha256: model.verification.as_ref().map(|verification| verification.sha256.clone()),
            credentials_file: match (&resolved.source, &model.credentials_ref) {
                (Source::Fetched { .. }, Some(_)) => Some(format!("{CREDENTIALS_DIR}/token")),
                _ => None,
            },
        }],
        accelerator: resolved
            .accelerator
            .clone()
            .map(|(resource_name, count)| Accelerator { resource_name, count }),
        timeouts: Timeouts {
            request_ms: timeouts.request.as_ref().map(Duration::as_millis),
            first_token_ms: timeouts.first_token.as_ref().map(Duration::as_millis),
        },
        termination_grace_seconds: resolved.grace_secs.unsigned_abs(),
        startup_stall_seconds: STALL_SECS.min(resolved.progress_deadline_secs.unsigned_abs()),
    })
}

pub(super) fn config_map(resolved: &Resolved) -> Option<ConfigMap> {
    Some(ConfigMap {
        metadata: super::metadata(resolved, OwnedKind::ConfigMap),
        data: Some(BTreeMap::from([(SERVER_CONFIG_KEY.to_owned(), text(resolved)?)])),
        ..ConfigMap::default()
    })
}

/// Hash of `server.json`; changes exactly when the file does.
pub(super) fn hash(resolved: &Resolved) -> Option<String> {
    Some(hex::encode(&Sha256::digest(text(resolved)?)[..16]))
}

fn text(resolved: &Resolved) -> Option<String> {
    let config = server_config(resolved)?;
    Some(serde_json::to_string_pretty(&config).expect("the configuration always serialises"))
}
