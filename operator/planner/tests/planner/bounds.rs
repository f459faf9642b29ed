//! Whatever the cluster says, the API server takes the status: it is within every bound of the CRD.

use std::collections::{BTreeMap, BTreeSet};

use candela_crds::llm_deployment_crd;
use candela_planner::{ApplyFailure, NodeFacts, OwnedKind};
use candela_wire::internal::ModelStatus;
use serde_json::{Value, json};

use crate::fixtures::{World, plan, pod_with, ready_pod, settings, stamp, unscheduled};

/// What of the value the schema does not allow, as the API server would say it.
fn violations(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut say = |what: String| found.push(format!("{path}: {what}"));
    if let Some(expected) = schema["type"].as_str() {
        let actual = match value {
            Value::Object(_) => "object",
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "boolean",
            Value::Null => "null",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
        };
        if actual != expected && (actual, expected) != ("integer", "number") {
            return say(format!("{actual} instead of {expected}"));
        }
    }
    let over = |key: &str, length: usize| schema[key].as_u64().is_some_and(|max| length as u64 > max);
    match value {
        Value::String(text) => {
            let length = text.chars().count();
            if over("maxLength", length) {
                say(format!("{length} characters"));
            }
            if schema["minLength"].as_u64().is_some_and(|min| (length as u64) < min) {
                say("too short".to_owned());
            }
            if let Some(pattern) = schema["pattern"].as_str()
                && !regex::Regex::new(pattern).unwrap().is_match(text)
            {
                say(format!("`{text}` does not match {pattern}"));
            }
            if let Some(words) = schema["enum"].as_array()
                && !words.contains(value)
            {
                say(format!("`{text}` is not one of {words:?}"));
            }
        }
        Value::Array(items) => {
            if over("maxItems", items.len()) {
                say(format!("{} items", items.len()));
            }
            if let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() {
                let key = |item: &Value| {
                    keys.iter().map(|key| item[key.as_str().unwrap()].to_string()).collect::<Vec<_>>()
                };
                let distinct: BTreeSet<_> = items.iter().map(key).collect();
                if distinct.len() != items.len() {
                    say("duplicate keys".to_owned());
                }
            }
            for (at, item) in items.iter().enumerate() {
                violations(&schema["items"], item, &format!("{path}[{at}]"), found);
            }
        }
        Value::Object(fields) => {
            for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(required) {
                    say(format!("lacks {required}"));
                }
            }
            for (name, field) in fields {
                let inner = &schema["properties"][name];
                assert!(inner.is_object(), "{path}.{name} is not in the schema");
                violations(inner, field, &format!("{path}.{name}"), found);
            }
        }
        _ => {}
    }
}

#[track_caller]
fn check(world: &World, failure: Option<ApplyFailure>, name: &str) {
    let mut outcome = plan(&world.cr, &world.seen);
    outcome.apply_failure = failure;
    let status = candela_planner::status(&world.cr, &outcome, &world.seen, &settings(), stamp());
    let crd = serde_json::to_value(llm_deployment_crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    let mut found = Vec::new();
    violations(schema, &serde_json::to_value(&status).unwrap(), "status", &mut found);
    assert_eq!(found, Vec::<String>::new(), "{name}");
}

/// Texts far above every bound, of which no two are cut at the same place of a character.
fn enormous() -> impl Iterator<Item = String> {
    (0..4).flat_map(|shift| {
        ["x", "é", "€", "🕯"].map(|character| format!("{}{}", "a".repeat(shift), character.repeat(20_000)))
    })
}

#[test]
fn the_checker_sees_what_is_out_of_bounds() {
    let schema = json!({"type": "object", "properties": {
        "text": {"type": "string", "maxLength": 2, "pattern": "^a"},
        "list": {"type": "array", "maxItems": 2, "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
            "required": ["k"], "properties": {"k": {"type": "string"}}}},
        "number": {"type": "number"},
    }});
    for (value, n_found) in [
        (json!({"text": "aé", "list": [{"k": "a"}, {"k": "b"}], "number": 1}), 0),
        (json!({"text": "aaa"}), 1),
        (json!({"text": "b"}), 1),
        (json!({"list": [{"k": "a"}, {"k": "a"}]}), 1),
        (json!({"list": [{"k": "a"}, {"k": "b"}, {"k": "c"}]}), 1),
        (json!({"list": [{}]}), 1),
        (json!({"number": null}), 1),
    ] {
        let mut found = Vec::new();
        violations(&schema, &value, "", &mut found);
        assert_eq!(found.len(), n_found, "{value}: {found:?}");
    }
}

