//! The conditions. `Ready` says what a client of the model sees; `Reconciling` and `Stalled` are there only while
//! true, in the sense of kstatus; the others say where to look.

use candela_crds::{
    Condition, ConditionStatus as Status, ConditionType as Type, LlmDeployment, NetworkPolicyMode, Reason,
};
use k8s_openapi::api::core::v1::Pod;

use super::failures::{Found, condition};
use super::workload::Workload;
use crate::children::{FETCH, SERVER};
use crate::fit::Fit;
use crate::{NetworkPolicyEnforced, Observed, PlanOutcome, Resolved, Settings, Stamp};

pub(super) struct Input<'a> {
    pub(super) cr: &'a LlmDeployment,
    /// Of the status that the conditions are part of.
    pub(super) observed_generation: i64,
    pub(super) outcome: &'a PlanOutcome,
    pub(super) seen: &'a Observed,
    pub(super) settings: &'a Settings,
    pub(super) workload: &'a Workload,
    pub(super) failures: &'a [Found],
    pub(super) fit: &'a Fit,
    pub(super) stamp: &'a Stamp,
}

/// One condition without its times.
struct Finding {
    type_: Type,
    status: Status,
    reason: Reason,
    message: String,
}

fn finding(type_: Type, status: Status, reason: Reason, message: impl Into<String>) -> Finding {
    Finding { type_, status, reason, message: message.into() }
}

/// Why the present generation cannot be reached, or has not been yet.
struct Problem {
    reason: Reason,
    message: String,
}

pub(super) fn conditions(input: &Input<'_>) -> Vec<Condition> {
    let stall = stall(input);
    let mut found = vec![ready(input, stall.as_ref())];
    match &stall {
        Some(problem) => {
            found.push(finding(Type::Stalled, Status::True, problem.reason, problem.message.clone()));
        }
        None if !input.workload.settled() => {
            found.push(finding(Type::Reconciling, Status::True, Reason::Progressing, progress(input)));
        }
        None => {}
    }
    found.extend([
        validated(input),
        model_available(input),
        schedulable(input),
        workload_ready(input),
        rollout_complete(input, stall.as_ref()),
        network_policy(input),
    ]);
    let previous = input.cr.status.as_ref().map_or(&[][..], |status| &status.conditions);
    found
        .into_iter()
        .map(|found| Condition {
            type_: found.type_,
            status: found.status,
            observed_generation: input.observed_generation,
            last_transition_time: previous
                .iter()
                .find(|known| known.type_ == found.type_ && known.status == found.status)
                .map_or_else(|| input.stamp.now.clone(), |known| known.last_transition_time.clone()),
            reason: found.reason,
            message: found.message,
        })
        .collect()
}

/// What somebody must act upon, the cause before its effects.
fn stall(input: &Input<'_>) -> Option<Problem> {
    if let Err(blocked) = &input.outcome.resolved {
        return Some(Problem { reason: blocked.reason, message: blocked.message.clone() });
    }
    if let Some(failure) = input.outcome.apply_failure.as_ref().filter(|failure| !failure.retryable) {
        return Some(Problem {
            reason: Reason::ApplyFailed,
            message: format!(
                "the API server refused {} `{}`: {}; if a quota or a policy says so, change it or this resource",
                failure.kind, failure.name, failure.message
            ),
        });
    }
    if input.workload.suspended() || input.workload.settled() {
        return None;
    }
    if let Some(message) = &input.workload.creation_failure {
        return Some(Problem {
            reason: Reason::PodCreationFailed,
            message: format!("pods cannot be created: {message}; raise the quota or change this resource"),
        });
    }
    if let Some(problem) = no_room_to_surge(input) {
        return Some(problem);
    }
    // What an older revision suffers from may be just what the present one mends.
    if let Some(found) = input.failures.iter().find(|found| found.stalls && found.newest) {
        return Some(Problem { reason: found.failure.reason, message: found.failure.message.clone() });
    }
    if input.workload.deadline_exceeded {
        let hint =
            input.failures.first().map(|found| format!(": {}", found.failure.message)).unwrap_or_default();
        return Some(Problem {
            reason: Reason::ProgressDeadlineExceeded,
            message: format!(
                "no replica became ready within `spec.rollout.progressDeadline`{hint}; see `kubectl describe pod`, or allow more time"
            ),
        });
    }
    None
}

/// A new pod waits for an accelerator while old ones, which wait for it, hold them all.
fn no_room_to_surge(input: &Input<'_>) -> Option<Problem> {
    let accelerator = input.cr.spec.accelerator.as_ref()?;
    let waits = input.failures.iter().any(|found| {
        found.stalls && found.newest && found.failure.reason == Reason::InsufficientAccelerators
    });
    // If no node could ever hold a replica, room is not what is missing; nor if nothing was started beside the old ones.
    let surges = input.workload.surges && input.workload.replacing();
    if !waits || !surges || *input.fit != Fit::Possible {
        return None;
    }
    let meanwhile = if input.workload.serving() { "; the old revision serves meanwhile" } else { "" };
    Some(Problem {
        reason: Reason::NoRoomToSurge,
        message: format!(
            "the new revision waits for {} of {}, and only the pods that it replaces hold them: set `spec.rollout.strategy: Recreate`, or `spec.rollout.maxSurge: 0` with `maxUnavailable: 1`, or add a node{meanwhile}",
            accelerator.device.count,
            accelerator.device.resource_name()
        ),
    })
}

