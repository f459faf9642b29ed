//! Whether a live object must be applied again. Answered from the cached object, so that a settled cluster sees no
//! write at all, not even one that changes nothing.

use candela_crds::Quantity;
use serde_json::{Map, Value};

use crate::FIELD_MANAGER;

/// True if the live object must be applied: a desired field is missing or different, or our field manager still
/// owns a field that is no longer desired. What the API server defaulted, and what others added, is left alone.
///
/// The live object must carry its `managedFields`; without them, removed fields go unnoticed.
pub fn owned_fields_differ(desired: &Value, live: &Value) -> bool {
    !contains(desired, live, "") || owns_more(desired, live)
}

/// True if `live` holds everything that `desired` says.
fn contains(desired: &Value, live: &Value, parent: &str) -> bool {
    if is_whole(parent) {
        return desired == live;
    }
    match (desired, live) {
        (Value::Object(desired), Value::Object(live)) => desired.iter().all(|(key, want)| {
            // Amounts keep their parent's name, whatever the resource is called.
            let scope = if is_amounts(parent) { parent } else { key };
            match live.get(key) {
                Some(have) => contains(want, have, scope),
                // The API server drops empty lists and maps.
                None => want.is_null() || is_empty(want),
            }
        }),
        (Value::Array(desired), Value::Array(live)) => lists_agree(desired, live, parent),
        (Value::String(want), Value::String(have)) if is_amounts(parent) => {
            // The API server rounds amounts up to thousandths.
            let milli = |text: &str| Quantity::nano(text).map(|nano| (nano + 999_999).div_euclid(1_000_000));
            want == have || (milli(want).is_some() && milli(want) == milli(have))
        }
        (Value::String(want), Value::String(have)) if parent == "sizeLimit" => {
            want == have || (Quantity::nano(want).is_some() && Quantity::nano(want) == Quantity::nano(have))
        }
        (want, have) => want == have,
    }
}

/// Fields that are one value to server-side apply: an entry that somebody added is ours to take away, and must be
/// seen. A label added to a Service's selector cuts off every pod. Nothing in them is defaulted that we leave out.
fn is_whole(key: &str) -> bool {
    matches!(
        key,
        "selector"
            | "podSelector"
            | "namespaceSelector"
            | "labelSelector"
            | "nodeSelector"
            | "ingress"
            | "egress"
    )
}

fn is_amounts(key: &str) -> bool {
    matches!(key, "requests" | "limits")
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

/// Lists with a merge key are compared by it, since others may add entries; all others are compared whole.
fn lists_agree(desired: &[Value], live: &[Value], parent: &str) -> bool {
    let Some(keys) = merge_keys(parent) else {
        return desired.len() == live.len()
            && desired.iter().zip(live).all(|(want, have)| contains(want, have, parent));
    };
    desired.iter().all(|want| {
        live.iter().any(|have| {
            keys.iter().all(|key| want.get(*key).is_none_or(|value| have.get(*key) == Some(value)))
                && contains(want, have, "")
        })
    })
}

/// The map keys of the lists in our children, as Kubernetes declares them.
fn merge_keys(list: &str) -> Option<&'static [&'static str]> {
    Some(match list {
        "containers" | "initContainers" | "env" | "volumes" => &["name"],
        "volumeMounts" => &["mountPath"],
        "ports" => &["port", "containerPort", "protocol"],
        "ownerReferences" => &["uid"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        _ => return None,
    })
}

/// True if our field manager owns, in the live object, a field that `desired` does not set.
fn owns_more(desired: &Value, live: &Value) -> bool {
    let entries = live["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .filter(|entry| {
            entry["manager"] == FIELD_MANAGER
                && entry["operation"] == "Apply"
                && entry.get("subresource").is_none()
        })
        .any(|entry| !covers(desired, &entry["fieldsV1"]))
}

/// True if every field of the `fieldsV1` set is in `desired`.
fn covers(desired: &Value, fields: &Value) -> bool {
    let Some(fields) = fields.as_object() else { return true };
    fields.iter().all(|(path, below)| {
        if path == "." {
            return true;
        }
        let found = match path.split_once(':') {
            Some(("f", name)) => desired.get(name),
            Some(("k", keys)) => element(desired, keys),
            Some(("v", value)) => scalar(desired, value),
            // Something newer than this code: applying once more is harmless, missing a removal is not.
            _ => None,
        };
        found.is_some_and(|value| covers(value, below))
    })
}

