//! Defaults that the real server writes into built-in kinds, and values it allocates on create.

use serde_json::{Map, Value, json};

use super::registry::Kind;

fn put(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        let slot = map.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    }
}

fn at<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    put(object, key, json!({}));
    &mut object[key]
}

fn each(object: &mut Value, key: &str, visit: impl FnMut(&mut Value)) {
    if let Some(list) = object.get_mut(key).and_then(Value::as_array_mut) {
        list.iter_mut().for_each(visit);
    }
}

/// Fills in what the writer left out.
pub fn fill(kind: &Kind, object: &mut Value, crd: &Value) {
    match kind.kind {
        "Deployment" => deployment(object),
        "ReplicaSet" => {
            let spec = at(object, "spec");
            put(spec, "replicas", json!(1));
            pod_spec(at(at(spec, "template"), "spec"));
        }
        "Pod" => {
            pod_spec(at(object, "spec"));
            each(at(object, "spec"), "containers", requests);
            each(at(object, "spec"), "initContainers", requests);
            put(at(object, "status"), "phase", json!("Pending"));
            put(at(object, "status"), "qosClass", json!("BestEffort"));
        }
        "Service" => service(at(object, "spec")),
        "Lease" => put(object, "spec", json!({})),
        "Secret" => put(object, "type", json!("Opaque")),
        "NetworkPolicy" => network_policy(at(object, "spec")),
        "PersistentVolumeClaim" => {
            put(at(object, "spec"), "volumeMode", json!("Filesystem"));
            put(at(object, "status"), "phase", json!("Pending"));
        }
        "Namespace" => {
            put(at(object, "spec"), "finalizers", json!(["kubernetes"]));
            put(at(object, "status"), "phase", json!("Active"));
        }
        _ if kind.is_custom() => structural(crd, object),
        _ => {}
    }
}

/// Defaults of a structural schema. `status` is defaulted too: that is how a new object gets its
/// `observedGeneration: -1`.
fn structural(schema: &Value, object: &mut Value) {
    if let Some(list) = object.as_array_mut() {
        if let Some(items) = schema.get("items") {
            list.iter_mut().for_each(|item| structural(items, item));
        }
        return;
    }
    let (Some(properties), Some(map)) =
        (schema.get("properties").and_then(Value::as_object), object.as_object_mut())
    else {
        return;
    };
    for (name, property) in properties {
        if let (None, Some(default)) = (map.get(name), property.get("default")) {
            map.insert(name.clone(), default.clone());
        }
        if let Some(value) = map.get_mut(name) {
            structural(property, value);
        }
    }
}

/// Drops fields that the schema does not name.
pub fn prune(schema: &Value, object: &mut Value) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true)) {
        return;
    }
    match object {
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                list.iter_mut().for_each(|item| prune(items, item));
            }
        }
        Value::Object(map) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                map.retain(|name, _| properties.contains_key(name));
                for (name, value) in map.iter_mut() {
                    prune(&properties[name], value);
                }
            } else if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
                map.values_mut().for_each(|value| prune(values, value));
            }
        }
        _ => {}
    }
}

fn deployment(object: &mut Value) {
    let spec = at(object, "spec");
    put(spec, "replicas", json!(1));
    put(spec, "revisionHistoryLimit", json!(10));
    put(spec, "progressDeadlineSeconds", json!(600));
    let strategy = at(spec, "strategy");
    put(strategy, "type", json!("RollingUpdate"));
    if strategy["type"] == "RollingUpdate" {
        let rolling = at(strategy, "rollingUpdate");
        put(rolling, "maxSurge", json!("25%"));
        put(rolling, "maxUnavailable", json!("25%"));
    }
    pod_spec(at(at(spec, "template"), "spec"));
}

fn pod_spec(spec: &mut Value) {
    put(spec, "restartPolicy", json!("Always"));
    put(spec, "terminationGracePeriodSeconds", json!(30));
    put(spec, "dnsPolicy", json!("ClusterFirst"));
    put(spec, "securityContext", json!({}));
    put(spec, "schedulerName", json!("default-scheduler"));
    // The old name of the field is kept in step with the new one.
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = spec.get(from).filter(|v| !v.is_null()).cloned() {
            put(spec, to, name);
        }
    }
    each(spec, "containers", container);
    each(spec, "initContainers", container);
    each(spec, "volumes", |volume| {
        if let Some(source) = volume.get_mut("configMap") {
            put(source, "defaultMode", json!(0o644));
        }
        if let Some(source) = volume.get_mut("secret") {
            put(source, "defaultMode", json!(0o644));
        }
        if let Some(source) = volume.get_mut("projected") {
            put(source, "defaultMode", json!(0o644));
        }
        if volume.as_object().is_some_and(|v| v.len() == 1) {
            put(volume, "emptyDir", json!({}));
        }
    });
}

