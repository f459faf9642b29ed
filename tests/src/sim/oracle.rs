//! What must hold, whatever went wrong on the way.

use std::collections::{BTreeMap, BTreeSet};

use candela_planner::OwnedKind;
use serde_json::{Value, json};

use super::{LEASE, describe};
use crate::fake::store::Change;
use crate::fake::{FakeCluster, Record};

/// Everything that a user can see of a settled cluster, without what differs between any two runs.
pub fn end_state(cluster: &FakeCluster) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    let kinds = OwnedKind::ALL.iter().map(|kind| kind.kind()).chain(["LlmDeployment", "ReplicaSet", "Pod"]);
    for kind in kinds {
        for mut object in cluster.all(kind) {
            let meta = &object["metadata"];
            let name = format!("{kind}/{}", meta["name"].as_str().unwrap_or_default());
            // The history of a rollout is not its end.
            if kind == "ReplicaSet" && object["spec"]["replicas"] == 0 {
                continue;
            }
            let current = object["status"]["observedGeneration"] == meta["generation"];
            plain(&mut object);
            if !object["status"]["observedGeneration"].is_null() {
                object["status"]["observedGeneration"] = json!(if current { "current" } else { "behind" });
            }
            out.insert(name, object);
        }
    }
    out
}

/// Takes out uids, versions, times and addresses, at every depth.
fn plain(value: &mut Value) {
    const VOLATILE: [&str; 18] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
        "lastTransitionTime",
        "lastUpdateTime",
        "lastTime",
        "startTime",
        "startedAt",
        "schedule",
        "imagePull",
        "clusterIP",
        "clusterIPs",
        "podIP",
        "podIPs",
        "deployment.kubernetes.io/revision",
        "imageID",
    ];
    match value {
        Value::Object(map) => {
            VOLATILE.iter().for_each(|field| {
                map.remove(*field);
            });
            for (key, value) in map.iter_mut() {
                if key == "conditions" {
                    drop_generations(value);
                }
                plain(value);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

fn drop_generations(conditions: &mut Value) {
    for condition in conditions.as_array_mut().into_iter().flatten() {
        if let Some(map) = condition.as_object_mut() {
            map.remove("observedGeneration");
        }
    }
}

/// Where two end states differ, in lines; empty when they do not.
pub fn difference(want: &BTreeMap<String, Value>, got: &BTreeMap<String, Value>) -> Vec<String> {
    let names: BTreeSet<_> = want.keys().chain(got.keys()).collect();
    let mut out = Vec::new();
    for name in names {
        match (want.get(name), got.get(name)) {
            (Some(a), Some(b)) => walk(name, a, b, &mut out),
            (Some(_), None) => out.push(format!("{name} is missing")),
            _ => out.push(format!("{name} should not exist")),
        }
    }
    out
}

fn walk(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys().filter(|k| !x.contains_key(*k))) {
                let nothing = Value::Null;
                walk(
                    &format!("{path}.{key}"),
                    x.get(key).unwrap_or(&nothing),
                    y.get(key).unwrap_or(&nothing),
                    out,
                );
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(at, (x, y))| walk(&format!("{path}[{at}]"), x, y, out));
        }
        (a, b) if a != b => out.push(format!("{path}: {a} became {b}")),
        _ => {}
    }
}

/// Children that nobody owns any more, or never did.
pub fn orphans(cluster: &FakeCluster) -> Vec<String> {
    let alive: Vec<Value> =
        cluster.all("LlmDeployment").iter().map(|l| l["metadata"]["uid"].clone()).collect();
    let mut out = Vec::new();
    for kind in OwnedKind::ALL {
        for object in cluster.all(kind.kind()) {
            let managed = object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "candela";
            let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
            let owned = owners.iter().any(|o| o["controller"] == true && alive.contains(&o["uid"]));
            if managed && !owned {
                out.push(format!("{}/{} has no living owner", kind.kind(), object["metadata"]["name"]));
            }
        }
    }
    out
}

