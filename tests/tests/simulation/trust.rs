//! The keys of the cluster's tokens on their way to the servers.

use std::time::Duration;

use candela_tests::{
    fake::FakeCluster,
    sim::{LLMS, TRUST, World, config_of, describe, llm, oracle},
};
use serde_json::{Value, json};
use tokio::time::sleep;

const QUIET: Duration = Duration::from_secs(30);
/// Longer than it takes until the keys are asked for again.
const A_WHILE: Duration = Duration::from_secs(90);

fn key(id: &str) -> Value {
    json!({"kid": id, "kty": "RSA", "alg": "RS256", "use": "sig", "n": "AQ", "e": "AQAB"})
}

async fn settled() -> World {
    let mut world = World::new();
    world.start(None);
    world.cluster.must("POST", LLMS, &llm("a", 2));
    world.settle(QUIET).await.unwrap();
    world
}

/// What the servers of the resource `a` are given.
fn published(cluster: &FakeCluster) -> Option<Value> {
    let map = cluster.get("ConfigMap", "default", TRUST)?;
    Some(serde_json::from_str(map["data"]["trust.json"].as_str()?).unwrap())
}

fn ids(cluster: &FakeCluster) -> Vec<Value> {
    let file = published(cluster).expect("the ConfigMap is there");
    file["jwks"]["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect()
}

/// What a rollout would change.
fn workload(cluster: &FakeCluster) -> (Value, Vec<Value>, String) {
    let deployment = cluster.get("Deployment", "default", "a").unwrap();
    let pods = cluster.all("Pod").iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    (deployment["spec"]["template"].clone(), pods, config_of(cluster))
}

#[tokio::test(start_paused = true)]
async fn servers_are_given_the_clusters_keys_for_the_gateways_token() {
    let world = settled().await;
    assert_eq!(
        published(&world.cluster),
        Some(json!({
            "version": 1,
            "issuer": "https://kubernetes.default.svc.cluster.local",
            "audience": "candela-data-plane",
            "subjects": ["system:serviceaccount:candela-system:candela-gateway"],
            "jwks": {"keys": [key("first")]},
        }))
    );
    let deployment = world.cluster.get("Deployment", "default", "a").unwrap();
    let volumes = deployment["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "candela-trust").unwrap();
    assert_eq!(volume["configMap"], json!({"name": TRUST, "optional": true, "defaultMode": 0o644}));
    let map = world.cluster.get("ConfigMap", "default", TRUST).unwrap();
    assert_eq!(map["metadata"]["ownerReferences"][0]["name"], "a");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_reaches_every_resource_and_rolls_nothing() {
    let mut world = settled().await;
    world.cluster.must("POST", LLMS, &llm("b", 1));
    world.settle(QUIET).await.unwrap();
    let before = workload(&world.cluster);
    for keys in [vec!["first", "second"], vec!["second"]] {
        let mark = world.cluster.mark();
        world.cluster.set_token_keys(Some(keys.iter().map(|id| key(id)).collect()));
        sleep(A_WHILE).await;
        world.settle(QUIET).await.unwrap();
        assert_eq!(ids(&world.cluster), keys);
        assert_eq!(workload(&world.cluster), before, "nothing rolls");
        let written: Vec<_> =
            world.cluster.since(mark).into_iter().filter(|r| r.is_workload_write()).collect();
        let maps: Vec<&str> = written.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(written.iter().map(|r| r.kind).collect::<Vec<_>>(), ["ConfigMap"; 2], "{maps:?}");
    }
    // The same keys in another order are no news.
    let mark = world.cluster.mark();
    world.cluster.set_token_keys(Some(json!([key("second")])));
    sleep(A_WHILE).await;
    let written: Vec<_> =
        world.cluster.since(mark).iter().filter(|r| r.is_workload_write()).map(describe).collect();
    assert_eq!(written, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_was_published_stays_while_the_keys_cannot_be_read() {
    let mut world = settled().await;
    world.cluster.set_token_keys(None);
    sleep(A_WHILE).await;
    assert_eq!(ids(&world.cluster), ["first"]);
    // An operator that never saw them does not take them away either.
    world.stop(0).await;
    let mark = world.cluster.mark();
    world.start(None);
    world.cluster.must("PATCH", &format!("{LLMS}/a"), &json!({"spec": {"replicas": 1}}));
    world.settle(QUIET).await.unwrap();
    assert_eq!(ids(&world.cluster), ["first"]);
    let deleted: Vec<_> = world
        .cluster
        .since(mark)
        .iter()
        .filter(|r| r.verb == "delete" && r.kind == "ConfigMap")
        .map(describe)
        .collect();
    assert_eq!(deleted, Vec::<String>::new());
    world.cluster.set_token_keys(Some(json!([key("second")])));
    sleep(A_WHILE).await;
    world.settle(QUIET).await.unwrap();
    assert_eq!(ids(&world.cluster), ["second"]);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_not_tell_its_keys_serves_all_the_same() {
    let mut world = World::new();
    world.cluster.set_token_keys(None);
    world.start(None);
    world.cluster.must("POST", LLMS, &llm("a", 2));
    world.settle(QUIET).await.unwrap();
    assert_eq!(published(&world.cluster), None);
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    let conditions = live["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"), "{live:#}");
}

#[tokio::test(start_paused = true)]
async fn it_comes_back_when_changed_or_deleted_by_hand_and_goes_with_its_resource() {
    let mut world = settled().await;
    let want = oracle::end_state(&world.cluster);
    let path = format!("/api/v1/namespaces/default/configmaps/{TRUST}");
    for (method, body) in [
        ("PATCH", json!({"data": {"trust.json": "{}"}})),
        ("PATCH", json!({"data": null})),
        ("DELETE", Value::Null),
    ] {
        world.cluster.must(method, &path, &body);
        world.settle(QUIET).await.unwrap();
        let differs = oracle::difference(&want, &oracle::end_state(&world.cluster));
        assert!(differs.is_empty(), "{method} {body}: {}", differs.join("\n"));
    }
    world.cluster.must("DELETE", &format!("{LLMS}/a"), &Value::Null);
    world.settle(QUIET).await.unwrap();
    assert_eq!(world.cluster.all("ConfigMap"), Vec::<Value>::new());
    assert_eq!(oracle::orphans(&world.cluster), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn pods_of_an_engine_that_is_given_up_keep_it_until_they_are_gone() {
    let mut world = settled().await;
    let custom = json!({"spec": {"model": {"uri": "hf://org/name"}, "engine": {"name": "Custom", "image": "example.org/other:1"}}});
    world.cluster.must("PATCH", &format!("{LLMS}/a"), &custom);
    world.settle(QUIET).await.unwrap();
    let live = world.cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(published(&world.cluster), None, "a foreign server has no use for it: {live:#}");
    assert_eq!(oracle::torn_away(&world.cluster), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_for_once_a_minute_and_not_where_there_is_nothing_to_tell() {
    let mut world = World::new();
    world.start(None);
    world.settle(QUIET).await.unwrap();
    let reads = world.cluster.token_reads();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.cluster.token_reads(), reads, "no resource, no question");
    world.cluster.must("POST", LLMS, &llm("a", 1));
    world.settle(QUIET).await.unwrap();
    let reads = world.cluster.token_reads();
    sleep(Duration::from_secs(3600)).await;
    // Two documents each time.
    let asked = world.cluster.token_reads() - reads;
    assert!((118..=122).contains(&asked), "{asked}");
}