fn ready(input: &Input<'_>, stall: Option<&Problem>) -> Finding {
    let workload = input.workload;
    let (ready, desired) = (workload.ready, workload.desired);
    if input.outcome.resolved.is_ok() && stall.is_none() && workload.suspended() {
        return finding(Type::Ready, Status::False, Reason::Suspended, suspended(input));
    }
    if workload.serving() {
        let rest = stall.map_or("", |_| "; what was last asked for is not in effect, see Stalled");
        let message = format!("{ready} of {desired} replicas answer{rest}");
        return finding(Type::Ready, Status::True, Reason::Serving, message);
    }
    match stall {
        Some(problem) => finding(Type::Ready, Status::False, problem.reason, problem.message.clone()),
        None => finding(Type::Ready, Status::False, hindrance(input), progress(input)),
    }
}

/// What keeps the present revision from being there although it may pass by itself, and so is no reason to stall.
fn hindering<'a>(input: &Input<'a>) -> Option<&'a Found> {
    let attempted = input.outcome.apply_failure.is_none() && input.workload.children_current;
    input.failures.iter().find(|found| attempted && found.newest)
}

fn hindrance(input: &Input<'_>) -> Reason {
    hindering(input).map_or(Reason::Progressing, |found| found.failure.reason)
}

fn suspended(input: &Input<'_>) -> String {
    if input.cr.spec.suspend == Some(true) {
        "suspended by `spec.suspend`: remove it to serve again".to_owned()
    } else {
        "no replicas are wanted: set `spec.replicas` to serve".to_owned()
    }
}

/// What is being waited for.
fn progress(input: &Input<'_>) -> String {
    let workload = input.workload;
    if let Some(failure) = &input.outcome.apply_failure {
        return format!(
            "{} `{}` could not be written and is tried again: {}",
            failure.kind, failure.name, failure.message
        );
    }
    if !workload.children_current {
        return "writing the Deployment and what belongs to it".to_owned();
    }
    let hindered = hindering(input).map(|found| format!(": {}", found.failure.message)).unwrap_or_default();
    if workload.updated < workload.desired || workload.replicas > workload.updated {
        let (updated, desired) = (workload.updated, workload.desired);
        return format!("{updated} of {desired} replicas run the present revision{hindered}");
    }
    format!("{} of {} replicas answer{hindered}", workload.ready, workload.desired)
}

fn validated(input: &Input<'_>) -> Finding {
    match &input.outcome.resolved {
        Ok(Resolved { missing: Some(missing), .. }) => finding(
            missing.condition,
            Status::False,
            missing.reason,
            format!("no replica is wanted, but one could not start: {}", missing.message),
        ),
        Ok(_) => finding(
            Type::Validated,
            Status::True,
            Reason::Valid,
            "the spec and what it refers to can be used",
        ),
        Err(blocked) => finding(blocked.condition, Status::False, blocked.reason, blocked.message.clone()),
    }
}

fn model_available(input: &Input<'_>) -> Finding {
    let type_ = Type::ModelAvailable;
    if input.workload.serving() {
        let message = match &names(input.cr)[..] {
            [_] => "the model is loaded in a pod that serves".to_owned(),
            several => format!("{} are loaded in a pod that serves", list(several)),
        };
        return finding(type_, Status::True, Reason::Loaded, message);
    }
    if input.workload.suspended() {
        return finding(type_, Status::False, Reason::Suspended, suspended(input));
    }
    if let Some(found) = input.failures.iter().find(|found| of_model(found.failure.reason)) {
        return finding(type_, Status::False, found.failure.reason, found.failure.message.clone());
    }
    let pods = || input.seen.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    if pods().any(|pod| running(pod, SERVER)) {
        finding(type_, Status::False, Reason::Loading, loading(input))
    } else if pods().any(|pod| running(pod, FETCH)) {
        finding(type_, Status::False, Reason::Fetching, "the weights are being fetched")
    } else {
        finding(type_, Status::False, Reason::Pending, "no pod has started yet")
    }
}

