//! Why a container does not run, from its status and the message that it left, and whether time may mend it.

use candela_crds::{EngineName, LlmDeployment, Reason};
use candela_wire::termination::{ExitReason, TerminationMessage};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::bounds::cut;
use super::failures::{Found, condition, found, seconds_since};
use crate::Stamp;

/// A fault that may pass by itself is one to act upon when a container has ended so often: kubelet waits 10, 20, 40
/// seconds and so on between, so the third end comes after about half a minute.
const STALLS_AFTER_ENDS: i32 = 3;
/// A registry or runtime that fails for less than this, counted from when the pod got its node, may just be restarting.
pub(super) const CREATE_SECS: i64 = 60;

/// What keeps a container from running, if anything does.
pub(super) fn container_failure(
    cr: &LlmDeployment,
    pod: &Pod,
    container: &ContainerStatus,
    stamp: &Stamp,
) -> Option<Found> {
    let state = container.state.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        let detail = waiting.message.as_deref().unwrap_or_default();
        let word = waiting.reason.as_deref().unwrap_or_default();
        let (reason, message) = match word {
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
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => (
                Reason::ContainerConfigError,
                format!("container `{}` cannot be created: {detail}", container.name),
            ),
            _ => return last_end(cr, pod, container, &state.terminated),
        };
        let patient = passes_by_itself(word, detail)
            && container.restart_count < STALLS_AFTER_ENDS
            && scheduled_at(pod).is_some_and(|since| seconds_since(since, stamp) < CREATE_SECS);
        return Some(found(pod, reason, message, Some(&container.name), !patient));
    }
    last_end(cr, pod, container, &state.terminated)
}

/// True for a container that could not be created for a cause that time may mend: a registry that is away, a runtime
/// that is busy. A name that does not exist, a refusal, and what the pod itself lacks do not change.
fn passes_by_itself(word: &str, detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    let said = |words: &[&str]| words.iter().any(|word| detail.contains(word));
    match word {
        "ErrImagePull" | "ImagePullBackOff" => !said(&[
            "not found",
            "notfound",
            "manifest unknown",
            "name unknown",
            "denied",
            "unauthorized",
            "forbidden",
            "authentication required",
            "no match for platform",
        ]),
        "RegistryUnavailable" | "ImageInspectError" | "CreateContainerError" | "RunContainerError" => true,
        _ => false,
    }
}

/// A pod of which a container waits for a pull or the runtime, so that time decides whether it is stuck.
pub(super) fn waits_for_runtime(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let all =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).any(|waiting| {
        let word = waiting.reason.as_deref().unwrap_or_default();
        passes_by_itself(word, waiting.message.as_deref().unwrap_or_default())
    })
}

/// When the pod got its node.
pub(super) fn scheduled_at(pod: &Pod) -> Option<&Time> {
    condition(pod, "PodScheduled").filter(|found| found.status == "True")?.last_transition_time.as_ref()
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
    let (reason, message, permanent) = explain(cr, pod, &container.name, end);
    // How often it has ended: kubelet counts the starts after the first.
    let running = container.state.as_ref().is_some_and(|state| state.running.is_some());
    let ends = container.restart_count.saturating_add(i32::from(!running));
    let stalls = permanent || ends >= STALLS_AFTER_ENDS;
    let message = if stalls { message } else { format!("{message} (it is started again)") };
    let mut failure = found(pod, reason, message, Some(&container.name), stalls);
    failure.failure.last_time.clone_from(&end.finished_at);
    Some(failure)
}

/// Reason, message, and whether starting again cannot help.
fn explain(
    cr: &LlmDeployment,
    pod: &Pod,
    container: &str,
    end: &ContainerStateTerminated,
) -> (Reason, String, bool) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let ours = cr.spec.engine_name() == EngineName::Candle || container == crate::children::FETCH;
    let text = end.message.as_deref().unwrap_or_default();
    if ours && let Some(TerminationMessage { reason, message }) = TerminationMessage::parse(text) {
        return (of_exit(reason), message, is_permanent(reason));
    }
    if end.reason.as_deref() == Some("OOMKilled") {
        return (
            Reason::OutOfMemory,
            format!(
                "container `{container}` used more memory than its limit: raise `spec.resources.limits.memory`, or choose a smaller model or contextLength"
            ),
            false,
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
            false,
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
            "container `{container}` ended with exit code {}{}{}; see `kubectl logs {name} -c {container} --previous`",
            end.exit_code,
            // A foreign server that obeys SIGTERM ends so as well; its pod's status does not tell the two apart.
            if end.exit_code == 0 { ", by itself or because its probe failed" } else { "" },
            tail.unwrap_or_default()
        ),
        false,
    )
}

/// True for an end that the same pod comes to again, however often it is started.
fn is_permanent(reason: ExitReason) -> bool {
    match reason {
        ExitReason::InvalidConfiguration
        | ExitReason::WeightsNotFound
        | ExitReason::WeightsUnauthorized
        | ExitReason::ChecksumMismatch
        | ExitReason::ModelUnsupported
        | ExitReason::OutOfMemory
        | ExitReason::DeviceUnsupported => true,
        // One answer 503 of a hub, one slow disk, one fault: the next start may do.
        ExitReason::WeightsFetchFailed | ExitReason::StartupStalled | ExitReason::EngineCrashed => false,
    }
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
