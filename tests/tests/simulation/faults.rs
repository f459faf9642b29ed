//! One fault at one write: the end is the same as without.

use std::time::Duration;

use candela_tests::fake::{FakeCluster, Fault, Rule};
use candela_tests::sim::workloads::{self, Workload};
use candela_tests::sim::{LLMS, World, config_of, describe, llm, oracle};
use serde_json::json;

/// Longer than the backoff after the faults below.
const QUIET: Duration = Duration::from_secs(90);

async fn run(workload: &Workload, rule: Option<Rule>) -> World {
    let mut world = World::new();
    if let Some(rule) = rule {
        world.cluster.add_fault(rule);
    }
    world.start(None);
    for step in workload.steps {
        step(&world.cluster);
        world.settle(QUIET).await.unwrap();
    }
    world
}

fn writes(cluster: &FakeCluster, client: &str) -> u64 {
    cluster.log().iter().filter(|r| r.client == client && r.is_workload_write()).count() as u64
}

/// Runs `fault` at write `nth` and compares with the end of the run without.
async fn check(workload: &Workload, nth: u64, times: u64, fault: Fault, goal: &World) {
    let world = run(workload, Some(Rule::at_write("op-1", nth, fault).times(times))).await;
    let context = || {
        let lines: Vec<_> =
            world.cluster.log().iter().filter(|r| r.is_workload_write()).map(describe).collect();
        format!("workload `{}`, {fault:?} at write {nth}:\n{}", workload.name, lines.join("\n"))
    };
    let differs = oracle::difference(&oracle::end_state(&goal.cluster), &oracle::end_state(&world.cluster));
    assert!(differs.is_empty(), "{}\n{}", differs.join("\n"), context());
    for (what, found) in [
        ("orphans", oracle::orphans(&world.cluster)),
        ("torn away", oracle::torn_away(&world.cluster)),
        ("duplicates", oracle::duplicates(&world.cluster)),
        ("ahead of apply", oracle::ahead_of_apply(&world.cluster)),
        ("after the lease", oracle::after_lease(&world.cluster.log())),
    ] {
        assert!(found.is_empty(), "{what}: {found:?}\n{}", context());
    }
}

async fn every_write(faults: &[(Fault, u64)]) {
    let all = std::env::var_os("CANDELA_PROVE").is_some();
    let mut n_plans = 0;
    for (at, workload) in workloads::ALL.iter().enumerate() {
        let goal = run(workload, None).await;
        let n_writes = writes(&goal.cluster, "op-1");
        assert!(n_writes >= 6, "`{}` makes only {n_writes} writes: the harness sees nothing", workload.name);
        for nth in 1..=n_writes {
            for (which, (fault, times)) in faults.iter().enumerate() {
                // The slice: each fault meets each fifth write, other ones per workload and fault.
                if all || (nth as usize + at + which).is_multiple_of(5) {
                    check(workload, nth, *times, *fault, &goal).await;
                    n_plans += 1;
                }
            }
        }
    }
    println!("{n_plans} fault plans, all ended in the reference state");
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_or_after_any_write_ends_in_the_same_state() {
    every_write(&[(Fault::KillBefore, 1), (Fault::KillAfter, 1)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_any_write_ends_in_the_same_state() {
    every_write(&[
        (Fault::Refuse(409), 1),
        (Fault::Refuse(429), 1),
        (Fault::Refuse(500), 5),
        (Fault::Refuse(503), 5),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_ambiguous_commit_of_any_write_ends_in_the_same_state() {
    every_write(&[(Fault::RefuseAfter(504), 1), (Fault::DropBefore, 1), (Fault::DropAfter, 1)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_is_made_good_by_the_list_after_a_gone_watch() {
    for kind in ["LlmDeployment", "Deployment", "Service", "ConfigMap"] {
        let mut world = World::new();
        world.start(None);
        world.cluster.must("POST", LLMS, &llm("a", 2));
        world.settle(QUIET).await.unwrap();
        world.cluster.disturb(|faults| *faults.link("op-1").hide.entry(kind).or_default() += 1);
        let (path, patch) = match kind {
            "LlmDeployment" => (format!("{LLMS}/a"), json!({"spec": {"replicas": 3}})),
            "Deployment" => (
                "/apis/apps/v1/namespaces/default/deployments/a".to_owned(),
                json!({"spec": {"replicas": 7}}),
            ),
            "Service" => (
                "/api/v1/namespaces/default/services/a".to_owned(),
                json!({"spec": {"selector": {"x": "y"}}}),
            ),
            _ => (
                format!("/api/v1/namespaces/default/configmaps/{}", config_of(&world.cluster)),
                json!({"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}),
            ),
        };
        world.cluster.must("PATCH", &path, &patch);
        world.cluster.disturb(|faults| faults.link("op-1").expired += 1);
        world.settle(QUIET).await.unwrap();
        let mut goal = World::new();
        goal.start(None);
        goal.cluster.must("POST", LLMS, &llm("a", if kind == "LlmDeployment" { 3 } else { 2 }));
        goal.settle(QUIET).await.unwrap();
        let differs =
            oracle::difference(&oracle::end_state(&goal.cluster), &oracle::end_state(&world.cluster));
        assert!(differs.is_empty(), "a lost event of {kind}: {}", differs.join("\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_starts_on_a_stale_server_catches_up_and_destroys_nothing() {
    let mut world = World::new();
    world.start(None);
    world.cluster.must("POST", LLMS, &llm("a", 2));
    world.settle(QUIET).await.unwrap();
    world.stop(0).await;
    // The next one sees the world of this moment, while a namesake takes the place of the resource.
    world.cluster.freeze("op-2");
    world.cluster.must("DELETE", &format!("{LLMS}/a"), &serde_json::Value::Null);
    while world.controllers.step() {}
    world.cluster.must("POST", LLMS, &llm("a", 1));
    world.start(None);
    world.settle(QUIET).await.unwrap();
    world.cluster.thaw("op-2");
    world.cluster.disturb(|faults| faults.link("op-2").expired += 1);
    world.settle(QUIET).await.unwrap();
    let mut goal = World::new();
    goal.start(None);
    goal.cluster.must("POST", LLMS, &llm("a", 1));
    goal.settle(QUIET).await.unwrap();
    let differs = oracle::difference(&oracle::end_state(&goal.cluster), &oracle::end_state(&world.cluster));
    assert!(differs.is_empty(), "{}", differs.join("\n"));
    assert_eq!(oracle::orphans(&world.cluster), Vec::<String>::new());
}