/// Served names of the models of this resource, that of `spec.model` first.
fn names(cr: &LlmDeployment) -> Vec<&str> {
    let main = cr.spec.model.served_name.as_ref().or(cr.metadata.name.as_ref());
    let additional = cr.spec.additional_models.iter().filter_map(|model| model.served_name.as_ref());
    main.into_iter().chain(additional).map(String::as_str).collect()
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Of several models, which the pod that is farthest has loaded already.
fn loading(input: &Input<'_>) -> String {
    let names = names(input.cr);
    if names.len() == 1 {
        return "the server is loading the model".to_owned();
    }
    let loaded = |pod: &Pod| {
        let process = input.seen.processes.get(pod.metadata.name.as_deref()?)?;
        let has = |name: &&str| process.models.iter().any(|model| model.served_name == *name);
        Some(names.iter().copied().filter(has).collect::<Vec<_>>())
    };
    let pods = input.seen.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let most = pods.filter_map(loaded).max_by_key(Vec::len).unwrap_or_default();
    if most.is_empty() {
        return format!("the server is loading {}", list(&names));
    }
    let rest: Vec<&str> = names.into_iter().filter(|name| !most.contains(name)).collect();
    if rest.is_empty() {
        return format!("{} are loaded, and the server is about to be ready", list(&most));
    }
    format!("the server is loading {}; it has loaded {}", list(&rest), list(&most))
}

/// Reasons that speak of the weights rather than of the pod around them.
fn of_model(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::WeightsNotFound
            | Reason::WeightsUnauthorized
            | Reason::WeightsFetchFailed
            | Reason::ChecksumMismatch
            | Reason::ModelUnsupported
            | Reason::OutOfMemory
            | Reason::StartupStalled
    )
}

fn running(pod: &Pod, container: &str) -> bool {
    let Some(status) = &pod.status else { return false };
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.filter(|found| found.name == container)
        .any(|found| found.state.as_ref().is_some_and(|state| state.running.is_some()))
}

fn schedulable(input: &Input<'_>) -> Finding {
    let type_ = Type::Schedulable;
    if input.workload.suspended() {
        return finding(type_, Status::Unknown, Reason::Suspended, suspended(input));
    }
    let of_scheduling = |reason: Reason| {
        matches!(
            reason,
            Reason::Unschedulable
                | Reason::InsufficientAccelerators
                | Reason::InsufficientMemory
                | Reason::UnknownProduct
        )
    };
    if let Some(found) = input.failures.iter().find(|found| of_scheduling(found.failure.reason)) {
        return finding(type_, Status::False, found.failure.reason, found.failure.message.clone());
    }
    if !input.workload.settled()
        && let (Some(reason), Some(problem)) = (input.fit.reason(), input.fit.problem())
    {
        return finding(type_, Status::False, reason, problem);
    }
    let has_node =
        |pod: &Pod| condition(pod, "PodScheduled").is_some_and(|scheduled| scheduled.status == "True");
    if !input.seen.pods.is_empty() && input.seen.pods.iter().all(has_node) {
        finding(type_, Status::True, Reason::Scheduled, "every pod has a node")
    } else {
        finding(type_, Status::Unknown, Reason::Pending, "the scheduler has not decided yet")
    }
}

fn workload_ready(input: &Input<'_>) -> Finding {
    let type_ = Type::WorkloadReady;
    let (ready, desired) = (input.workload.ready, input.workload.desired);
    if input.workload.suspended() {
        return finding(type_, Status::False, Reason::Suspended, suspended(input));
    }
    let counts = format!("{ready} of {desired} replicas answer");
    if ready >= desired {
        return finding(type_, Status::True, Reason::AllReplicasReady, counts);
    }
    match input.failures.first() {
        Some(found) => finding(
            type_,
            Status::False,
            found.failure.reason,
            format!("{counts}: {}", found.failure.message),
        ),
        None => finding(type_, Status::False, Reason::SomeReplicasUnready, counts),
    }
}

fn rollout_complete(input: &Input<'_>, stall: Option<&Problem>) -> Finding {
    let type_ = Type::RolloutComplete;
    if input.workload.rolled_out() {
        return finding(type_, Status::True, Reason::Complete, "every pod runs the present revision");
    }
    match stall {
        Some(problem) => finding(type_, Status::False, problem.reason, problem.message.clone()),
        None => finding(type_, Status::False, hindrance(input), progress(input)),
    }
}

fn network_policy(input: &Input<'_>) -> Finding {
    let type_ = Type::NetworkPolicyEnforced;
    let mode = input.cr.spec.access.as_ref().and_then(|access| access.network_policy).unwrap_or_default();
    if mode == NetworkPolicyMode::None {
        return finding(
            type_,
            Status::False,
            Reason::NotManaged,
            "`spec.access.networkPolicy` is None: Candela writes no NetworkPolicy",
        );
    }
    match input.settings.network_policy_enforced {
        NetworkPolicyEnforced::Yes => finding(
            type_,
            Status::True,
            Reason::Enforced,
            "the operator's configuration says that this cluster enforces NetworkPolicies",
        ),
        NetworkPolicyEnforced::No => finding(
            type_,
            Status::False,
            Reason::NotEnforced,
            "a NetworkPolicy is written, but this cluster does not enforce it: every pod can reach the model; install a network plugin that enforces NetworkPolicies, then say `networkPolicyEnforced: Yes` in the operator's configuration",
        ),
        NetworkPolicyEnforced::Unknown => finding(
            type_,
            Status::Unknown,
            Reason::EnforcementUnknown,
            "a NetworkPolicy is written; say in the operator's configuration whether this cluster enforces it (`networkPolicyEnforced: Yes` or `No`)",
        ),
    }
}