fn element<'a>(list: &'a Value, keys: &str) -> Option<&'a Value> {
    let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
    list.as_array()?
        .iter()
        .find(|entry| keys.iter().all(|(key, value)| entry.get(key).is_none_or(|have| have == value)))
}

fn scalar<'a>(list: &'a Value, value: &str) -> Option<&'a Value> {
    let value: Value = serde_json::from_str(value).ok()?;
    list.as_array()?.iter().find(|entry| **entry == value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(desired: Value, live: Value, differ: bool) {
        assert_eq!(owned_fields_differ(&desired, &live), differ, "{desired} {live}");
    }

    #[test]
    fn defaults_and_strangers_are_left_alone() {
        check(
            json!({"spec": {"replicas": 1, "containers": [{"name": "server", "image": "a"}]}}),
            json!({"spec": {"replicas": 1, "paused": false, "containers": [
                {"name": "proxy"}, {"name": "server", "image": "a", "imagePullPolicy": "Always"}]}}),
            false,
        );
    }

    #[test]
    fn changed_and_missing_fields_are_noticed() {
        check(json!({"spec": {"replicas": 1}}), json!({"spec": {"replicas": 3}}), true);
        check(json!({"spec": {"replicas": 1}}), json!({"spec": {}}), true);
        check(json!({"args": ["a", "b"]}), json!({"args": ["b", "a"]}), true);
        check(json!({"containers": [{"name": "server"}]}), json!({"containers": [{"name": "other"}]}), true);
    }

    #[test]
    fn an_entry_added_to_a_selector_or_a_policy_is_noticed() {
        check(
            json!({"spec": {"selector": {"app": "a"}}}),
            json!({"spec": {"selector": {"app": "a", "x": "y"}}}),
            true,
        );
        let rules = |ports: Value| json!({"spec": {"ingress": [{"ports": ports}]}});
        let port = |port: u16| json!({"port": port, "protocol": "TCP"});
        check(rules(json!([port(1)])), rules(json!([port(1), port(2)])), true);
        check(rules(json!([port(1)])), rules(json!([port(1)])), false);
    }

    #[test]
    fn amounts_are_compared_as_amounts_and_texts_as_texts() {
        check(json!({"limits": {"memory": "1024Mi"}}), json!({"limits": {"memory": "1Gi"}}), false);
        check(json!({"limits": {"memory": "1024Mi"}}), json!({"limits": {"memory": "2Gi"}}), true);
        check(json!({"limits": {"cpu": "100u"}}), json!({"limits": {"cpu": "1m"}}), false);
        check(json!({"limits": {"cpu": "1100u"}}), json!({"limits": {"cpu": "1m"}}), true);
        check(
            json!({"env": [{"name": "A", "value": "1000m"}]}),
            json!({"env": [{"name": "A", "value": "1"}]}),
            true,
        );
    }

    #[test]
    fn a_field_that_we_own_but_no_longer_want_is_noticed() {
        let live = |manager: &str| {
            json!({
                "spec": {"replicas": 1, "minReadySeconds": 5},
                "metadata": {"managedFields": [{
                    "manager": manager, "operation": "Apply",
                    "fieldsV1": {"f:spec": {"f:replicas": {}, "f:minReadySeconds": {}}},
                }]},
            })
        };
        check(json!({"spec": {"replicas": 1}}), live(FIELD_MANAGER), true);
        check(json!({"spec": {"replicas": 1}}), live("kubectl"), false);
        check(json!({"spec": {"replicas": 1, "minReadySeconds": 5}}), live(FIELD_MANAGER), false);
    }

    #[test]
    fn owned_list_entries_are_found_by_their_keys() {
        let live = json!({
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            "metadata": {"managedFields": [{
                "manager": FIELD_MANAGER, "operation": "Apply",
                "fieldsV1": {"f:env": {
                    "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}},
                    "k:{\"name\":\"B\"}": {".": {}, "f:name": {}, "f:value": {}},
                }},
            }]},
        });
        check(json!({"env": [{"name": "A", "value": "1"}]}), live.clone(), true);
        check(json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}), live, false);
    }
}
