use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchParams};
use kube::core::WatchEvent;
use serde_json::{Value, json};

use super::{FakeCluster, Fault, On, Rule};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn apply(cluster: &FakeCluster, manager: &str, force: bool, data: &Value) -> (u16, Value) {
    let path = format!("{MAPS}/a?fieldManager={manager}&force={force}&apply=1");
    cluster.call("PATCH", &path, &json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data}))
}

fn api(cluster: &FakeCluster, client: &str) -> Api<ConfigMap> {
    Api::namespaced(cluster.client(client), "default")
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": value}})).unwrap()
}

#[test]
fn an_apply_owns_its_fields_and_gives_up_those_it_leaves_out() {
    let cluster = FakeCluster::new(Value::Null);
    let (code, first) = apply(&cluster, "one", false, &json!({"x": "1", "y": "1"}));
    assert_eq!(code, 201);
    let fields = &first["metadata"]["managedFields"][0];
    assert_eq!(fields["fieldsV1"], json!({"f:data": {"f:x": {}, "f:y": {}}}));
    let (code, _) = apply(&cluster, "two", false, &json!({"y": "1"}));
    assert_eq!(code, 200, "the same value is shared, not fought over");
    let (code, refused) = apply(&cluster, "two", false, &json!({"x": "2"}));
    assert_eq!(code, 409);
    assert_eq!(refused["message"], "Apply failed with 1 conflict: conflict with \"one\" using v1: .data.x");
    let (code, taken) = apply(&cluster, "two", true, &json!({"x": "2"}));
    assert_eq!((code, &taken["data"]), (200, &json!({"x": "2", "y": "1"})));
    let (_, left) = apply(&cluster, "one", false, &json!({}));
    assert_eq!(left["data"], json!({"x": "2"}), "`y` had only this owner left");
}

#[test]
fn an_apply_that_changes_nothing_stores_nothing() {
    let cluster = FakeCluster::new(Value::Null);
    let (_, first) = apply(&cluster, "one", true, &json!({"x": "1"}));
    let (code, second) = apply(&cluster, "one", true, &json!({"x": "1"}));
    assert_eq!((code, &first), (200, &second));
    assert!(!cluster.log().last().unwrap().committed);
}

#[test]
fn applied_list_items_are_merged_by_key() {
    let cluster = FakeCluster::new(Value::Null);
    let labels = json!({"app": "a"});
    let deployment = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}})
    };
    let path = |manager: &str| {
        format!("/apis/apps/v1/namespaces/default/deployments/a?fieldManager={manager}&force=true&apply=1")
    };
    let env = |names: &[&str]| names.iter().map(|n| json!({"name": n, "value": "1"})).collect::<Vec<_>>();
    cluster.must(
        "PATCH",
        &path("one"),
        &deployment(json!([{"name": "c", "image": "i:1", "env": env(&["A", "B"])}])),
    );
    cluster.must("PATCH", &path("two"), &deployment(json!([{"name": "side", "image": "s:1"}])));
    let merged = cluster.must(
        "PATCH",
        &path("one"),
        &deployment(json!([{"name": "c", "image": "i:2", "env": env(&["B"])}])),
    );
    let containers = &merged["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["image"], "i:2");
    assert_eq!(containers[0]["env"], json!([{"name": "B", "value": "1"}]));
    assert_eq!(containers[1]["name"], "side");
    assert_eq!(containers[1]["terminationMessagePolicy"], "File", "defaults are filled in");
    assert_eq!(merged["metadata"]["generation"], 3);
}

