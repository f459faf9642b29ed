//! What goes wrong in pods, from their status alone: events and logs are for people.

use std::collections::BTreeMap;

use candela_crds::{Failure, LlmDeployment, Reason};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::bounds::cut;
use super::containers::{CREATE_SECS, container_failure, scheduled_at, waits_for_runtime};
use super::workload::Workload;
use crate::{Observed, Stamp, fit};

/// At most this many are written.
const MAX_FAILURES: usize = 5;
/// Bytes of a message: a condition repeats it, and adds words of its own.
const MAX_MESSAGE: usize = 1024;
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
        for mut found in pod_failures(cr, seen, pod, workload, stamp) {
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

/// When to compute the status again although nothing changed: when a fault of a pod has lasted for long enough.
pub fn recheck_after(seen: &Observed, stamp: &Stamp) -> Option<std::time::Duration> {
    let unready = seen.pods.iter().filter_map(lost_readiness).map(|since| (since, UNREADY_SECS));
    let creating = seen.pods.iter().filter(|pod| waits_for_runtime(pod)).filter_map(scheduled_at);
    unready
        .chain(creating.map(|since| (since, CREATE_SECS)))
        .map(|(since, patience)| patience - seconds_since(since, stamp))
        .filter(|left| *left > 0)
        .min()
        .map(|left| std::time::Duration::from_secs(left.unsigned_abs()))
}

fn pod_failures(
    cr: &LlmDeployment,
    seen: &Observed,
    pod: &Pod,
    workload: &Workload,
    stamp: &Stamp,
) -> Vec<Found> {
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
        let fit = fit::fit(cr, seen);
        let (reason, mut message) = scheduling(cr, &fit, unscheduled);
        // If no node could ever hold a replica, room is not what is being waited for.
        let ending = seen.pods.iter().any(holds_until_it_ends);
        let waits = fit == fit::Fit::Possible && (ending || workload.replaces_in_place());
        if waits {
            let what = if ending { "pods that are ending still hold" } else { "the replaced pods held" };
            message = format!("waiting for room that {what}; until then: {message}");
        }
        let mut failure = found(pod, reason, message, None, !waits);
        failure.failure.last_time.clone_from(&unscheduled.last_transition_time);
        return vec![failure];
    }
    if condition(pod, "Ready").is_some_and(|ready| ready.status == "True") {
        return Vec::new();
    }
    let init = status.init_container_statuses.unwrap_or_default();
    let main = status.container_statuses.unwrap_or_default();
    let failed: Vec<Found> = init
        .iter()
        .chain(&main)
        .filter_map(|container| container_failure(cr, pod, container, stamp))
        .collect();
    if !failed.is_empty() {
        return failed;
    }
    // A container that started, runs, and is not ready: its readiness probe says no. That is so for a moment at each
    // start too, so it is told of one that was ready before, or of which the Deployment's controller gave up.
    let lost = lost_readiness(pod).is_some_and(|since| seconds_since(since, stamp) >= UNREADY_SECS);
    main.iter()
        .filter(|_| lost || workload.deadline_exceeded)
        .filter(|container| container.started == Some(true) && !container.ready)
        .filter(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
        .map(|container| {
            let message = format!(
                "container `{}` runs but does not answer its readiness probe: see its log with `kubectl logs {} -c {}`",
                container.name,
                pod.metadata.name.as_deref().unwrap_or_default(),
                container.name
            );
            found(pod, Reason::ProbeFailed, message, Some(&container.name), true)
        })
        .collect()
}

/// A pod that is being stopped and still holds its node's memory and accelerators.
fn holds_until_it_ends(pod: &Pod) -> bool {
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    let on_a_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    pod.metadata.deletion_timestamp.is_some() && on_a_node && !ended
}

/// The scheduler's verdict, in our words where we know better.
fn scheduling(cr: &LlmDeployment, fit: &fit::Fit, verdict: &PodCondition) -> (Reason, String) {
    let quoted = verdict.message.clone().unwrap_or_default();
    if let (Some(reason), Some(problem)) = (fit.reason(), fit.problem()) {
        return (reason, problem);
    }
    if let Some(accelerator) = &cr.spec.accelerator {
        let resource = accelerator.device.resource_name();
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
    if quoted.contains("Insufficient memory") {
        return (
            Reason::InsufficientMemory,
            format!(
                "no node has the memory free that each replica asks for: free some, add a node, or lower `spec.resources.requests.memory` or `spec.replicas` (scheduler: {quoted})"
            ),
        );
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

pub(super) fn seconds_since(time: &Time, stamp: &Stamp) -> i64 {
    stamp.now.0.as_second() - time.0.as_second()
}

pub(super) fn found(
    pod: &Pod,
    reason: Reason,
    message: String,
    container: Option<&str>,
    stalls: bool,
) -> Found {
    Found {
        failure: Failure {
            reason,
            message: cut(&message, MAX_MESSAGE),
            pod: pod.metadata.name.clone(),
            container: container.map(str::to_owned),
            count: 1,
            last_time: None,
        },
        stalls,
        newest: false,
    }
}
