//! `server.json`, in a ConfigMap named after its content. A change of configuration is then a new object under a new
//! name: the pod template changes with it, so the pods roll exactly once, and a container of an old pod that restarts
//! in the middle of a rollout still reads the file that it was started with.

use std::collections::{BTreeMap, BTreeSet};

use candela_crds::{Duration, EngineName, LlmDeploymentSpec, WeightsFormat};
use candela_wire::config::{
    Accelerator, Batching, Format, ModelConfig, Quantization, SERVER_CONFIG_KEY, ServerConfig, Task, Timeouts,
};
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec};
use sha2::{Digest, Sha256};

use super::{trust, weights};
use crate::{Observed, OwnedKind, Resolved, ResolvedModel, names};

/// The pods' volume with `server.json`.
pub(crate) const VOLUME: &str = "candela-config";
/// Hexadecimal digits of the content's hash in a name: with the 50 of a resource's name and a dash, 61 of at most 63.
const HASH_DIGITS: usize = 10;

/// Seconds without progress after which a starting server gives up, however long its deadline is.
const STALL_SECS: u32 = 300;

/// The file that the pods of this resource read; `None` if none of their containers is ours.
pub fn server_config(resolved: &Resolved) -> Option<ServerConfig> {
    if resolved.engine == EngineName::Custom && resolved.fetch_image.is_none() {
        return None;
    }
    let timeouts =
        resolved.spec.routing.as_ref().and_then(|routing| routing.timeouts.clone()).unwrap_or_default();
    Some(ServerConfig {
        version: 1,
        models: std::iter::once(model_config(&resolved.model, false))
            .chain(resolved.additional.iter().map(|model| model_config(model, true)))
            .collect(),
        batching: batching(&resolved.spec),
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

fn model_config(model: &ResolvedModel, additional: bool) -> ModelConfig {
    let wanted = &model.spec;
    ModelConfig {
        revision: wanted.revision.clone(),
        format: wanted.format.map(|format| match format {
            WeightsFormat::Safetensors => Format::Safetensors,
            WeightsFormat::Gguf => Format::Gguf,
        }),
        context_length: wanted.context_length.map(i32::unsigned_abs),
        sha256: wanted.verification.as_ref().map(|verification| verification.sha256.clone()),
        credentials_file: weights::token_file(model, additional),
        quantization: wanted.quantization.and_then(quantization),
        tasks: tasks(&wanted.tasks),
        ..ModelConfig::new(&model.served_name, wanted.uri.clone().unwrap_or_default())
    }
}

fn quantization(wanted: candela_crds::Quantization) -> Option<Quantization> {
    match wanted {
        candela_crds::Quantization::None => None,
        candela_crds::Quantization::Q8 => Some(Quantization::Q8),
        candela_crds::Quantization::Q4 => Some(Quantization::Q4),
    }
}

/// In one order, as a set has none.
fn tasks(wanted: &[candela_crds::Task]) -> Vec<Task> {
    let tasks: BTreeSet<Task> = wanted
        .iter()
        .map(|task| match task {
            candela_crds::Task::Generate => Task::Generate,
            candela_crds::Task::Embed => Task::Embed,
            candela_crds::Task::Rerank => Task::Rerank,
            candela_crds::Task::TokenClassify => Task::TokenClassify,
        })
        .collect();
    tasks.into_iter().collect()
}

fn batching(spec: &LlmDeploymentSpec) -> Batching {
    let wanted = spec.batching.clone().unwrap_or_default();
    Batching {
        max_batch_tokens: wanted.max_batch_tokens.map(i32::unsigned_abs),
        max_sequences: wanted.max_sequences.map(i32::unsigned_abs),
        max_queue: wanted.max_queue.map(i32::unsigned_abs),
        max_wait_ms: wanted.max_wait.as_ref().map(Duration::as_millis),
    }
}

pub(super) fn config_map(resolved: &Resolved) -> Option<ConfigMap> {
    let text = text(resolved)?;
    let mut metadata = super::metadata(resolved, OwnedKind::ConfigMap);
    metadata.name = Some(name_for(&resolved.name, &text));
    Some(ConfigMap {
        metadata,
        data: Some(BTreeMap::from([(SERVER_CONFIG_KEY.to_owned(), text)])),
        // Its name is the hash of its content; the kubelet need not watch it either.
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// Name of the ConfigMap of this configuration; `None` if no container is ours.
pub(crate) fn name(resolved: &Resolved) -> Option<String> {
    Some(name_for(&resolved.name, &text(resolved)?))
}

/// The name that a ConfigMap with this `server.json` must have.
pub(crate) fn name_for(resource: &str, text: &str) -> String {
    let hash = hex::encode(Sha256::digest(text));
    format!("{}-{}", names::child(OwnedKind::ConfigMap, resource), &hash[..HASH_DIGITS])
}

/// ConfigMaps of earlier configurations that pods still read, or may read when a container restarts: those of
/// ReplicaSets that want or have pods, and of pods that are still there.
pub(super) fn in_use(seen: &Observed) -> BTreeSet<String> {
    let live = seen.replica_sets.iter().filter(|set| {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        wanted > 0 || set.status.as_ref().is_some_and(|status| status.replicas > 0)
    });
    let of_sets = live.filter_map(|set| set.spec.as_ref()?.template.as_ref()?.spec.as_ref());
    let of_pods = seen.pods.iter().filter_map(|pod| pod.spec.as_ref());
    of_sets.chain(of_pods).flat_map(mounted).collect()
}

fn mounted(pod: &PodSpec) -> impl Iterator<Item = String> {
    let ours = pod.volumes.iter().flatten().filter(|volume| [VOLUME, trust::VOLUME].contains(&&*volume.name));
    ours.filter_map(|volume| Some(volume.config_map.as_ref()?.name.clone()))
}

fn text(resolved: &Resolved) -> Option<String> {
    let config = server_config(resolved)?;
    Some(serde_json::to_string_pretty(&config).expect("the configuration always serialises"))
}
