use http::Method;

use super::*;
use crate::{
    backoff::Retry,
    prune::prune,
    testing::{OWNER_UID, Script, failure, live, owner, plan, raw, reference, service_account},
};
use candela_planner::OwnedKind;

fn key() -> Key {
    Key::new("ns", "chat")
}

fn fill(ctx: &Context, object: Value) {
    ctx.caches.children(OwnedKind::ServiceAccount).applied(raw(object));
}

#[tokio::test]
async fn an_absent_child_is_created_only_if_its_name_is_free_and_not_written_twice() {
    let script = Script::answering([(201, live("u1", 7, Some(OWNER_UID), false))]);
    let ctx = script.context();
    let plan = plan(vec![service_account()]);
    assert_eq!(apply(&ctx, &owner(), &plan).await.expect("applied").n_written, 1);
    let asked = script.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (&asked[0].method, asked[0].path.as_str()),
        (&Method::PATCH, "/api/v1/namespaces/ns/serviceaccounts/chat")
    );
    assert!(
        asked[0].query.contains("fieldManager=candela-operator") && asked[0].query.contains("force=true")
    );
    assert_eq!(asked[0].body["metadata"]["resourceVersion"], "1");
    assert_eq!(asked[0].body["metadata"].get("uid"), None);

    // The watch has shown nothing yet, and still nothing is written again.
    assert_eq!(apply(&ctx, &owner(), &plan).await.expect("applied").n_written, 0);
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn a_changed_child_is_applied_onto_its_uid() {
    let script = Script::answering([(200, live("u1", 9, Some(OWNER_UID), false))]);
    let ctx = script.context();
    fill(&ctx, live("u1", 7, Some(OWNER_UID), true));
    let applied = apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect("applied");
    assert_eq!(applied.n_written, 1);
    let asked = script.asked();
    assert_eq!(asked[0].body["metadata"]["uid"], "u1");
    assert_eq!(asked[0].body["metadata"].get("resourceVersion"), None);
}