/// ConfigMaps that were deleted while a pod was there that reads them, other than along with their resource: the
/// pod's next restart would fail.
pub fn torn_away(cluster: &FakeCluster) -> Vec<String> {
    let mut readers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut owners = BTreeSet::new();
    let mut out = Vec::new();
    for event in cluster.history() {
        match event.kind.kind {
            "LlmDeployment" if event.change == Change::Deleted => {
                owners.remove(&event.object["metadata"]["uid"].to_string());
            }
            "LlmDeployment" => {
                owners.insert(event.object["metadata"]["uid"].to_string());
            }
            "Pod" if event.change == Change::Deleted => {
                readers.remove(&event.key.name);
            }
            "Pod" => {
                let volumes = event.object["spec"]["volumes"].as_array().cloned().unwrap_or_default();
                let maps = volumes.iter().map(|volume| volume["configMap"]["name"].clone()).collect();
                readers.insert(event.key.name.clone(), maps);
            }
            "ConfigMap" if event.change == Change::Deleted => {
                if !owners.contains(&event.object["metadata"]["ownerReferences"][0]["uid"].to_string()) {
                    continue;
                }
                let name = json!(event.key.name);
                let reader = readers.iter().find(|(_, maps)| maps.contains(&name));
                out.extend(reader.map(|(pod, _)| format!("{name} was deleted while pod {pod} reads it")));
            }
            _ => {}
        }
    }
    out
}

/// Moments at which one owner had more than one living child of a kind. Of ConfigMaps there is one for each
/// configuration that a pod reads.
pub fn duplicates(cluster: &FakeCluster) -> Vec<String> {
    let mut alive: BTreeMap<(&str, String), BTreeSet<String>> = BTreeMap::new();
    let mut out = Vec::new();
    let owned = |kind: &str| {
        OwnedKind::ALL.iter().any(|owned| owned.kind() == kind && *owned != OwnedKind::ConfigMap)
    };
    for event in cluster.history().iter().filter(|event| owned(event.kind.kind)) {
        for owner in event.object["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
            let names = alive.entry((event.kind.kind, owner["uid"].to_string())).or_default();
            if event.change == Change::Deleted {
                names.remove(&event.key.name);
            } else if names.insert(event.key.name.clone()) && names.len() > 1 {
                out.push(format!("several {} at once: {names:?}", event.kind.kind));
            }
        }
    }
    out
}

/// Statuses that named a generation whose replica count the Deployment did not have at that moment.
pub fn ahead_of_apply(cluster: &FakeCluster) -> Vec<String> {
    let mut wanted: BTreeMap<(String, u64), Value> = BTreeMap::new();
    let mut applied: BTreeMap<String, Value> = BTreeMap::new();
    let mut out = Vec::new();
    for event in cluster.history() {
        let name = event.key.name.clone();
        match event.kind.kind {
            "Deployment" => {
                applied.insert(name, event.object["spec"]["replicas"].clone());
            }
            "LlmDeployment" => {
                let generation = event.object["metadata"]["generation"].as_u64().unwrap_or_default();
                let spec = &event.object["spec"];
                let replicas = if spec["suspend"] == true { json!(0) } else { spec["replicas"].clone() };
                wanted.insert((name.clone(), generation), replicas);
                let before = event.before.as_ref().map(|b| b["status"]["observedGeneration"].clone());
                let observed = &event.object["status"]["observedGeneration"];
                let moved = before.is_some_and(|before| before != *observed);
                let Some(generation) = observed.as_u64().filter(|_| moved) else { continue };
                let want = wanted.get(&(name.clone(), generation));
                if want.is_some() && want != applied.get(&name) {
                    out.push(format!(
                        "`{name}` says it is at generation {generation}, its Deployment is not"
                    ));
                }
            }
            _ => {}
        }
    }
    out
}

/// Workload writes by a client after the lease it had last renewed was over.
pub fn after_lease(log: &[Record]) -> Vec<String> {
    let mut renewed = BTreeMap::new();
    let mut out = Vec::new();
    for record in log.iter().filter(|r| r.committed && r.client.starts_with("op-")) {
        if record.kind == "Lease" {
            renewed.insert(record.client.clone(), record.at);
        } else if record.is_workload_write() {
            match renewed.get(&record.client) {
                Some(at) if record.at <= *at + LEASE => {}
                _ => out.push(format!("without a lease: {}", describe(record))),
            }
        }
    }
    out
}
