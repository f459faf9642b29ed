//! What the servers report: models, start-up times, revisions. Kept from the previous status while a pod serves but
//! has not been asked yet, so that a restarted operator does not blank what it is about to hear again.

use candela_crds::{LlmDeploymentStatus, ModelFacts, Revision, StartupSeconds};
use candela_wire::internal::{ProcessStatus, State};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{failures::condition, workload, workload::Workload};
use crate::Observed;

/// Facts about the models of the newest pod that serves.
pub(super) fn models(
    seen: &Observed,
    workload: &Workload,
    previous: &LlmDeploymentStatus,
) -> Vec<ModelFacts> {
    if !workload.serving() {
        return Vec::new();
    }
    let reported = newest_ready(seen)
        .into_iter()
        .find_map(|pod| process(seen, pod).filter(|process| process.state == State::Ready));
    let Some(process) = reported else { return previous.models.clone() };
    process
        .models
        .iter()
        .take(16)
        .map(|model| ModelFacts {
            served_name: model.served_name.clone(),
            digest: model.digest.clone(),
            architecture: model.architecture.clone(),
            parameters: signed(model.parameters),
            size_bytes: signed(model.size_bytes),
            estimated_memory: signed(model.estimated_memory_bytes),
            quantization: model.quantization.clone(),
            context_length: i64::from(model.context_length),
            tasks: model.tasks.clone(),
            revision: model.revision.clone(),
        })
        .collect()
}

/// Phases of the start of the newest pod that serves.
pub(super) fn startup(
    seen: &Observed,
    workload: &Workload,
    previous: &LlmDeploymentStatus,
) -> Option<StartupSeconds> {
    if !workload.serving() {
        return previous.startup.clone();
    }
    let Some(pod) = newest_ready(seen).into_iter().next() else { return previous.startup.clone() };
    let created = pod.metadata.creation_timestamp.as_ref();
    let scheduled = condition(pod, "PodScheduled")
        .filter(|condition| condition.status == "True")
        .and_then(|condition| condition.last_transition_time.as_ref());
    let reported = process(seen, pod).map(|process| process.startup.clone());
    let seconds = |value: Option<f64>| value.map(|value| (value * 1000.0).round() / 1000.0);
    let (schedule, image_pull) = (between(created, scheduled), between(scheduled, first_start(pod).as_ref()));
    Some(match reported {
        Some(times) => StartupSeconds {
            schedule,
            image_pull,
            fetch: seconds(times.fetch_seconds),
            load: seconds(times.load_seconds),
            warmup: seconds(times.warmup_seconds),
            first_token: seconds(times.first_token_seconds),
        },
        // The server has figures of its own and will be asked: until then the last whole start stands.
        None if previous.startup.as_ref().is_some_and(|known| known.load.is_some()) => {
            return previous.startup.clone();
        }
        None => StartupSeconds { schedule, image_pull, ..StartupSeconds::default() },
    })
}

/// Revisions that have pods, newest first.
pub(super) fn revisions(
    seen: &Observed,
    workload: &Workload,
    previous: &LlmDeploymentStatus,
) -> Vec<Revision> {
    workload
        .replica_sets
        .iter()
        .filter(|set| workload::replicas(set) > 0)
        .take(8)
        .filter_map(|set| {
            let name = set.metadata.name.clone();
            let hash = set.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
            let of_set = |pod: &&Pod| {
                hash.is_some()
                    && pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash")) == hash
            };
            let mut pods: Vec<&Pod> = seen.pods.iter().filter(of_set).collect();
            pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            Some(Revision {
                name: name.clone()?,
                ready: workload::ready(set),
                model_digest: pods
                    .iter()
                    .find_map(|pod| process(seen, pod)?.models.first().map(|model| model.digest.clone()))
                    // A revision never changes its model.
                    .or_else(|| {
                        let known =
                            previous.revisions.iter().find(|known| Some(&known.name) == name.as_ref());
                        known.and_then(|known| known.model_digest.clone())
                    }),
                image: set.spec.as_ref().and_then(|spec| {
                    spec.template.as_ref()?.spec.as_ref()?.containers.first()?.image.clone()
                }),
            })
        })
        .collect()
}

fn process<'a>(seen: &'a Observed, pod: &Pod) -> Option<&'a ProcessStatus> {
    seen.processes.get(pod.metadata.name.as_deref()?)
}

/// Ready pods, the newest first; ties go to the first name.
fn newest_ready(seen: &Observed) -> Vec<&Pod> {
    let ready = |pod: &&Pod| {
        pod.metadata.deletion_timestamp.is_none()
            && condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
    };
    let mut pods: Vec<&Pod> = seen.pods.iter().filter(ready).collect();
    pods.sort_by(|a, b| {
        b.metadata
            .creation_timestamp
            .cmp(&a.metadata.creation_timestamp)
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    pods
}

/// When the first container of the pod started: the init step where there is one. Unknown once one was restarted.
fn first_start(pod: &Pod) -> Option<Time> {
    let status = pod.status.as_ref()?;
    let statuses =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    let all: Vec<_> = statuses.collect();
    if all.iter().any(|container| container.restart_count > 0) {
        return None;
    }
    all.into_iter()
        .filter_map(|container| {
            let state = container.state.as_ref()?;
            state
                .running
                .as_ref()
                .and_then(|running| running.started_at.clone())
                .or_else(|| state.terminated.as_ref().and_then(|end| end.started_at.clone()))
        })
        .min()
}

fn between(from: Option<&Time>, to: Option<&Time>) -> Option<f64> {
    let millis = to?.0.as_millisecond() - from?.0.as_millisecond();
    // Exact: a start takes far fewer than 2^53 milliseconds.
    Some(millis.max(0) as f64 / 1000.0)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
