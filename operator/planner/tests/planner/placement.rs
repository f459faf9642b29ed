//! Where pods find room, and what is said where they do not.

use candela_crds::{ConditionType, Reason};
use expect_test::expect;
use serde_json::json;

use crate::fixtures::{World, check, ready_pod, unscheduled};

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
    let lacking = unscheduled("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.");
    let world = World::starting("{accelerator: {device: {count: 8}}}", lacking)
        .node("gpu-1", "NVIDIA-A100", 2)
        .node("gpu-2", "NVIDIA-A100", 4);
    let status = world.status();
    expect!["no node offers 8 of nvidia.com/gpu: the nearest fit is node `gpu-2` with 4; lower `spec.accelerator.device.count` to 4, or add a bigger node"].assert_eq(&status.condition(ConditionType::Schedulable).unwrap().message);
    expect![[r#"PlacementStatus { resource: Some("nvidia.com/gpu: 8"), nearest_fit: Some("nvidia.com/gpu: 4 on node gpu-2") }"#]].assert_eq(&format!("{:?}", status.placement.unwrap()));
}

#[test]
fn an_unknown_product_lists_those_that_exist() {
    let unmatched =
        unscheduled("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
    let world =
        World::starting("{accelerator: {device: {count: 1}, productNames: [NVIDIA-H200]}}", unmatched)
            .node("gpu-1", "NVIDIA-H100-80GB-HBM3", 4)
            .node("gpu-2", "NVIDIA-A100", 4);
    let status = world.status();
    let schedulable = status.condition(ConditionType::Schedulable).unwrap();
    assert_eq!(schedulable.reason, Reason::UnknownProduct);
    expect!["no node carries the label nvidia.com/gpu.product with `NVIDIA-H200`: those that exist are NVIDIA-A100, NVIDIA-H100-80GB-HBM3; write one of them in `spec.accelerator.productNames`, or add a node"].assert_eq(&schedulable.message);
    assert_eq!(status.failures[0].reason, Reason::UnknownProduct);
}

const LACKING: &str = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.";

/// An update of one replica on all four GPUs of the only node, the old pod gone and the new one without a place.
fn updating(rollout: &str) -> World {
    World::new(&format!("{{accelerator: {{device: {{count: 4}}}}, rollout: {rollout}}}"))
        .applied(1, 1, 0)
        .replica_set("old", 1, 0, 0)
        .replica_set("new", 2, 1, 0)
        .pod("chat-new-1", "new", unscheduled(LACKING))
        .node("gpu-1", "NVIDIA-H100-80GB-HBM3", 4)
}

#[test]
fn who_stops_the_old_pods_first_waits_for_them_and_does_not_stall() {
    for rollout in
        ["{maxSurge: 0, maxUnavailable: 1}", "{maxSurge: 0%, maxUnavailable: 1}", "{strategy: Recreate}"]
    {
        // With the old pod ending, and in the moment between its end and the scheduler's next look.
        for world in [updating(rollout).ending("chat-old-1", "old"), updating(rollout)] {
            let status = world.status();
            assert!(!status.is(ConditionType::Stalled), "{rollout}: {status:#?}");
            let ready = status.condition(ConditionType::Ready).unwrap();
            assert_eq!(ready.reason, Reason::InsufficientAccelerators);
            assert!(ready.message.contains("waiting for room"), "{}", ready.message);
            assert_eq!(
                status.condition(ConditionType::Schedulable).unwrap().reason,
                Reason::InsufficientAccelerators
            );
        }
        let late = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"});
        let stuck = updating(rollout).deployment_condition(late);
        let status = stuck.status();
        let stalled = status.condition(ConditionType::Stalled).unwrap();
        assert_eq!(
            stalled.reason,
            Reason::InsufficientAccelerators,
            "not NoRoomToSurge: {}",
            stalled.message
        );
    }
}

#[test]
fn a_replacement_waits_for_the_pod_that_was_drained() {
    let world = World::starting("{accelerator: {device: {count: 4}}}", unscheduled(LACKING)).node(
        "gpu-1",
        "NVIDIA-H100-80GB-HBM3",
        4,
    );
    assert!(world.status().is(ConditionType::Stalled), "somebody else holds the accelerators");
    let world = world.ending("chat-aaa-0", "aaa");
    assert!(!world.status().is(ConditionType::Stalled));
    let mut ended = world;
    let pod = ended.seen.pods.last_mut().unwrap();
    pod.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    assert!(ended.status().is(ConditionType::Stalled), "an ended pod holds nothing");
}

#[test]
fn nodes_that_take_no_pods_are_no_candidates() {
    let mut world = World::starting("{accelerator: {device: {count: 4}}}", unscheduled(LACKING))
        .node("gpu-1", "NVIDIA-A100", 2)
        .node("gpu-2", "NVIDIA-A100", 4);
    world.seen.nodes[1].unschedulable = true;
    let status = world.status();
    let schedulable = status.condition(ConditionType::Schedulable).unwrap();
    assert_eq!(schedulable.reason, Reason::InsufficientAccelerators);
    assert!(schedulable.message.contains("kubectl uncordon gpu-2"), "{}", schedulable.message);
    expect!["nvidia.com/gpu: 4 on node gpu-2, which is cordoned or not ready"]
        .assert_eq(&status.placement.unwrap().nearest_fit.unwrap());
    world.seen.nodes[1].unschedulable = false;
    assert_eq!(world.status().placement.unwrap().nearest_fit, None);
}

#[test]
fn memory_that_no_node_has_names_the_nearest_fit() {
    let mut world = World::starting(
        "{accelerator: {device: {count: 1}}, resources: {limits: {memory: 64Gi}}}",
        unscheduled("0/2 nodes are available: 2 Insufficient memory."),
    )
    .node("gpu-1", "NVIDIA-A100", 4)
    .node("gpu-2", "NVIDIA-A100", 4);
    let memory = |node: &mut candela_planner::NodeFacts, bytes: i64| {
        node.allocatable.insert("memory".to_owned(), bytes);
    };
    let schedulable = |world: &World| {
        let status = world.status();
        let found = status.condition(ConditionType::Schedulable).unwrap().clone();
        (found.reason, found.message, status.placement.unwrap().nearest_fit)
    };
    // Of one node the memory is not known: the scheduler's word stands.
    memory(&mut world.seen.nodes[0], 16 << 30);
    let (reason, message, nearest) = schedulable(&world);
    assert_eq!((reason, nearest), (Reason::InsufficientMemory, None));
    assert!(message.contains("(scheduler: 0/2 nodes"), "{message}");

    memory(&mut world.seen.nodes[1], 32 << 30);
    let (reason, message, nearest) = schedulable(&world);
    assert_eq!(reason, Reason::InsufficientMemory);
    expect!["no node has the 64Gi of memory that each replica asks for: the nearest fit is node `gpu-2` with 32Gi; lower `spec.resources.requests.memory` if the model needs less, or add a bigger node"].assert_eq(&message);
    assert_eq!(nearest.as_deref(), Some("memory: 32Gi on node gpu-2"));

    // A node that is big enough but full.
    memory(&mut world.seen.nodes[1], 64 << 30);
    assert_eq!(schedulable(&world).2, None);
}
