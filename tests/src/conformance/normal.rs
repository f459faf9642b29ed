//! Answers without what may differ between two servers: uids, versions, times, addresses, wording.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Names uids and versions by the order in which a sequence meets them, so that "same as before" stays visible.
#[derive(Debug, Default)]
pub struct Normalizer {
    uids: BTreeMap<String, usize>,
    versions: BTreeMap<String, usize>,
}

fn index(seen: &mut BTreeMap<String, usize>, value: &str) -> usize {
    let next = seen.len();
    *seen.entry(value.to_owned()).or_insert(next)
}

impl Normalizer {
    pub fn answer(&mut self, body: &Value) -> Value {
        if body["kind"] == "Status" {
            return status(body);
        }
        let mut out = body.clone();
        if let Some(items) = out.get_mut("items").and_then(Value::as_array_mut) {
            items.iter_mut().for_each(|item| self.object(item));
            let kept = items.clone();
            return json!({"kind": body["kind"], "items": kept});
        }
        self.object(&mut out);
        out
    }

    fn object(&mut self, object: &mut Value) {
        let whole = object.clone();
        for manager in
            object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten()
        {
            only_present(&mut manager["fieldsV1"], &whole);
        }
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            self.metadata(meta);
        }
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = object.pointer_mut(&format!("/spec/{field}")) {
                *value = json!("address");
            }
        }
    }

    fn metadata(&mut self, meta: &mut Map<String, Value>) {
        if let Some(uid) = meta.get("uid").and_then(Value::as_str).map(str::to_owned) {
            meta.insert("uid".to_owned(), json!(format!("uid-{}", index(&mut self.uids, &uid))));
        }
        if let Some(version) = meta.get("resourceVersion").and_then(Value::as_str).map(str::to_owned) {
            meta.insert(
                "resourceVersion".to_owned(),
                json!(format!("rv-{}", index(&mut self.versions, &version))),
            );
        }
        for field in ["creationTimestamp", "deletionTimestamp"] {
            if let Some(value) = meta.get_mut(field) {
                *value = json!(if value.is_null() { "no time" } else { "time" });
            }
        }
        if let Some(managers) = meta.get_mut("managedFields").and_then(Value::as_array_mut) {
            for manager in managers.iter_mut() {
                manager["time"] = json!("time");
            }
            managers.sort_by_key(|m| {
                let text = |key: &str| m[key].as_str().unwrap_or_default().to_owned();
                (text("manager"), text("operation"), text("subresource"))
            });
        }
    }
}

/// Ownership of fields that the object does not have says nothing to anybody, and the servers differ in it: an applied
/// empty map stays owned on the real one.
fn only_present(fields: &mut Value, object: &Value) {
    let Some(map) = fields.as_object_mut() else { return };
    map.retain(|key, below| match key.strip_prefix("f:") {
        Some(name) => match object.get(name) {
            Some(value) if value.as_object().is_some_and(Map::is_empty) => false,
            Some(value) => {
                let had = below.as_object().is_some_and(|b| !b.is_empty());
                only_present(below, value);
                !had || below.as_object().is_some_and(|b| !b.is_empty())
            }
            None => false,
        },
        None => {
            if let Some(item) = key.strip_prefix("k:").and_then(|key| item_of(object, key)) {
                only_present(below, &item);
            }
            true
        }
    });
}

fn item_of(list: &Value, key: &str) -> Option<Value> {
    let key: Map<String, Value> = serde_json::from_str(key).ok()?;
    list.as_array()?.iter().find(|item| key.iter().all(|(k, v)| item.get(k) == Some(v))).cloned()
}

/// Of a refusal: code, reason and the fields it is about. The words are the server's own.
fn status(body: &Value) -> Value {
    let causes = body.pointer("/details/causes").and_then(Value::as_array);
    let mut fields: Vec<&str> = causes.into_iter().flatten().filter_map(|c| c["field"].as_str()).collect();
    fields.sort_unstable();
    fields.dedup();
    json!({"status": body["status"], "reason": body["reason"], "code": body["code"], "fields": fields})
}
