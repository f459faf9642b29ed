//! What goes wrong in pods, from their status alone: events and logs are for people.

use std::collections::BTreeMap;

use candela_crds::{EngineName, Failure, LlmDeployment, Reason};
use candela_wire::termination::{ExitReason, TerminationMessage};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::workload::Workload;
use crate::{Observed, Stamp, fit};

/// At most this many are written.
const MAX_FAILURES: usize = 5;
/// A pod that lost its readiness for less than this is not called failed.
const UNREADY_SECS: i64 = 10;

/// A failure, and whether it ends without somebody acting.
pub(super) struct Found {
    pub(super) failure: Failure,
    /// False for what may well pass: then the resource is progressing, not stalled.
    pub(super) stalls: bool,
    /// Seen in a pod of the wanted revision.
    pub(super) newest: bool,
}

/// Failures of the pods that exist, the most frequent first.
pub(super) fn failures(
    cr: &LlmDeployment,
    seen: &Observed,
    workload: &Workload,
    stamp: &Stamp,
) -> Vec<Found> {
    let mut grouped: BTreeMap<(Reason, Option<String>), Found> = BTreeMap::new();
    let mut pods: Vec<&Pod> =
        seen.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for pod in pods {
        let newest = workload.is_newest(pod);
        for mut found in pod_failures(cr, seen, pod, stamp) {
            found.newest = newest;
            let key = (found.failure.reason, found.failure.container.clone());
            match grouped.get_mut(&key) {
                None => {
                    grouped.insert(key, found);
                }
                Some(group) => {
                    group.failure.count += 1;
                    group.stalls |= found.stalls;
                    group.newest |= newest;
                    group.failure.last_time = group.failure.last_time.clone().max(found.failure.last_time);
                }
            }
        }
    }
    let mut all: Vec<Found> = grouped.into_values().collect();
    all.sort_by(|a, b| {
        (b.stalls, b.failure.count)
            .cmp(&(a.stalls, a.failure.count))
            .then(a.failure.reason.cmp(&b.failure.reason))
    });
    all.truncate(MAX_FAILURES);
    all
}

/// When to compute the status again although nothing changed: when a pod has been unready for long enough.
pub fn recheck_after(seen: &Observed, stamp: &Stamp) -> Option<std::time::Duration> {
    seen.pods
        .iter()
        .filter_map(lost_readiness)
        .map(|since| UNREADY_SECS - seconds_since(since, stamp))
        .filter(|left| *left > 0)
        .min()
        .map(|left| std::time::Duration::from_secs(left.unsigned_abs()))
}

fn pod_failures(cr: &LlmDeployment, seen: &Observed, pod: &Pod, stamp: &Stamp) -> Vec<Found> {
    let status = pod.status.clone().unwrap_or_default();
    if status.phase.as_deref() == Some("Failed") {
        let reason =
            if status.reason.as_deref() == Some("Evicted") { Reason::Evicted } else { Reason::Crashed };
        // Its ReplicaSet has replaced it already.
        return vec![found(
            pod,
            reason,
            format!("the pod was ended: {}", status.message.unwrap_or_else(|| "no message".to_owned())),
            None,
            false,
        )];
    }
    if let Some(unscheduled) = unschedulable(pod) {
        let (reason, message) = scheduling(cr, seen, unscheduled);
        let mut failure = found(pod, reason, message, None, true);
        failure.failure.last_time.clone_from(&unscheduled.last_transition_time);
        return vec![failure];
    }
    if condition(pod, "Ready").is_some_and(|ready| ready.status == "True") {
        return Vec::new();
    }
    let init = status.init_container_statuses.unwrap_or_default();
    let main = status.container_statuses.unwrap_or_default();
    let failed: Vec<Found> =
        init.iter().chain(&main).filter_map(|container| container_failure(cr, pod, container)).collect();
    if !failed.is_empty() {
        return failed;
    }
    // A container that started, runs, and is not ready: its readiness probe says no.
    main.iter()
        .filter(|container| container.started == Some(true) && !container.ready)
        .filter(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
        .map(|container| {
            let lost = lost_readiness(pod).is_some_and(|since| seconds_since(since, stamp) >= UNREADY_SECS);
            let message = format!(
                "container `{}` runs but does not answer its readiness probe: see its log with `kubectl logs {} -c {}`",
                container.name,
                pod.metadata.name.as_deref().unwrap_or_default(),
                container.name
            );
            found(pod, Reason::ProbeFailed, message, Some(&container.name), lost)
        })
        .collect()
}

fn container_failure(cr: &LlmDeployment, pod: &Pod, container: &ContainerStatus) -> Option<Found> {
    let state = container.state.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        let detail = waiting.message.as_deref().unwrap_or_default();
        let (reason, message) = match waiting.reason.as_deref().unwrap_or_default() {
            "InvalidImageName" => (
                Reason::InvalidImageName,
                format!("image `{}` is not a valid reference: correct it", container.image),
            ),
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "RegistryUnavailable"
            | "ImageInspectError"
            | "SignatureValidationFailed" => (
                Reason::ImagePullFailed,
                format!(
                    "image `{}` cannot be pulled: correct the name, or make it available to the nodes ({})",
                    container.image,
                    pull_detail(detail)
                ),
            ),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "StartError" => (
                Reason::ContainerConfigError,
                format!("container `{}` cannot be created: {detail}", container.name),
            ),
            _ => return last_end(cr, pod, container, &state.terminated),
        };
        return Some(found(pod, reason, message, Some(&container.name), true));
    }
    last_end(cr, pod, container, &state.terminated)
}

