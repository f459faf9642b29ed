//! Settled clusters, other people's edits, and leaders that come and go.

use std::time::Duration;

use candela_tests::fake::{Fault, On, Rule};
use candela_tests::sim::{LEASE, LLMS, World, config_of, describe, llm, oracle};
use serde_json::{Value, json};
use tokio::time::sleep;

const QUIET: Duration = Duration::from_secs(30);

async fn settled(replicas: u32) -> World {
    let mut world = World::new();
    world.start(None);
    world.cluster.must("POST", LLMS, &llm("a", replicas));
    world.settle(QUIET).await.unwrap();
    world
}

fn condition(llm: &Value, kind: &str) -> Value {
    let conditions = llm["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == kind).unwrap_or(Value::Null)
}

#[tokio::test(start_paused = true)]
async fn a_settled_cluster_is_neither_written_nor_listed_nor_read_for_an_hour() {
    let world = settled(2).await;
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(condition(&live, "Ready")["status"], "True", "{live:#}");
    let mark = world.cluster.mark();
    sleep(Duration::from_secs(3600)).await;
    let asked: Vec<_> = world
        .cluster
        .since(mark)
        .iter()
        .filter(|r| r.verb != "watch" && r.kind != "Lease")
        .map(describe)
        .collect();
    assert_eq!(asked, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_restart_over_a_settled_cluster_writes_nothing() {
    let mut world = settled(2).await;
    world.stop(0).await;
    let mark = world.cluster.mark();
    world.start(None);
    world.settle(Duration::from_secs(60)).await.unwrap();
    let written: Vec<_> =
        world.cluster.since(mark).iter().filter(|r| r.is_workload_write()).map(describe).collect();
    assert_eq!(written, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn children_that_are_edited_or_deleted_by_hand_come_back() {
    let goal = settled(2).await;
    let want = oracle::end_state(&goal.cluster);
    let apps = "/apis/apps/v1/namespaces/default/deployments/a";
    let core = "/api/v1/namespaces/default";
    let config = format!("{core}/configmaps/{}", config_of(&goal.cluster));
    let edits: [(&str, &str, String, Value); 8] = [
        ("edit", "PATCH", apps.to_owned(), json!({"spec": {"replicas": 9}})),
        ("stomp", "PATCH", apps.to_owned(), json!({"metadata": {"labels": null}})),
        (
            "edit",
            "PATCH",
            config.clone(),
            json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "me"}}}),
        ),
        ("orphan", "PATCH", format!("{core}/services/a"), json!({"metadata": {"ownerReferences": null}})),
        ("delete", "DELETE", config, Value::Null),
        ("delete", "DELETE", format!("{core}/services/a"), Value::Null),
        ("delete", "DELETE", apps.to_owned(), Value::Null),
        (
            "delete",
            "DELETE",
            "/apis/policy/v1/namespaces/default/poddisruptionbudgets/a".to_owned(),
            Value::Null,
        ),
    ];
    for (what, method, path, body) in edits {
        let mut world = settled(2).await;
        world.cluster.must(method, &path, &body);
        world.settle(QUIET).await.unwrap();
        let differs = oracle::difference(&want, &oracle::end_state(&world.cluster));
        assert!(differs.is_empty(), "{what} {path}: {}", differs.join("\n"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_child_that_was_given_to_another_owner_is_a_stranger() {
    let mut world = settled(2).await;
    let node = world.cluster.all("Node")[0]["metadata"]["uid"].clone();
    world.cluster.must(
        "PATCH",
        "/api/v1/namespaces/default/services/a",
        &json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": node, "controller": true},
        ]}}),
    );
    world.settle(QUIET).await.unwrap();
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(condition(&live, "Stalled")["reason"], "NameConflict", "{live:#}");
    assert_eq!(condition(&live, "Ready")["status"], "True", "the pods still serve");
    // The way out that the message names.
    world.cluster.must("DELETE", "/api/v1/namespaces/default/services/a", &Value::Null);
    sleep(Duration::from_secs(120)).await;
    world.settle(QUIET).await.unwrap();
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(condition(&live, "Stalled"), Value::Null, "{live:#}");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_service_of_the_same_name_is_refused_and_left_alone() {
    let mut world = World::new();
    let foreign =
        json!({"metadata": {"name": "a", "labels": {"team": "other"}}, "spec": {"ports": [{"port": 1}]}});
    let before = world.cluster.must("POST", "/api/v1/namespaces/default/services", &foreign);
    world.start(None);
    world.cluster.must("POST", LLMS, &llm("a", 2));
    world.settle(QUIET).await.unwrap();
    assert_eq!(world.cluster.get("Service", "default", "a"), Some(before));
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    let reasons: Vec<&Value> =
        live["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["reason"]).collect();
    assert!(reasons.contains(&&json!("NameConflict")), "{reasons:?}");
    assert_eq!(condition(&live, "Ready")["status"], "False");
    // When the stranger goes, the resource gets well by itself.
    world.cluster.must("DELETE", "/api/v1/namespaces/default/services/a", &Value::Null);
    sleep(Duration::from_secs(120)).await;
    world.settle(QUIET).await.unwrap();
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(condition(&live, "Ready")["status"], "True", "{live:#}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_namespace_goes_in_any_phase() {
    for phase in [0_u64, 1, 3, 5, 30] {
        let mut world = World::new();
        world.cluster.must("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "n"}}));
        world.start(None);
        world.cluster.must("POST", "/apis/candela.dev/v1alpha1/namespaces/n/llmdeployments", &llm("a", 2));
        sleep(Duration::from_secs(phase)).await;
        world.cluster.must("DELETE", "/api/v1/namespaces/n", &Value::Null);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.cluster.get("Namespace", "", "n"), None, "deleted after {phase} s");
        world.settle(QUIET).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_without_its_lease_stops_and_the_other_goes_on() {
    let mut world = settled(2).await;
    world.start(None);
    sleep(Duration::from_secs(5)).await;
    let no_lease = On { verbs: vec!["update", "patch", "get"], kind: Some("Lease"), subresource: None };
    world.cluster.add_fault(Rule::at_write("op-1", 1, Fault::Refuse(500)).on(no_lease).times(1_000_000));
    for replicas in 3..10 {
        sleep(Duration::from_secs(7)).await;
        world.cluster.must("PATCH", &format!("{LLMS}/a"), &json!({"spec": {"replicas": replicas}}));
    }
    sleep(LEASE * 2).await;
    assert!(world.operator(0).has_ended(), "an operator that lost its lease exits");
    assert_eq!(oracle::after_lease(&world.cluster.log()), Vec::<String>::new());
    let deployment = world.cluster.get("Deployment", "default", "a").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 9, "the second replica took over");
}