fn container(container: &mut Value) {
    put(container, "terminationMessagePath", json!("/dev/termination-log"));
    put(container, "terminationMessagePolicy", json!("File"));
    put(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default().to_owned();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let latest = !image.contains('@') && tag.is_none_or(|tag| tag == "latest");
    put(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    each(container, "ports", |port| put(port, "protocol", json!("TCP")));
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) {
            put(probe, "timeoutSeconds", json!(1));
            put(probe, "periodSeconds", json!(10));
            put(probe, "successThreshold", json!(1));
            put(probe, "failureThreshold", json!(3));
            if let Some(get) = probe.get_mut("httpGet") {
                put(get, "scheme", json!("HTTP"));
                put(get, "path", json!("/"));
            }
        }
    }
    each(container, "env", |env| {
        if let Some(field) = env.pointer_mut("/valueFrom/fieldRef") {
            put(field, "apiVersion", json!("v1"));
        }
    });
}

/// A limit is also the request, where no request is given; in pods, not in templates.
fn requests(container: &mut Value) {
    let limits =
        container.pointer("/resources/limits").and_then(Value::as_object).cloned().unwrap_or_default();
    if !limits.is_empty() {
        let requests = at(at(container, "resources"), "requests");
        for (name, value) in limits {
            put(requests, &name, value);
        }
    }
}

fn service(spec: &mut Value) {
    put(spec, "type", json!("ClusterIP"));
    put(spec, "sessionAffinity", json!("None"));
    put(spec, "internalTrafficPolicy", json!("Cluster"));
    each(spec, "ports", |port| {
        put(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        put(port, "targetPort", number);
    });
}

fn network_policy(spec: &mut Value) {
    put(spec, "podSelector", json!({}));
    for direction in ["ingress", "egress"] {
        each(spec, direction, |rule| each(rule, "ports", |port| put(port, "protocol", json!("TCP"))));
    }
    let mut types = vec![json!("Ingress")];
    if spec.get("egress").is_some_and(|e| e.as_array().is_some_and(|list| !list.is_empty())) {
        types.push(json!("Egress"));
    }
    put(spec, "policyTypes", Value::Array(types));
}

/// What the server allocates once, at create, after ownership was settled. `serial` is unique for the object.
pub fn allocate(kind: &Kind, object: &mut Value, serial: u64) {
    if kind.kind == "Service" && object["spec"]["type"] != "ExternalName" {
        let spec = at(object, "spec");
        let ip = json!(format!("10.96.{}.{}", (serial >> 8) & 255, serial & 255));
        put(spec, "clusterIP", ip);
        let ip = spec["clusterIP"].clone();
        put(spec, "clusterIPs", json!([ip]));
        put(spec, "ipFamilies", json!(["IPv4"]));
        put(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
}

/// Keeps what was allocated, where an update leaves it out.
pub fn keep_allocated(kind: &Kind, old: &Value, new: &mut Value) {
    if kind.kind == "Service" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old["spec"].get(field).filter(|v| !v.is_null()) {
                put(at(new, "spec"), field, value.clone());
            }
        }
    }
}

/// Empty lists and maps that the typed server does not write out.
pub fn drop_empty(value: &mut Value) {
    const MAPS: [&str; 10] = [
        "data",
        "binaryData",
        "stringData",
        "nodeSelector",
        "annotations",
        "labels",
        "limits",
        "requests",
        "matchLabels",
        "selector",
    ];
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|name, value| match value {
                Value::Array(list) => !list.is_empty(),
                Value::Object(inner) => !inner.is_empty() || !MAPS.contains(&name.as_str()),
                _ => true,
            });
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

/// The object without nulls, which the typed server never stores. Schemaless data below a preserved field is left alone.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let kept: Map<String, Value> =
                std::mem::take(map).into_iter().filter(|(_, v)| !v.is_null()).collect();
            *map = kept;
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
