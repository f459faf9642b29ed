//! What pods suffer from: one reason each, stalled only where time cannot mend it.

use candela_crds::{ConditionStatus, ConditionType, Reason};
use expect_test::expect;
use serde_json::{Value, json};

use crate::fixtures::{World, check, pod_with, running, stamp};

/// One container status, and the reason that it must give.
#[track_caller]
fn failure(container: Value, reason: Reason, says: &str) {
    let world = World::starting("{}", pod_with(container));
    let status = world.status();
    let found = &status.failures[0];
    assert_eq!(found.reason, reason, "{}", found.message);
    assert!(found.message.contains(says), "`{}` should say `{says}`", found.message);
    assert_eq!((found.pod.as_deref(), found.count), (Some("chat-aaa-1"), 1));
    let ready = status.condition(ConditionType::Ready).unwrap();
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, reason));
    assert!(status.is(ConditionType::Stalled) && !status.is(ConditionType::Reconciling));
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"state": {"waiting": {"reason": reason, "message": message}}})
}

fn ended(reason: &str, exit_code: i32, message: &str) -> Value {
    json!({
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}},
        "lastState": {"terminated": {"reason": reason, "exitCode": exit_code, "message": message,
            "startedAt": "2026-01-01T00:00:02Z", "finishedAt": "2026-01-01T00:00:04Z"}},
    })
}

#[test]
fn pod_failures_have_one_reason_each() {
    failure(waiting("ErrImagePull", "not found"), Reason::ImagePullFailed, "(not found)");
    failure(
        waiting("ImagePullBackOff", "Back-off pulling image \"x\": ErrImagePull: not found"),
        Reason::ImagePullFailed,
        "(not found)",
    );
    failure(waiting("InvalidImageName", "bad"), Reason::InvalidImageName, "not a valid reference");
    failure(
        waiting("CreateContainerConfigError", "secret \"x\" not found"),
        Reason::ContainerConfigError,
        "secret \"x\" not found",
    );
    failure(ended("OOMKilled", 137, ""), Reason::OutOfMemory, "spec.resources.limits.memory");
    failure(ended("Error", 137, ""), Reason::ProbeFailed, "progressDeadline");
    failure(
        ended("Error", 101, "thread 'main' panicked\n"),
        Reason::Crashed,
        "exit code 101: thread 'main' panicked",
    );
    failure(ended("Error", 1, ""), Reason::Crashed, "kubectl logs chat-aaa-1 -c server --previous");
}

#[test]
fn every_termination_message_has_its_reason() {
    use candela_wire::termination::{ExitReason as Exit, TerminationMessage};
    for (exit, reason) in [
        (Exit::InvalidConfiguration, Reason::InvalidConfiguration),
        (Exit::WeightsNotFound, Reason::WeightsNotFound),
        (Exit::WeightsUnauthorized, Reason::WeightsUnauthorized),
        (Exit::WeightsFetchFailed, Reason::WeightsFetchFailed),
        (Exit::ChecksumMismatch, Reason::ChecksumMismatch),
        (Exit::ModelUnsupported, Reason::ModelUnsupported),
        (Exit::OutOfMemory, Reason::OutOfMemory),
        (Exit::DeviceUnsupported, Reason::DeviceUnsupported),
        (Exit::StartupStalled, Reason::StartupStalled),
        (Exit::EngineCrashed, Reason::EngineCrashed),
    ] {
        let message = TerminationMessage { reason: exit, message: "what to do".to_owned() }.to_json();
        failure(ended("Error", 1, &message), reason, "what to do");
    }
}