#[test]
fn texts_of_pods_and_of_the_api_server_are_cut() {
    for text in enormous() {
        let ended = json!({"lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": text}}});
        let said = json!({"reason": "WeightsNotFound", "message": text}).to_string();
        let told = json!({"lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": said}}});
        let waits =
            |word: &str| json!({"state": {"waiting": {"reason": word, "message": text}}, "image": text});
        for (name, container) in [
            ("crashed", ended),
            ("told", told),
            ("pull", waits("ErrImagePull")),
            ("name", waits("InvalidImageName")),
            ("config", waits("CreateContainerConfigError")),
        ] {
            check(&World::starting("{}", pod_with(container)), None, name);
        }
        check(&World::starting("{}", unscheduled(&text)), None, "unscheduled");
        check(
            &World::starting("{}", json!({"phase": "Failed", "reason": "Evicted", "message": text})),
            None,
            "evicted",
        );
        for condition in [
            json!({"type": "ReplicaFailure", "status": "True", "message": text}),
            json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}),
        ] {
            let world = World::starting("{}", unscheduled(&text)).deployment_condition(condition);
            check(&world, None, "deployment");
        }
        for retryable in [true, false] {
            let failure = ApplyFailure {
                kind: OwnedKind::Deployment,
                name: text.clone(),
                message: text.clone(),
                retryable,
            };
            check(&World::new("{}"), Some(failure), "refused");
        }
        let mut secrets = World::new("{model: {uri: 'hf://a/b', credentialsRef: {name: hub, key: token}}}");
        let annotations = &mut secrets.seen.secrets.get_mut("hub").unwrap().annotations;
        annotations.insert("candela.dev/hosts".to_owned(), text.clone());
        check(&secrets, None, "annotation");
    }
}

#[test]
fn names_of_nodes_and_products_are_cut() {
    for text in enormous() {
        for (count, products) in [(8, "[]"), (1, "[NVIDIA-H200]"), (4, "[]")] {
            let spec = format!(
                "{{accelerator: {{device: {{count: {count}}}, productNames: {products}}}, resources: {{requests: {{memory: 1Ti}}}}}}"
            );
            let mut world = World::starting(&spec, unscheduled("Insufficient nvidia.com/gpu"));
            for n in 0..200 {
                world.seen.nodes.push(NodeFacts {
                    name: format!("{n}-{text}"),
                    labels: BTreeMap::from([("nvidia.com/gpu.product".to_owned(), format!("{n}-{text}"))]),
                    allocatable: BTreeMap::from([
                        ("nvidia.com/gpu".to_owned(), 4),
                        ("memory".to_owned(), 1 << 34),
                    ]),
                    unschedulable: n % 2 == 0,
                });
            }
            check(&world, None, &spec);
            world.seen.nodes.iter_mut().for_each(|node| node.unschedulable = true);
            check(&world, None, &spec);
        }
    }
}

#[test]
fn what_servers_report_is_cut() {
    for text in enormous() {
        let mut world = World::new("{replicas: 40}").applied(40, 1, 40);
        for n in 0..40 {
            world = world.replica_set(&format!("{n}-{text}"), n, 1, 1);
            world = world.pod(&format!("pod-{n}-{text}"), &format!("{n}-{text}"), ready_pod());
        }
        let name = "pod-7".to_owned() + &format!("-{text}");
        world = world.process(&name);
        let reported = world.seen.processes.get_mut(&name).unwrap();
        reported.startup.load_seconds = Some(f64::INFINITY);
        reported.startup.first_token_seconds = Some(f64::NAN);
        reported.models = (0..40)
            .map(|_| ModelStatus {
                served_name: text.clone(),
                digest: text.clone(),
                architecture: text.clone(),
                parameters: u64::MAX,
                size_bytes: u64::MAX,
                estimated_memory_bytes: u64::MAX,
                quantization: text.clone(),
                context_length: u32::MAX,
                tasks: vec![text.clone(); 40],
                revision: Some(text.clone()),
            })
            .collect();
        check(&world, None, "reported");
    }
}
