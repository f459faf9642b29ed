//! `status`: what a user reads, for each state of the world.

use candela_crds::{ConditionStatus, ConditionType, Reason};
use candela_planner::{ApplyFailure, OwnedKind};
use expect_test::expect;
use serde_json::json;

use crate::fixtures::{World, at, check, plan, ready_pod, serving, settings, stamp};

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

#[test]
fn conditions_speak_of_the_generation_of_their_status() {
    for previous in [None, Some(World::new("{}").status())] {
        for retryable in [None, Some(true), Some(false)] {
            let mut world = World::new("{}");
            world.cr.status = previous.clone();
            if let Some(status) = &mut world.cr.status {
                status.observed_generation = 2;
            }
            let mut outcome = plan(&world.cr, &world.seen);
            outcome.apply_failure = retryable.map(|retryable| ApplyFailure {
                kind: OwnedKind::Deployment,
                name: "chat".to_owned(),
                message: "no".to_owned(),
                retryable,
            });
            let status = candela_planner::status(&world.cr, &outcome, &world.seen, &settings(), stamp());
            for condition in &status.conditions {
                assert_eq!(condition.observed_generation, status.observed_generation, "{condition:?}");
            }
        }
    }
}
