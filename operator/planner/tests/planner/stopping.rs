//! What is not wanted any more can be stopped, whatever has become of what it refers to.

use candela_crds::{ConditionStatus, ConditionType, Reason};
use candela_planner::OwnedKind;
use serde_json::json;

use crate::fixtures::{World, llm, plan, ready_pod, settings, stamp};

fn running(spec: &str) -> World {
    World::new(spec).applied(1, 1, 1).replica_set("aaa", 1, 1, 1).pod("chat-aaa-1", "aaa", ready_pod())
}

/// Both ways of asking for no replicas.
const STOPS: [(&str, &str); 2] = [("replicas", "0"), ("suspend", "true")];

/// The Deployment's replicas in the plan once nothing is wanted, if the plan has the Deployment.
#[track_caller]
fn replicas(world: &World) -> Option<i64> {
    let outcome = plan(&world.cr, &world.seen);
    let deployment = outcome.plan.children.iter().find(|child| child.kind == OwnedKind::Deployment)?;
    deployment.object["spec"]["replicas"].as_i64()
}

#[test]
fn a_secret_or_claim_that_is_gone_does_not_keep_replicas_running() {
    for (spec, reason) in [
        ("model: {uri: 'hf://a/b', credentialsRef: {name: hub, key: token}}", Reason::CredentialsNotFound),
        ("model: {uri: 'pvc://weights/x'}", Reason::ClaimNotFound),
    ] {
        for (key, value) in STOPS {
            let mut world = running(&format!("{{{spec}}}"));
            world.seen.secrets.clear();
            world.seen.claims.clear();
            assert_eq!(replicas(&world), None, "blocked while a replica is wanted");

            let mut world = world.edited(&format!("{{{spec}, {key}: {value}}}"));
            let outcome = plan(&world.cr, &world.seen);
            assert!(outcome.plan.complete, "what is no longer wanted may be pruned");
            assert_eq!(replicas(&world), Some(0), "{spec} {key}");
            for child in outcome.plan.children {
                let mut live = child.object;
                if child.kind == OwnedKind::Deployment {
                    live["metadata"]["generation"] = json!(8);
                    live["status"] = json!({"observedGeneration": 8});
                }
                world.seen.children.insert(child.kind, vec![live]);
            }
            world.seen.pods.clear();
            world.seen.replica_sets.clear();
            let status = world.status();
            let ready = status.condition(ConditionType::Ready).unwrap();
            assert_eq!((ready.status, ready.reason), (ConditionStatus::False, Reason::Suspended));
            let validated = status.condition(ConditionType::Validated).unwrap();
            assert_eq!((validated.status, validated.reason), (ConditionStatus::False, reason));
            assert!(!status.is(ConditionType::Stalled), "nothing is asked for that cannot be");
        }
    }
}

#[test]
fn an_image_that_is_no_longer_configured_does_not_keep_replicas_running() {
    for (key, value) in STOPS {
        let world = running("{}").edited(&format!("{{{key}: {value}}}"));
        let mut without = settings();
        without.images.clear();
        let outcome = candela_planner::plan(&world.cr, &world.seen, &without);
        let deployment =
            outcome.plan.children.iter().find(|child| child.kind == OwnedKind::Deployment).unwrap();
        assert_eq!(deployment.object["spec"]["replicas"], 0);
        let image = &deployment.object["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(image, "candela.local/server:dev", "as it was");
        let status = candela_planner::status(&world.cr, &outcome, &world.seen, &without, stamp());
        assert_eq!(status.condition(ConditionType::Validated).unwrap().reason, Reason::ImageNotConfigured);
    }
    // Nothing runs and nothing is known: there is nothing to stop.
    let mut without = settings();
    without.images.clear();
    let cr = llm("{suspend: true}");
    assert!(candela_planner::plan(&cr, &World::new("{}").seen, &without).resolved.is_err());
}

#[test]
fn somebody_elses_service_does_not_keep_replicas_running() {
    for (key, value) in STOPS {
        let mut world = running("{}");
        world.seen.children.insert(OwnedKind::Service, vec![json!({"metadata": {"name": "chat"}})]);
        assert_eq!(replicas(&world), None, "blocked while a replica is wanted");
        let world = world.edited(&format!("{{{key}: {value}}}"));
        let outcome = plan(&world.cr, &world.seen);
        assert_eq!(outcome.resolved.as_ref().unwrap_err().reason, Reason::NameConflict);
        assert!(!outcome.plan.complete, "nothing is pruned");
        assert_eq!(outcome.plan.children.len(), 1, "the rest is left alone");
        assert_eq!(replicas(&world), Some(0));
    }
    // A Deployment of somebody else is never written.
    let mut world = running("{}").edited("{suspend: true}");
    world.deployment()["metadata"]["ownerReferences"] = json!(null);
    assert_eq!(replicas(&world), None);
}