/// Kubelet alternates between the failed pull and the wait after it; the cause is the same, so are the words.
fn pull_detail(message: &str) -> &str {
    let cause = message.split_once("ErrImagePull: ").map_or(message, |(_, cause)| cause);
    if cause.is_empty() { "see `kubectl describe pod`" } else { cause }
}

/// How the container last ended, unless it ended well.
fn last_end(
    cr: &LlmDeployment,
    pod: &Pod,
    container: &ContainerStatus,
    now: &Option<ContainerStateTerminated>,
) -> Option<Found> {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let end = now.as_ref().or(last)?;
    let init = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let is_init = init.is_some_and(|list| list.iter().any(|init| init.name == container.name));
    if is_init && end.exit_code == 0 {
        return None;
    }
    let (reason, message) = explain(cr, pod, &container.name, end);
    let mut failure = found(pod, reason, message, Some(&container.name), true);
    failure.failure.last_time.clone_from(&end.finished_at);
    Some(failure)
}

fn explain(
    cr: &LlmDeployment,
    pod: &Pod,
    container: &str,
    end: &ContainerStateTerminated,
) -> (Reason, String) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let ours = cr.spec.engine_name() == EngineName::Candle || container == crate::children::FETCH;
    let text = end.message.as_deref().unwrap_or_default();
    if ours && let Some(TerminationMessage { reason, message }) = TerminationMessage::parse(text) {
        return (of_exit(reason), message);
    }
    if end.reason.as_deref() == Some("OOMKilled") {
        return (
            Reason::OutOfMemory,
            format!(
                "container `{container}` used more memory than its limit: raise `spec.resources.limits.memory`, or choose a smaller model or contextLength"
            ),
        );
    }
    // Only the kubelet asks our server to end, or kills it (137 = SIGKILL, 143 = SIGTERM), without running out of memory.
    let stopped = matches!(end.exit_code, 137 | 143) || (ours && end.exit_code == 0);
    if stopped {
        return (
            Reason::ProbeFailed,
            format!(
                "container `{container}` was stopped (exit code {}), because its startup or liveness probe failed: see `kubectl logs {name} -c {container} --previous`; a slow start needs a longer `spec.rollout.progressDeadline`",
                end.exit_code
            ),
        );
    }
    let tail = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(|line| format!(": {}", cut(line.trim(), 300)));
    (
        Reason::Crashed,
        format!(
            "container `{container}` ended with exit code {}{}; see `kubectl logs {name} -c {container} --previous`",
            end.exit_code,
            tail.unwrap_or_default()
        ),
    )
}

/// Each reason of a termination message has one condition reason.
fn of_exit(reason: ExitReason) -> Reason {
    match reason {
        ExitReason::InvalidConfiguration => Reason::InvalidConfiguration,
        ExitReason::WeightsNotFound => Reason::WeightsNotFound,
        ExitReason::WeightsUnauthorized => Reason::WeightsUnauthorized,
        ExitReason::WeightsFetchFailed => Reason::WeightsFetchFailed,
        ExitReason::ChecksumMismatch => Reason::ChecksumMismatch,
        ExitReason::ModelUnsupported => Reason::ModelUnsupported,
        ExitReason::OutOfMemory => Reason::OutOfMemory,
        ExitReason::DeviceUnsupported => Reason::DeviceUnsupported,
        ExitReason::StartupStalled => Reason::StartupStalled,
        ExitReason::EngineCrashed => Reason::EngineCrashed,
    }
}

/// The scheduler's verdict, in our words where we know better.
fn scheduling(cr: &LlmDeployment, seen: &Observed, verdict: &PodCondition) -> (Reason, String) {
    let quoted = verdict.message.clone().unwrap_or_default();
    let fit = fit::fit(cr, seen);
    if let (fit::Fit::UnknownProduct { .. }, Some(problem)) = (&fit, fit.problem()) {
        return (Reason::UnknownProduct, problem);
    }
    if let Some(accelerator) = &cr.spec.accelerator {
        let resource = accelerator.device.resource_name();
        if let Some(problem) = fit.problem() {
            return (Reason::InsufficientAccelerators, problem);
        }
        if quoted.contains(&format!("Insufficient {resource}")) {
            return (
                Reason::InsufficientAccelerators,
                format!(
                    "no node has {} of {resource} free: free some, add a node, or lower `spec.accelerator.device.count` or `spec.replicas` (scheduler: {quoted})",
                    accelerator.device.count
                ),
            );
        }
    }
    (
        Reason::Unschedulable,
        format!(
            "no node can take the pod: change `spec.resources` or `spec.placement`, or add a node (scheduler: {quoted})"
        ),
    )
}

pub(super) fn unschedulable(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "PodScheduled")
        .filter(|verdict| verdict.status == "False" && verdict.reason.as_deref() == Some("Unschedulable"))
}

pub(super) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Since when a pod that was ready no longer is. One that never was carries the time of its creation instead, which
/// lies before its container's start.
fn lost_readiness(pod: &Pod) -> Option<&Time> {
    let since =
        condition(pod, "Ready").filter(|ready| ready.status == "False")?.last_transition_time.as_ref()?;
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let started = statuses.first()?.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
    (since > started).then_some(since)
}

fn seconds_since(time: &Time, stamp: &Stamp) -> i64 {
    stamp.now.0.as_second() - time.0.as_second()
}

fn found(pod: &Pod, reason: Reason, message: String, container: Option<&str>, stalls: bool) -> Found {
    Found {
        failure: Failure {
            reason,
            message: cut(&message, 1024),
            pod: pod.metadata.name.clone(),
            container: container.map(str::to_owned),
            count: 1,
            last_time: None,
        },
        stalls,
        newest: false,
    }
}

/// At most `max` bytes, cut at a character.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max - '…'.len_utf8();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