#[test]
fn status_and_spec_have_separate_doors() {
    let cluster = FakeCluster::candela();
    let base = "/apis/candela.dev/v1alpha1/namespaces/default/llmdeployments";
    let spec = json!({"model": {"uri": "builtin://demo"}, "engine": {"name": "Candle"}, "replicas": 1});
    let made =
        cluster.must("POST", base, &json!({"metadata": {"name": "a"}, "spec": spec, "status": {"url": "x"}}));
    assert_eq!(made["status"], json!({"observedGeneration": -1}));
    assert_eq!(made["metadata"]["generation"], 1);
    let stated = json!({"status": {"observedGeneration": 1}, "spec": {"replicas": 5}});
    let after = cluster.must("PATCH", &format!("{base}/a/status"), &stated);
    assert_eq!((&after["spec"]["replicas"], &after["metadata"]["generation"]), (&json!(1), &json!(1)));
    let scaled = cluster.must("PATCH", &format!("{base}/a/scale"), &json!({"spec": {"replicas": 3}}));
    assert_eq!(scaled["spec"]["replicas"], 3);
    let live = cluster.get("LlmDeployment", "default", "a").unwrap();
    assert_eq!(
        (&live["metadata"]["generation"], &live["status"]["observedGeneration"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn deletes_honour_preconditions_and_finalizers() {
    let cluster = FakeCluster::new(Value::Null);
    let maps = api(&cluster, "op");
    let made = maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    let of = |uid: &str| {
        DeleteParams::default()
            .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
    };
    let refused = maps.delete("a", &of("other")).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 409));
    let held = json!({"metadata": {"finalizers": ["test/hold"]}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&held)).await.unwrap();
    maps.delete("a", &of(made.metadata.uid.as_deref().unwrap())).await.unwrap();
    assert!(maps.get("a").await.unwrap().metadata.deletion_timestamp.is_some());
    let freed = json!({"metadata": {"finalizers": null}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&freed)).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());
}

#[tokio::test]
async fn lists_come_in_pages_and_old_pages_expire() {
    let cluster = FakeCluster::new(Value::Null);
    let maps = api(&cluster, "op");
    for n in 0..5 {
        maps.create(&PostParams::default(), &map(&format!("m{n}"), "1")).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((page.items.len(), page.metadata.remaining_item_count), (2, Some(3)));
    maps.create(&PostParams::default(), &map("m9", "1")).await.unwrap();
    let token = page.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 3, "pages show one moment");
    cluster.compact();
    let gone = maps.list(&ListParams::default().continue_token(&token)).await.unwrap_err();
    assert!(matches!(gone, kube::Error::Api(status) if status.code == 410));
}

#[tokio::test(start_paused = true)]
async fn watches_see_changes_and_can_be_frozen_expired_and_closed() {
    let cluster = FakeCluster::new(Value::Null);
    let maps = api(&cluster, "op");
    let from = cluster.version().to_string();
    let mut seen = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    maps.create(&PostParams::default(), &map("a", "1")).await.unwrap();
    assert!(matches!(seen.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    cluster.freeze("op");
    api(&cluster, "other").create(&PostParams::default(), &map("b", "1")).await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(30), seen.try_next()).await;
    assert!(quiet.is_err(), "a frozen watch says nothing");
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 1, "and its caches lag");
    cluster.thaw("op");
    assert!(
        matches!(seen.try_next().await.unwrap(), Some(WatchEvent::Added(b)) if b.metadata.name.as_deref() == Some("b"))
    );
    cluster.disturb(|faults| faults.link("op").expired += 1);
    assert!(matches!(seen.try_next().await.unwrap(), Some(WatchEvent::Error(status)) if status.code == 410));
    let mut again = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    assert!(matches!(again.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    cluster.disturb(|faults| faults.link("op").closed += 1);
    let rest: Vec<_> = again.try_collect().await.unwrap();
    assert!(rest.len() <= 1);
    cluster.compact();
    let mut old = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    assert!(matches!(old.try_next().await.unwrap(), Some(WatchEvent::Error(status)) if status.code == 410));
}

#[tokio::test]
async fn faults_strike_at_the_nth_write() {
    let cluster = FakeCluster::new(Value::Null);
    cluster.add_fault(Rule::at_write("op", 1, Fault::Refuse(409)));
    cluster.add_fault(Rule::at_write("op", 2, Fault::RefuseAfter(504)).on(On::default()));
    cluster.add_fault(Rule::at_write("op", 3, Fault::KillAfter));
    // No retries in the client: each fault is to be seen.
    let maps = api(&cluster, "op");
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    };
    assert_eq!(code(maps.create(&PostParams::default(), &map("a", "1")).await.unwrap_err()), 409);
    assert_eq!(code(maps.create(&PostParams::default(), &map("b", "1")).await.unwrap_err()), 504);
    assert_eq!(code(maps.create(&PostParams::default(), &map("c", "1")).await.unwrap_err()), 0);
    assert!(maps.get("a").await.is_err(), "the dead read nothing");
    let stored = cluster.all("ConfigMap");
    let names: Vec<&str> = stored.iter().filter_map(|m| m["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["b", "c"]);
}
