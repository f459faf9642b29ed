//! `status`: what a user reads, for each state of the world.

use candela_crds::{ConditionStatus, ConditionType, Reason};
use candela_planner::{ApplyFailure, OwnedKind};
use expect_test::{Expect, expect};
use serde_json::{Value, json};

use crate::fixtures::{World, at, plan, pod_with, ready_pod, running, settings, stamp, unscheduled};

fn serving() -> World {
    World::new("{}").applied(1, 1, 1).replica_set("aaa", 1, 1, 1).pod("chat-aaa-1", "aaa", ready_pod())
}

#[track_caller]
fn check(world: &World, expected: Expect) {
    expected.assert_eq(&world.summary());
}

#[test]
fn before_anything_was_written() {
    check(
        &World::new("{}"),
        expect![[r#"
        Ready=False/Progressing
        Reconciling=True/Progressing
        Validated=True/Valid
        ModelAvailable=False/Pending
        Schedulable=Unknown/Pending
        WorkloadReady=False/SomeReplicasUnready
        RolloutComplete=False/Progressing
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn starting() {
    let world = World::new("{}").applied(1, 1, 0).replica_set("aaa", 1, 1, 0);
    check(
        &world,
        expect![[r#"
        Ready=False/Progressing
        Reconciling=True/Progressing
        Validated=True/Valid
        ModelAvailable=False/Pending
        Schedulable=Unknown/Pending
        WorkloadReady=False/SomeReplicasUnready
        RolloutComplete=False/Progressing
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn serving_and_settled() {
    check(
        &serving(),
        expect![[r#"
        Ready=True/Serving
        Validated=True/Valid
        ModelAvailable=True/Loaded
        Schedulable=True/Scheduled
        WorkloadReady=True/AllReplicasReady
        RolloutComplete=True/Complete
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn rolling_while_the_old_revision_serves() {
    let world = serving().edited("{routing: {timeouts: {request: 30s}}}");
    check(
        &world,
        expect![[r#"
        Ready=True/Serving
        Reconciling=True/Progressing
        Validated=True/Valid
        ModelAvailable=True/Loaded
        Schedulable=True/Scheduled
        WorkloadReady=True/AllReplicasReady
        RolloutComplete=False/Progressing
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn suspended() {
    check(
        &World::new("{suspend: true}").applied(0, 0, 0),
        expect![[r#"
        Ready=False/Suspended
        Validated=True/Valid
        ModelAvailable=False/Suspended
        Schedulable=Unknown/Suspended
        WorkloadReady=False/Suspended
        RolloutComplete=True/Complete
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn scaled_to_zero_by_hand_is_suspended_too() {
    let world = World::new("{replicas: 0}").applied(0, 0, 0);
    let status = world.status();
    let ready = status.condition(ConditionType::Ready).unwrap();
    assert_eq!((ready.status, ready.reason), (ConditionStatus::False, Reason::Suspended));
}

#[test]
fn a_reference_that_went_missing_leaves_what_serves_alone() {
    let mut world = World::new("{model: {uri: 'pvc://weights/x'}}")
        .applied(1, 1, 1)
        .replica_set("aaa", 1, 1, 1)
        .pod("chat-aaa-1", "aaa", ready_pod());
    world.seen.claims.clear();
    check(
        &world,
        expect![[r#"
        Ready=True/Serving
        Stalled=True/ClaimNotFound
        Validated=False/ClaimNotFound
        ModelAvailable=True/Loaded
        Schedulable=True/Scheduled
        WorkloadReady=True/AllReplicasReady
        RolloutComplete=False/ClaimNotFound
        NetworkPolicyEnforced=True/Enforced"#]],
    );
}

#[test]
fn a_surge_pod_without_a_gpu_names_the_two_ways_out() {
    let gpu = "{accelerator: {device: {count: 4}}}";
    let world = World::new(gpu)
        .applied(2, 1, 1)
        .replica_set("old", 1, 1, 1)
        .replica_set("new", 2, 1, 0)
        .pod("chat-old-1", "old", ready_pod())
        .pod("chat-new-1", "new", unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))
        .node("gpu-1", "NVIDIA-H100-80GB-HBM3", 4);
    check(
        &world,
        expect![[r#"
        Ready=True/Serving
        Stalled=True/NoRoomToSurge
        Validated=True/Valid
        ModelAvailable=True/Loaded
        Schedulable=False/InsufficientAccelerators
        WorkloadReady=True/AllReplicasReady
        RolloutComplete=False/NoRoomToSurge
        NetworkPolicyEnforced=True/Enforced"#]],
    );
    let status = world.status();
    let message = &status.condition(ConditionType::RolloutComplete).unwrap().message;
    assert!(message.contains("strategy: Recreate") && message.contains("maxSurge: 0"), "{message}");
}

#[test]
fn too_many_gpus_for_any_node_names_the_nearest_fit() {
    let world = World::new("{accelerator: {device: {count: 8}}}")
        .applied(1, 1, 0)
        .replica_set("aaa", 1, 1, 0)
        .pod("chat-aaa-1", "aaa", unscheduled("0/2 nodes are available: 2 Insufficient nvidia.com/gpu."))
        .node("gpu-1", "NVIDIA-A100", 2)
        .node("gpu-2", "NVIDIA-A100", 4);
    let status = world.status();
    expect!["no node offers 8 of nvidia.com/gpu: the nearest fit is node `gpu-2` with 4; lower `spec.accelerator.device.count` to 4, or add a bigger node"].assert_eq(&status.condition(ConditionType::Schedulable).unwrap().message);
    expect![[r#"PlacementStatus { resource: Some("nvidia.com/gpu: 8"), nearest_fit: Some("nvidia.com/gpu: 4 on node gpu-2") }"#]].assert_eq(&format!("{:?}", status.placement.unwrap()));
}

#[test]
fn an_unknown_product_lists_those_that_exist() {
    let world = World::new("{accelerator: {device: {count: 1}, productNames: [NVIDIA-H200]}}")
        .applied(1, 1, 0)
        .replica_set("aaa", 1, 1, 0)
        .pod(
            "chat-aaa-1",
            "aaa",
            unscheduled("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        )
        .node("gpu-1", "NVIDIA-H100-80GB-HBM3", 4)
        .node("gpu-2", "NVIDIA-A100", 4);
    let status = world.status();
    let schedulable = status.condition(ConditionType::Schedulable).unwrap();
    assert_eq!(schedulable.reason, Reason::UnknownProduct);
    expect!["no node carries the label nvidia.com/gpu.product with `NVIDIA-H200`: those that exist are NVIDIA-A100, NVIDIA-H100-80GB-HBM3; write one of them in `spec.accelerator.productNames`, or add a node"].assert_eq(&schedulable.message);
    assert_eq!(status.failures[0].reason, Reason::UnknownProduct);
}

/// One container status, and the reason that it must give.
#[track_caller]
fn failure(container: Value, reason: Reason, says: &str) {
    let world = World::new("{}").applied(1, 1, 0).replica_set("aaa", 1, 1, 0).pod(
        "chat-aaa-1",
        "aaa",
        pod_with(container),
    );
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
    let mut status = pod_with(json!({"state": {"waiting": {"reason": "PodInitializing"}}}));
    let mut init = ended("Error", 1, &message);
    for (key, value) in
        [("name", json!("fetch")), ("image", json!("x")), ("imageID", json!("")), ("ready", json!(false))]
    {
        init[key] = value;
    }
    status["initContainerStatuses"] = json!([init]);
    let world = World::new("{model: {uri: 'hf://a/b'}}").applied(1, 1, 0).replica_set("aaa", 1, 1, 0).pod(
        "chat-aaa-1",
        "aaa",
        status,
    );
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
fn a_refused_child_stalls_and_a_failed_attempt_is_tried_again() {
    let world = World::new("{}");
    for (retryable, stalled, observed) in [(false, true, 3), (true, false, -1)] {
        let mut outcome = plan(&world.cr, &world.seen);
        outcome.apply_failure = Some(ApplyFailure {
            kind: OwnedKind::Deployment,
            name: "chat".to_owned(),
            message: "no".to_owned(),
            retryable,
        });
        let status = candela_planner::status(&world.cr, &outcome, &world.seen, &settings(), stamp());
        assert_eq!(status.is(ConditionType::Stalled), stalled);
        assert_eq!(status.is(ConditionType::Reconciling), !stalled);
        assert_eq!(status.observed_generation, observed, "never ahead of what was applied");
        let conditions = status.conditions.iter().map(|condition| condition.observed_generation);
        assert!(conditions.into_iter().all(|generation| generation == observed), "conditions neither");
    }
}

#[test]
fn a_deployment_that_was_not_acted_on_yet_is_not_current() {
    let mut world = serving();
    world.deployment()["metadata"]["generation"] = json!(8);
    assert!(world.status().is(ConditionType::Reconciling));
    let mut world = serving();
    world.deployment()["spec"]["replicas"] = json!(7);
    assert!(world.status().is(ConditionType::Reconciling), "a child that was edited by hand does not match");
}

#[test]
fn a_pod_that_lost_its_readiness_is_given_ten_seconds() {
    let unready = |since: &str| {
        let mut status = pod_with(running(false));
        status["containerStatuses"][0]["started"] = json!(true);
        status["conditions"][1]["lastTransitionTime"] = json!(since);
        World::new("{}").applied(1, 1, 0).replica_set("aaa", 1, 1, 0).pod("chat-aaa-1", "aaa", status)
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

#[test]
fn everything_that_is_known_of_a_serving_model() {
    let status = serving().process("chat-aaa-1").status();
    expect![[r#"
        currentRevision: chat-aaa
        engine: Candle
        models:
        - architecture: LlamaForCausalLM
          contextLength: 1024
          digest: sha256:abababababababababababababababababababababababababababababababab
          estimatedMemory: 20000000
          parameters: 3000000
          quantization: F16
          servedName: chat
          sizeBytes: 6000000
        readyReplicas: 1
        replicas: 1
        revisions:
        - image: candela.local/server:dev
          modelDigest: sha256:abababababababababababababababababababababababababababababababab
          name: chat-aaa
          ready: 1
        selector: candela.dev/llmdeployment=chat
        startup:
          firstToken: 0.31
          imagePull: 2.0
          load: 0.25
          schedule: 1.0
          warmup: 0.05
        targetRevision: chat-aaa
        updatedReplicas: 1
        url: http://chat.team.svc/v1
    "#]].assert_eq(&serde_yaml::to_string(&json!({
        "url": status.url, "engine": status.engine, "selector": status.selector, "replicas": status.replicas,
        "readyReplicas": status.ready_replicas, "updatedReplicas": status.updated_replicas,
        "currentRevision": status.current_revision, "targetRevision": status.target_revision,
        "revisions": status.revisions, "models": status.models, "startup": status.startup,
    })).unwrap());
}

#[test]
fn a_restarted_operator_blanks_nothing() {
    let mut world = serving().process("chat-aaa-1");
    let settled = world.status();
    world.cr.status = Some(settled.clone());
    world.seen.processes.clear();
    assert_eq!(world.status(), settled);
}

#[test]
fn times_move_only_with_the_status_of_a_condition() {
    let mut world = serving();
    let mut before = world.status();
    for condition in &mut before.conditions {
        condition.last_transition_time = at("2026-01-01T00:00:00Z");
    }
    world.cr.status = Some(before);
    let world = world.edited("{routing: {timeouts: {request: 30s}}}");
    let status = world.status();
    let time = |type_| status.condition(type_).unwrap().last_transition_time.clone();
    assert_eq!(time(ConditionType::Ready), at("2026-01-01T00:00:00Z"));
    assert_eq!(time(ConditionType::RolloutComplete), stamp().now);
    assert_eq!(time(ConditionType::Reconciling), stamp().now);
}
