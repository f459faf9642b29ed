//! Faults planted in the operator: for each, a scenario in which the harness finds something, and finds nothing
//! without it.

use std::time::Duration;

use candela_operator::PlantedBug;
use candela_tests::fake::{Fault, On, Rule};
use candela_tests::sim::{LLMS, World, llm, oracle};
use serde_json::{Value, json};
use tokio::time::sleep;

const QUIET: Duration = Duration::from_secs(30);
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn created(bug: Option<PlantedBug>) -> World {
    let mut world = World::new();
    world.start(bug);
    world.cluster.must("POST", LLMS, &llm("a", 2));
    world.settle(QUIET).await.unwrap();
    world
}

fn change(world: &World, spec: &Value) {
    world.cluster.must("PATCH", &format!("{LLMS}/a"), &json!({"spec": spec}));
}

/// What the scenario of a bug finds.
async fn findings(bug: PlantedBug, operator: Option<PlantedBug>) -> Vec<String> {
    match bug {
        PlantedBug::MissingOwnerReference => orphans_after_delete(operator).await,
        PlantedBug::PruneAfterPartialPlan => children_lost_to_a_missing_secret(operator).await,
        PlantedBug::DeleteWithoutUidPrecondition => strangers_deleted(operator).await,
        PlantedBug::RetryPostIntoDuplicate => duplicates_after_504(operator).await,
        PlantedBug::SwallowInStreamGone => blind_after_gone(operator).await,
        PlantedBug::ObservedGenerationAheadOfApply => generation_ahead(operator).await,
        PlantedBug::WriteAfterLeaseExpiry => writes_without_lease(operator).await,
    }
}

#[tokio::test(start_paused = true)]
async fn every_planted_bug_is_caught_and_its_absence_is_not() {
    for bug in PlantedBug::ALL {
        let without = findings(bug, None).await;
        assert_eq!(without, Vec::<String>::new(), "{bug:?}: a healthy operator is accused");
        let with = findings(bug, Some(bug)).await;
        assert!(!with.is_empty(), "{bug:?} is not caught");
        println!("{bug:?}: {}", with[0]);
    }
}

async fn orphans_after_delete(bug: Option<PlantedBug>) -> Vec<String> {
    let mut world = created(bug).await;
    world.cluster.must("DELETE", &format!("{LLMS}/a"), &Value::Null);
    world.settle(QUIET).await.unwrap();
    oracle::orphans(&world.cluster)
}

async fn children_lost_to_a_missing_secret(bug: Option<PlantedBug>) -> Vec<String> {
    let mut world = created(bug).await;
    let before = world.cluster.all("Deployment").len() + world.cluster.all("Service").len();
    change(
        &world,
        &json!({"model": {"uri": "hf://org/name", "credentialsRef": {"name": "missing", "key": "token"}}}),
    );
    world.settle(QUIET).await.unwrap();
    let after = world.cluster.all("Deployment").len() + world.cluster.all("Service").len();
    if after < before {
        vec![format!("{after} of {before} children are left while the plan is blocked")]
    } else {
        vec![]
    }
}

async fn strangers_deleted(bug: Option<PlantedBug>) -> Vec<String> {
    let mut world = created(bug).await;
    // Just before the operator deletes the budget that one replica does not need, somebody else takes its name.
    let on = On { verbs: vec!["delete"], kind: Some("PodDisruptionBudget"), subresource: None };
    world.cluster.interrupt("op-1", on, 1, |cluster| {
        cluster.must("DELETE", &format!("{BUDGETS}/a"), &Value::Null);
        let foreign = json!({"metadata": {"name": "a", "labels": {"team": "other"}},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"team": "other"}}}});
        cluster.must("POST", BUDGETS, &foreign);
    });
    change(&world, &json!({"replicas": 1}));
    world.settle(QUIET).await.unwrap();
    let left = world.cluster.get("PodDisruptionBudget", "default", "a");
    if left.is_none() { vec!["a stranger's PodDisruptionBudget was deleted".to_owned()] } else { vec![] }
}

async fn duplicates_after_504(bug: Option<PlantedBug>) -> Vec<String> {
    let mut found = Vec::new();
    for nth in 1..=6 {
        let mut world = World::new();
        let on = On { verbs: vec!["create", "patch"], ..On::default() };
        world.cluster.add_fault(Rule::at_write("op-1", nth, Fault::RefuseAfter(504)).on(on));
        world.start(bug);
        world.cluster.must("POST", LLMS, &llm("a", 2));
        world.settle(QUIET).await.unwrap();
        found.extend(oracle::duplicates(&world.cluster));
    }
    found
}

async fn blind_after_gone(bug: Option<PlantedBug>) -> Vec<String> {
    let mut world = created(bug).await;
    // A change falls into the gap between the last event and the 410.
    world.cluster.freeze("op-1");
    change(&world, &json!({"replicas": 3}));
    world.cluster.disturb(|faults| faults.link("op-1").expired += 1);
    world.cluster.compact();
    world.cluster.thaw("op-1");
    world.settle(QUIET).await.unwrap();
    let replicas = world.cluster.get("Deployment", "default", "a").map(|d| d["spec"]["replicas"].clone());
    if replicas == Some(json!(3)) {
        vec![]
    } else {
        vec![format!("the Deployment stays at {replicas:?} replicas")]
    }
}

async fn generation_ahead(bug: Option<PlantedBug>) -> Vec<String> {
    let mut world = created(bug).await;
    // While the pass for two → three replicas applies, the user writes four. The pass has other children to apply
    // after that, and so time to see it.
    let on = On { verbs: vec!["patch"], kind: Some("Deployment"), subresource: None };
    world.cluster.interrupt("op-1", on, 1, |cluster| {
        cluster.must("PATCH", &format!("{LLMS}/a"), &json!({"spec": {"replicas": 4}}));
    });
    change(&world, &json!({"replicas": 3, "access": {"networkPolicy": "None"}}));
    world.settle(QUIET).await.unwrap();
    oracle::ahead_of_apply(&world.cluster)
}

async fn writes_without_lease(bug: Option<PlantedBug>) -> Vec<String> {
    let world = created(bug).await;
    let no_lease = On { verbs: vec!["update", "patch", "get"], kind: Some("Lease"), subresource: None };
    world.cluster.add_fault(Rule::at_write("op-1", 1, Fault::Refuse(500)).on(no_lease).times(1_000_000));
    for replicas in 3..20 {
        sleep(Duration::from_secs(3)).await;
        change(&world, &json!({"replicas": replicas}));
    }
    oracle::after_lease(&world.cluster.log())
}