#[test]
fn the_init_step_speaks_for_the_model() {
    let message = json!({"reason": "WeightsNotFound", "message": "no such repository"}).to_string();
    let world = World::starting("{model: {uri: 'hf://a/b'}}", fetching(ended("Error", 1, &message)));
    check(
        &world,
        expect![[r#"
        Ready=False/WeightsNotFound
        Stalled=True/WeightsNotFound
        Validated=True/Valid
        ModelAvailable=False/WeightsNotFound
        Schedulable=True/Scheduled
        WorkloadReady=False/WeightsNotFound
        RolloutComplete=False/WeightsNotFound
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn failures_are_counted_and_at_most_five() {
    let mut world = World::new("{replicas: 9}").applied(9, 9, 0).replica_set("aaa", 1, 9, 0);
    for n in 0..3 {
        world = world.pod(&format!("chat-aaa-{n}"), "aaa", pod_with(waiting("ErrImagePull", "no")));
    }
    for (n, reason) in [
        "WeightsNotFound",
        "ChecksumMismatch",
        "ModelUnsupported",
        "OutOfMemory",
        "StartupStalled",
        "EngineCrashed",
    ]
    .iter()
    .enumerate()
    {
        let message = json!({"reason": reason, "message": "m"}).to_string();
        world = world.pod(&format!("chat-aaa-x{n}"), "aaa", pod_with(ended("Error", 1, &message)));
    }
    let failures = world.status().failures;
    assert_eq!(failures.len(), 5);
    assert_eq!((failures[0].reason, failures[0].count), (Reason::ImagePullFailed, 3));
}

#[test]
fn pods_that_cannot_be_created_and_rollouts_that_hang_are_told() {
    let quota = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"});
    let world = World::new("{}").applied(0, 0, 0).deployment_condition(quota);
    let status = world.status();
    let stalled = status.condition(ConditionType::Stalled).unwrap();
    assert_eq!(stalled.reason, Reason::PodCreationFailed);
    assert!(stalled.message.contains("exceeded quota"));

    let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
    let world = World::new("{}").applied(1, 1, 0).deployment_condition(late);
    let status = world.status();
    assert_eq!(status.condition(ConditionType::Ready).unwrap().reason, Reason::ProgressDeadlineExceeded);
}

#[test]
fn a_pod_that_lost_its_readiness_is_given_ten_seconds() {
    let unready = |since: &str| {
        let mut status = pod_with(running(false));
        status["containerStatuses"][0]["started"] = json!(true);
        status["conditions"][1]["lastTransitionTime"] = json!(since);
        World::starting("{}", status)
    };
    let fresh = unready("2026-01-01T00:09:57Z");
    assert!(!fresh.status().is(ConditionType::Stalled));
    assert_eq!(
        candela_planner::recheck_after(&fresh.seen, &stamp()),
        Some(std::time::Duration::from_secs(7))
    );
    let old = unready("2026-01-01T00:09:50Z");
    assert_eq!(old.status().condition(ConditionType::Stalled).unwrap().reason, Reason::ProbeFailed);
    assert_eq!(candela_planner::recheck_after(&old.seen, &stamp()), None);
}

/// A pod whose init step is in this state.
fn fetching(mut init: Value) -> Value {
    for (key, value) in [("name", "fetch"), ("image", "x"), ("imageID", "")] {
        init[key] = json!(value);
    }
    init["ready"] = json!(false);
    let mut pod = pod_with(json!({"state": {"waiting": {"reason": "PodInitializing"}}}));
    pod["initContainerStatuses"] = json!([init]);
    pod
}

/// A fault that may pass: told at once, with the next step, and not called stalled.
#[track_caller]
fn told_but_not_stalled(world: &World, reason: Reason) {
    let status = world.status();
    let ready = status.condition(ConditionType::Ready).unwrap();
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, reason), "{}", ready.message);
    assert_eq!(status.failures[0].reason, reason);
    assert!(ready.message.contains(&status.failures[0].message), "{}", ready.message);
    assert!(!status.is(ConditionType::Stalled) && status.is(ConditionType::Reconciling), "{status:#?}");
    assert_eq!(status.condition(ConditionType::RolloutComplete).unwrap().reason, reason);
}

#[test]
fn what_may_pass_stalls_from_the_third_end_on() {
    let unsaid = [
        ("Error", 101, String::new(), Reason::Crashed),
        ("Error", 137, String::new(), Reason::ProbeFailed),
        ("OOMKilled", 137, String::new(), Reason::OutOfMemory),
    ];
    let said = [
        ("WeightsFetchFailed", Reason::WeightsFetchFailed),
        ("StartupStalled", Reason::StartupStalled),
        ("EngineCrashed", Reason::EngineCrashed),
    ]
    .map(|(word, reason)| ("Error", 1, json!({"reason": word, "message": "503"}).to_string(), reason));
    for (kubelet, code, message, reason) in unsaid.into_iter().chain(said) {
        let mut end = ended(kubelet, code, &message);
        for restarts in [0, 1] {
            end["restartCount"] = json!(restarts);
            told_but_not_stalled(&World::starting("{}", pod_with(end.clone())), reason);
        }
        // Started again, for the second time: it may do now.
        let mut again = end.clone();
        again["restartCount"] = json!(2);
        again["state"] = json!({"running": {"startedAt": "2026-01-01T00:00:20Z"}});
        told_but_not_stalled(&World::starting("{}", pod_with(again)), reason);
        end["restartCount"] = json!(2);
        failure(end, reason, "");
    }
}

#[test]
fn what_cannot_pass_stalls_at_once() {
    for reason in [
        Reason::InvalidConfiguration,
        Reason::WeightsNotFound,
        Reason::WeightsUnauthorized,
        Reason::ChecksumMismatch,
        Reason::ModelUnsupported,
        Reason::OutOfMemory,
        Reason::DeviceUnsupported,
    ] {
        let message = json!({"reason": reason, "message": "what to do"}).to_string();
        let mut end = ended("Error", 1, &message);
        end["restartCount"] = json!(0);
        failure(end.clone(), reason, "what to do");
        let world = World::starting("{model: {uri: 'hf://a/b'}}", fetching(end));
        let status = world.status();
        assert_eq!(status.condition(ConditionType::Stalled).unwrap().reason, reason);
    }
}

#[test]
fn one_answer_503_of_a_hub_is_no_stall() {
    let message = json!({"reason": "WeightsFetchFailed", "message": "the hub answered 503"}).to_string();
    let mut end = ended("Error", 1, &message);
    end["restartCount"] = json!(0);
    told_but_not_stalled(
        &World::starting("{model: {uri: 'hf://a/b'}}", fetching(end)),
        Reason::WeightsFetchFailed,
    );
}

#[test]
fn a_registry_that_is_away_has_a_minute() {
    let pulling = |word: &str, scheduled: &str| {
        let mut pod = pod_with(waiting(word, "failed to pull: 503 Service Unavailable"));
        pod["conditions"][0]["lastTransitionTime"] = json!(scheduled);
        World::starting("{}", pod)
    };
    for word in ["ErrImagePull", "ImagePullBackOff"] {
        let fresh = pulling(word, "2026-01-01T00:09:30Z");
        told_but_not_stalled(&fresh, Reason::ImagePullFailed);
        assert_eq!(
            candela_planner::recheck_after(&fresh.seen, &stamp()),
            Some(std::time::Duration::from_secs(30))
        );
        let old = pulling(word, "2026-01-01T00:09:00Z");
        assert_eq!(old.status().condition(ConditionType::Stalled).unwrap().reason, Reason::ImagePullFailed);
        assert_eq!(candela_planner::recheck_after(&old.seen, &stamp()), None);
    }
    let mut refused = pod_with(waiting("ErrImagePull", "pull access denied, repository does not exist"));
    refused["conditions"][0]["lastTransitionTime"] = json!("2026-01-01T00:10:00Z");
    assert!(World::starting("{}", refused).status().is(ConditionType::Stalled));
}

#[test]
fn a_normal_start_is_no_failed_probe() {
    // The startup probe has just succeeded, the readiness probe has not been asked yet.
    let mut pod = pod_with(running(false));
    pod["containerStatuses"][0]["started"] = json!(true);
    let world = World::starting("{}", pod);
    assert_eq!(world.status().failures, Vec::new());
    assert_eq!(world.status().condition(ConditionType::Ready).unwrap().reason, Reason::Progressing);

    let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
    let world = world.deployment_condition(late);
    assert_eq!(world.status().condition(ConditionType::Stalled).unwrap().reason, Reason::ProbeFailed);
}
