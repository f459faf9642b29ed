use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::{
    backoff::Retry,
    run::work_on,
    testing::{OWNER_UID, Script, failure},
};

fn key() -> Key {
    Key::new("ns", "chat")
}

fn resource(generation: i64, version: u64) -> Value {
    json!({
        "apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment",
        "metadata": {"name": "chat", "namespace": "ns", "uid": OWNER_UID, "generation": generation,
                     "resourceVersion": version.to_string()},
        "spec": {"model": {"uri": "builtin://demo"}, "replicas": 1},
    })
}

fn fill(ctx: &Context, resource: Value) {
    let object = serde_json::from_value(resource).expect("an object");
    ctx.caches.resources.applied(Raw::new(object, "candela.dev/v1alpha1", "LlmDeployment"));
}

#[tokio::test]
async fn children_come_first_then_the_status_and_a_second_pass_writes_nothing() {
    let script = Script::default().then_echo();
    let ctx = script.context();
    fill(&ctx, resource(3, 7));
    let outcome = pass(&ctx, &key()).await.expect("a pass");
    let asked = script.asked();
    let status = asked.iter().position(|asked| asked.path.ends_with("/status")).expect("a status");
    assert!(asked[..status].iter().all(|asked| asked.method == Method::PATCH), "{asked:#?}");
    assert!(asked[status + 1..].iter().all(|asked| asked.path.ends_with("/events")), "{asked:#?}");
    assert_eq!(outcome.n_writes, status + 1);
    for child in &asked[..status] {
        assert_eq!(child.body["metadata"]["ownerReferences"][0]["uid"], OWNER_UID, "{}", child.path);
    }
    // The status is written onto the object that was acted on, and speaks of its generation.
    assert_eq!(asked[status].method, Method::PUT);
    assert_eq!(asked[status].body["metadata"]["resourceVersion"], "7");
    assert_eq!(asked[status].body["status"]["observedGeneration"], 3);

    assert_eq!(pass(&ctx, &key()).await.expect("a pass").n_writes, 0);
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn a_spec_that_changed_meanwhile_makes_the_status_a_conflict_without_events() {
    let script = Script::default().then_echo();
    let ctx = script.context();
    fill(&ctx, resource(3, 7));
    pass(&ctx, &key()).await.expect("a pass");
    script.asked();

    let (code, conflict) = failure(409, "Conflict", "the object has been modified");
    let script = Script::answering([(code, conflict)]);
    let fresh = script.context();
    for (kind, cache) in &ctx.caches.children {
        for object in cache.all() {
            fresh.caches.children(*kind).applied((*object).clone());
        }
    }
    fill(&fresh, resource(4, 8));
    let error = pass(&fresh, &key()).await.expect_err("a conflict");
    assert_eq!(error.retry(), Retry::Soon);
    let asked = script.asked();
    assert_eq!(asked.len(), 1, "no event about a status that was not written: {asked:#?}");
}

#[tokio::test]
async fn a_refused_child_is_in_the_status_and_tried_again() {
    let script = Script::answering([failure(403, "Forbidden", "exceeded quota: pods")]).then_echo();
    let ctx = script.context();
    fill(&ctx, resource(1, 7));
    let error = pass(&ctx, &key()).await.expect_err("it will be tried again");
    assert_eq!(error.retry(), Retry::Backoff);
    let asked = script.asked();
    assert_eq!(asked.iter().filter(|asked| asked.method == Method::PATCH).count(), 1);
    let status = asked.iter().find(|asked| asked.path.ends_with("/status")).expect("a status");
    let ready = status.body["status"]["conditions"].as_array().into_iter().flatten();
    let ready = ready.clone().find(|condition| condition["type"] == "Ready").expect("Ready");
    assert_eq!(ready["status"], "False");
    assert_eq!(ready["reason"], "ApplyFailed");
    assert!(ready["message"].as_str().is_some_and(|text| text.contains("exceeded quota")), "{ready}");
}

#[tokio::test(start_paused = true)]
async fn a_resource_whose_watch_is_silent_is_not_taken_for_gone() {
    let script = Script::default().then_echo();
    let ctx = script.context();
    fill(&ctx, resource(1, 7));
    pass(&ctx, &key()).await.expect("a pass, which writes a status");
    tokio::time::advance(Duration::from_secs(60)).await;
    let error = pass(&ctx, &key()).await.expect_err("there is more to say later");
    assert_eq!(error.retry(), Retry::Soon);
    assert_eq!(pass(&ctx, &Key::new("ns", "other")).await.expect("no such resource").n_writes, 0);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_object_waits_for_a_change_and_the_others_go_on() {
    let script = Script::default().then_echo();
    let ctx = script.context();
    let mut bad = resource(1, 7);
    bad["spec"]["replicas"] = json!("many");
    fill(&ctx, bad);
    let error = pass(&ctx, &key()).await.expect_err("unreadable");
    assert_eq!(error.retry(), Retry::OnChange);
    work_on(&ctx, &key()).await;
    let later = tokio::time::timeout(Duration::from_secs(3600), ctx.queue.next()).await;
    assert!(later.is_err(), "nothing to do until it changes");
    // It is said once, and nothing else is touched.
    let asked = script.asked();
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert!(asked[0].path.ends_with("/status"));
    let status = &asked[0].body["status"];
    assert_eq!(status["observedGeneration"], 1);
    let stalled = status["conditions"].as_array().into_iter().flatten();
    let stalled = stalled.clone().find(|condition| condition["type"] == "Stalled").expect("Stalled");
    assert_eq!(stalled["reason"], "InvalidSpec");
    let message = stalled["message"].as_str().unwrap_or_default();
    assert!(message.contains("spec.replicas: ") && message.contains("many"), "{stalled}");
}

#[tokio::test]
async fn what_cannot_be_deleted_keeps_nothing_from_being_said() {
    let script = Script::default().then_echo();
    let ctx = script.context();
    let mut two = resource(1, 7);
    two["spec"]["replicas"] = json!(2);
    fill(&ctx, two);
    pass(&ctx, &key()).await.expect("a pass");
    script.asked();
    // With one replica the budget goes: the delete is refused.
    let mut one = resource(2, 1900);
    one["spec"]["replicas"] = json!(1);
    fill(&ctx, one);
    script.fail(Method::DELETE, failure(500, "InternalError", "etcd is full"));
    let error = pass(&ctx, &key()).await.expect_err("it will be tried again");
    assert_eq!(error.retry(), Retry::Outage);
    let asked = script.asked();
    let status = asked.iter().find(|asked| asked.path.ends_with("/status")).expect("a status");
    assert_eq!(status.body["status"]["observedGeneration"], 2);
}

#[tokio::test]
async fn resources_on_their_way_out_are_left_to_the_garbage_collector() {
    let script = Script::default();
    let ctx = script.context();
    let mut leaving = resource(1, 7);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    fill(&ctx, leaving);
    assert_eq!(pass(&ctx, &key()).await.expect("nothing").n_writes, 0);
    assert_eq!(script.asked(), []);
}

#[tokio::test(start_paused = true)]
async fn failures_come_back_later_and_later_until_one_pass_succeeds() {
    let outage = || failure(503, "ServiceUnavailable", "down");
    let script = Script::answering([outage(), outage()]);
    let ctx = script.context();
    fill(&ctx, resource(1, 7));
    let mut waited = Vec::new();
    // A pass over an outage asks once, and says nothing about it in the status yet.
    for _ in 0..2 {
        work_on(&ctx, &key()).await;
        let before = tokio::time::Instant::now();
        ctx.queue.next().await;
        ctx.queue.done(&key());
        waited.push(before.elapsed().as_secs_f64());
    }
    assert!((0.7..1.3).contains(&waited[0]) && (1.4..2.6).contains(&waited[1]), "{waited:?}");
    assert_eq!(ctx.backoff.failing(), 1);
    assert_eq!(script.asked().len(), 2);
}

#[tokio::test]
async fn a_panic_over_one_resource_is_an_error_of_that_resource() {
    let result = isolated(async { panic!("index {} out of range", 7) }).await;
    let error = result.expect_err("it panicked");
    assert!(matches!(&error, Error::Panicked(text) if text == "index 7 out of range"), "{error}");
    assert_eq!(error.retry(), Retry::Backoff);
}