#[tokio::test]
async fn a_foreign_object_in_the_way_is_looked_at_and_never_written() {
    let script = Script::answering([
        failure(409, "Conflict", "the object has been modified"),
        (200, live("u2", 7, None, true)),
    ]);
    let ctx = script.context();
    let error = apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect_err("taken");
    assert_eq!(error.retry(), Retry::Soon);
    let asked = script.asked();
    assert_eq!(asked[1].method, Method::GET);
    let foreign = ctx.foreign.in_the_way_of(&key());
    assert_eq!(foreign.len(), 1, "the next pass sees it");
    assert_eq!(foreign[0].2.meta.uid.as_deref(), Some("u2"));
    // One that came between observe and apply is refused without a call.
    fill(&ctx, live("u2", 7, Some("somebody"), true));
    let error = apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect_err("not ours");
    assert!(matches!(error, Error::Stale { .. }));
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn a_successor_of_the_same_name_is_not_taken_for_the_cached_object() {
    let message =
        "ServiceAccount \"chat\" is invalid: metadata.uid: Invalid value: \"u1\": field is immutable";
    let script = Script::answering([failure(422, "Invalid", message), (200, live("u2", 8, None, true))]);
    let ctx = script.context();
    fill(&ctx, live("u1", 7, Some(OWNER_UID), true));
    let error = apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect_err("another object");
    assert_eq!(error.retry(), Retry::Soon);
    assert_eq!(script.asked().len(), 2);
    assert!(ctx.caches.children(OwnedKind::ServiceAccount).get(&key()).is_none());
    assert_eq!(ctx.foreign.in_the_way_of(&key()).len(), 1);
}

#[tokio::test]
async fn our_own_child_without_its_label_is_found_again() {
    let script = Script::answering([
        failure(409, "Conflict", "the object has been modified"),
        (200, live("u1", 8, Some(OWNER_UID), true)),
        (200, live("u1", 9, Some(OWNER_UID), false)),
    ]);
    let ctx = script.context();
    apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect_err("the cache did not know it");
    assert!(ctx.foreign.in_the_way_of(&key()).is_empty());
    let applied = apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect("applied");
    assert_eq!(applied.n_written, 1);
    assert_eq!(script.asked()[2].body["metadata"]["uid"], "u1");
}

#[tokio::test]
async fn a_refusal_is_a_finding_with_the_servers_words_and_stops_the_rest() {
    let message = "exceeded quota: objects";
    let script = Script::answering([failure(403, "Forbidden", message)]);
    let ctx = script.context();
    let mut second = service_account();
    second.object["metadata"]["name"] = json!("chat-2");
    let applied = apply(&ctx, &owner(), &plan(vec![service_account(), second])).await.expect("a finding");
    let (failure, error) = applied.failure.expect("refused");
    assert_eq!((failure.message.as_str(), failure.retryable), (message, false));
    assert_eq!(error.retry(), Retry::Backoff);
    assert_eq!(script.asked().len(), 1, "the second child was left alone");
}

#[tokio::test]
async fn a_child_on_its_way_out_is_left_alone() {
    let script = Script::default();
    let ctx = script.context();
    let mut leaving = live("u1", 7, Some(OWNER_UID), true);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    fill(&ctx, leaving);
    assert_eq!(apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect("nothing").n_written, 0);
    assert_eq!(prune(&ctx, &owner(), &plan(vec![])).await.expect("nothing"), 0);
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn prune_deletes_by_owner_uid_with_preconditions() {
    let script = Script::answering([(200, json!({"kind": "Status", "status": "Success"}))]);
    let ctx = script.context();
    fill(&ctx, live("u1", 7, Some(OWNER_UID), false));
    let mut stranger = live("u2", 8, Some("a predecessor of the same name"), false);
    stranger["metadata"]["name"] = json!("chat-old");
    fill(&ctx, stranger);
    assert_eq!(prune(&ctx, &owner(), &plan(vec![])).await.expect("deleted"), 1);
    let asked = script.asked();
    assert_eq!(
        (&asked[0].method, asked[0].path.as_str()),
        (&Method::DELETE, "/api/v1/namespaces/ns/serviceaccounts/chat")
    );
    assert_eq!(asked[0].body["preconditions"], json!({"uid": "u1", "resourceVersion": "7"}));
    assert_eq!(asked[0].body["propagationPolicy"], "Background");
    assert_eq!(prune(&ctx, &owner(), &plan(vec![])).await.expect("gone from the cache"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_pods_still_read_stays_and_routine_clean_ups_trip_no_brake() {
    let ended = || (200, json!({"kind": "Status", "status": "Success"}));
    let script = Script::answering((0..30).map(|_| ended()));
    let ctx = script.context();
    let config = |name: &str, owner: &str| {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "7",
                         "ownerReferences": [reference(owner)]},
        });
        let object = serde_json::from_value(object).expect("an object");
        ctx.caches.children(OwnedKind::ConfigMap).applied(Raw::new(object, "v1", "ConfigMap"));
    };
    config("chat-old", OWNER_UID);
    let kept = Plan { kept: [(OwnedKind::ConfigMap, "chat-old".to_owned())].into(), ..plan(vec![]) };
    assert_eq!(prune(&ctx, &owner(), &kept).await.expect("kept"), 0);
    // Many resources end a rollout within a minute.
    for n in 0..29 {
        config(&format!("r{n}-old"), &format!("u{n}"));
        let owner = Owner { key: Key::new("ns", format!("r{n}")), uid: format!("u{n}") };
        assert_eq!(prune(&ctx, &owner, &plan(vec![])).await.expect("deleted"), 1);
    }
    assert_eq!(prune(&ctx, &owner(), &plan(vec![])).await.expect("deleted"), 1);
    script.asked();
}

#[tokio::test]
async fn a_child_whose_owner_was_taken_off_gets_it_back() {
    let script = Script::answering([(200, live("u1", 8, Some(OWNER_UID), false))]);
    let ctx = script.context();
    let mut orphan = live("u1", 7, None, false);
    orphan["metadata"]["labels"] = json!({"candela.dev/llmdeployment": "chat"});
    fill(&ctx, orphan);
    assert_eq!(apply(&ctx, &owner(), &plan(vec![service_account()])).await.expect("applied").n_written, 1);
    let asked = script.asked();
    assert_eq!(asked[0].body["metadata"]["uid"], "u1");
    assert_eq!(asked[0].body["metadata"]["ownerReferences"][0]["uid"], OWNER_UID);
}

#[tokio::test]
async fn partial_plans_never_prune() {
    let script = Script::default();
    let ctx = script.context();
    fill(&ctx, live("u1", 7, Some(OWNER_UID), false));
    let partial = Plan { complete: false, ..plan(vec![]) };
    assert_eq!(prune(&ctx, &owner(), &partial).await.expect("nothing"), 0);
    assert_eq!(script.asked(), []);
}

#[tokio::test]
async fn a_delete_that_meets_a_change_is_a_conflict() {
    let script = Script::answering([failure(409, "Conflict", "Precondition failed")]);
    let ctx = script.context();
    fill(&ctx, live("u1", 7, Some(OWNER_UID), false));
    let error = prune(&ctx, &owner(), &plan(vec![])).await.expect_err("it changed");
    assert_eq!(error.retry(), Retry::Soon);
    assert!(ctx.caches.children(OwnedKind::ServiceAccount).get(&key()).is_some());
    assert_eq!(script.asked().len(), 1);
}
