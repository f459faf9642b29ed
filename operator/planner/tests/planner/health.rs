//! The health script that ships for Argo CD, run on statuses that the planner really writes: the table of the design.

use expect_test::expect_file;
use serde_json::{Value, json};

use crate::argocd::{folder, health};
use crate::fixtures::{World, pod_with, ready_pod};

fn object(world: &World) -> Value {
    let mut cr = world.cr.clone();
    cr.status = Some(world.status());
    serde_json::to_value(cr).unwrap()
}

/// Each row of the table in the design, as the planner writes it.
fn rows() -> Vec<(&'static str, Value, &'static str)> {
    let serving = || {
        World::new("{}").applied(1, 1, 1).replica_set("aaa", 1, 1, 1).pod("chat-aaa-1", "aaa", ready_pod())
    };
    let broken =
        || pod_with(json!({"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}));
    let changed = "{routing: {timeouts: {request: 30s}}}";
    let failed_update = World::new("{}")
        .applied(2, 1, 1)
        .replica_set("aaa", 1, 1, 1)
        .replica_set("bbb", 2, 1, 0)
        .pod("chat-aaa-1", "aaa", ready_pod())
        .pod("chat-bbb-1", "bbb", broken());
    let nothing_serves =
        World::new("{}").applied(1, 1, 0).replica_set("aaa", 1, 1, 0).pod("chat-aaa-1", "aaa", broken());
    vec![
        ("progressing", object(&World::new("{}").applied(1, 1, 0)), "Progressing"),
        ("serving", object(&serving()), "Healthy"),
        ("rolling", object(&serving().edited(changed)), "Progressing"),
        ("update-failed", object(&failed_update), "Degraded"),
        ("nothing-serves", object(&nothing_serves), "Degraded"),
        ("suspended", object(&World::new("{suspend: true}").applied(0, 0, 0)), "Suspended"),
    ]
}

#[test]
fn argo_cd_shows_what_the_table_says() {
    let mut tests = Vec::new();
    for (name, object, expected) in rows() {
        let (status, message) = health(&object);
        assert_eq!(status, expected, "{name}");
        let path = folder().join(format!("testdata/{name}.yaml"));
        expect_file![path].assert_eq(&crate::sorted_yaml(&object));
        tests.push(json!({
            "healthStatus": {"status": status, "message": message},
            "inputPath": format!("testdata/{name}.yaml"),
        }));
    }
    // The form in which Argo CD's own repository keeps such tests, so that the folder can be handed over as it is.
    expect_file![folder().join("health_test.yaml")].assert_eq(&crate::sorted_yaml(&json!({"tests": tests})));
}

#[test]
fn a_status_of_another_generation_or_none_is_progress() {
    let (_, mut object, _) = rows().swap_remove(1);
    object["metadata"]["generation"] = json!(4);
    assert_eq!(health(&object).0, "Progressing", "the status speaks of generation 3");
    object["status"] = json!({"observedGeneration": -1});
    assert_eq!(health(&object).0, "Progressing");
    object.as_object_mut().unwrap().remove("status");
    assert_eq!(health(&object).0, "Progressing");
}
