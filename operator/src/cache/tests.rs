use serde_json::json;

use super::*;

fn object(name: &str, uid: &str, version: u64, owner: &str) -> Raw {
    let object = json!({
        "metadata": {
            "namespace": "ns", "name": name, "uid": uid, "resourceVersion": version.to_string(),
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "X", "name": "x", "uid": "bystander"},
                {"apiVersion": "v1", "kind": "X", "name": "x", "uid": owner, "controller": true},
            ],
        },
    });
    Raw::new(serde_json::from_value(object).expect("an object"), "v1", "ConfigMap")
}

fn version(cache: &Cache<Raw>, name: &str) -> Option<String> {
    cache.get(&Key::new("ns", name))?.meta.resource_version.clone()
}

fn list(cache: &Cache<Raw>, objects: Vec<Raw>) -> usize {
    cache.relist_started();
    for object in objects {
        cache.relisted(object);
    }
    cache.relist_finished().len()
}

#[test]
fn owners_are_controllers_only_and_follow_changes() {
    let cache = Cache::default();
    cache.applied(object("a", "1", 1, "owner"));
    assert_eq!(cache.owned_by("owner").len(), 1);
    assert!(cache.owned_by("bystander").is_empty());
    cache.applied(object("a", "1", 2, "other"));
    assert!(cache.owned_by("owner").is_empty());
    assert_eq!(cache.owned_by("other").len(), 1);
    assert!(cache.deleted(&object("a", "1", 3, "other")).is_some());
    assert!(cache.owned_by("other").is_empty());
}

#[test]
fn lists_leave_the_type_out_and_the_cache_adds_it() {
    let raw = object("a", "1", 1, "owner");
    assert_eq!(
        (raw.value["apiVersion"].as_str(), raw.value["kind"].as_str()),
        (Some("v1"), Some("ConfigMap"))
    );
}

#[test]
fn late_events_do_not_undo_an_own_write() {
    let cache = Cache::default();
    cache.applied(object("a", "1", 5, "o"));
    cache.wrote(object("a", "1", 9, "o"));
    assert!(cache.applied(object("a", "1", 7, "o")).is_none(), "older than what we wrote");
    assert_eq!(version(&cache, "a").as_deref(), Some("9"));
    assert!(cache.applied(object("a", "1", 9, "o")).is_none(), "our own write wakes nobody");
    assert!(cache.applied(object("a", "1", 11, "o")).is_some());
    assert!(cache.applied(object("a", "1", 3, "o")).is_some(), "etcd was restored: the watch is believed");
}

#[test]
fn the_deletion_of_an_earlier_object_does_not_hit_its_successor() {
    let cache = Cache::default();
    cache.wrote(object("a", "second", 9, "o"));
    assert!(cache.deleted(&object("a", "first", 8, "o")).is_none());
    assert_eq!(version(&cache, "a").as_deref(), Some("9"));
}

#[test]
fn what_we_deleted_stays_deleted_in_late_events() {
    let cache = Cache::default();
    cache.applied(object("a", "1", 5, "o"));
    cache.wrote_deletion(&Key::new("ns", "a"), "1");
    assert!(cache.applied(object("a", "1", 6, "o")).is_none());
    assert!(cache.get(&Key::new("ns", "a")).is_none());
    assert!(cache.applied(object("a", "2", 7, "o")).is_some(), "a new object of the name");
}

#[tokio::test(start_paused = true)]
async fn a_relist_reports_what_vanished_and_keeps_what_was_written_meanwhile() {
    let cache = Cache::default();
    assert!(!cache.is_synced());
    assert_eq!(list(&cache, vec![object("a", "1", 1, "o"), object("b", "2", 2, "o")]), 2);
    assert!(cache.is_synced());
    assert_eq!(list(&cache, vec![object("a", "1", 1, "o"), object("b", "2", 2, "o")]), 0, "no news");

    cache.wrote(object("old-write", "3", 3, "o"));
    tokio::time::advance(Duration::from_secs(1)).await;
    cache.relist_started();
    cache.relisted(object("a", "1", 4, "o"));
    cache.wrote(object("new-write", "4", 5, "o"));
    let changes = cache.relist_finished();
    let mut names: Vec<_> =
        changes.iter().map(|change| (change.old.is_some(), change.new.is_some())).collect();
    names.sort_unstable();
    // `a` changed, `b` and `old-write` vanished.
    assert_eq!(names, [(true, false), (true, false), (true, true)]);
    assert!(version(&cache, "new-write").is_some());
    assert!(version(&cache, "old-write").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_the_watch_never_shows_is_not_believed_for_ever() {
    let cache = Cache::default();
    cache.wrote(object("a", "1", 1, "o"));
    assert!(version(&cache, "a").is_some());
    tokio::time::advance(BELIEVED).await;
    assert!(version(&cache, "a").is_none());
    assert!(cache.owned_by("o").is_empty());
}

#[test]
fn names_after_another_are_found_by_whole_parts() {
    let cache = Cache::default();
    for name in ["chat", "chat-config", "chat.x", "chatty", "chat0", "cha"] {
        cache.applied(object(name, name, 1, "o"));
    }
    let mut names: Vec<_> = cache
        .named_after(&Key::new("ns", "chat"))
        .iter()
        .map(|object| object.meta.name.clone().unwrap_or_default())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["chat", "chat-config"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_a_relist_confirms_needs_no_event_any_more() {
    let cache = Cache::default();
    cache.wrote(object("a", "1", 9, "o"));
    list(&cache, vec![object("a", "1", 9, "o")]);
    tokio::time::advance(BELIEVED * 2).await;
    assert!(cache.get(&Key::new("ns", "a")).is_some());
}

#[tokio::test(start_paused = true)]
async fn who_met_a_doubtful_object_is_woken_when_the_watch_comes_back() {
    let cache = Cache::default();
    let key = Key::new("ns", "a");
    cache.wrote(object("a", "1", 9, "o"));
    assert!(!cache.is_doubtful(&key));
    tokio::time::advance(BELIEVED).await;
    assert!(cache.is_doubtful(&key) && cache.get(&key).is_none());
    assert!(cache.applied(object("a", "1", 9, "o")).is_some(), "our own write, late");
    assert!(!cache.is_doubtful(&key) && cache.get(&key).is_some());

    cache.wrote(object("a", "1", 10, "o"));
    tokio::time::advance(BELIEVED).await;
    assert_eq!(list(&cache, vec![object("a", "1", 10, "o")]), 1);

    cache.wrote(object("a", "1", 11, "o"));
    tokio::time::advance(BELIEVED).await;
    cache.wrote(object("a", "1", 11, "o"));
    assert!(cache.get(&key).is_some(), "the server was asked and has it");
}
