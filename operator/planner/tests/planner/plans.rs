//! `desired`: what each field of the spec makes of the children.

use candela_planner::{OwnedKind, owned_fields_differ};
use expect_test::expect_file;
use serde_json::{Value, json};

use crate::fixtures::{known, llm, plan, planned, settings};

fn pod(spec: &str) -> Value {
    planned(spec, OwnedKind::Deployment).unwrap()["spec"]["template"].clone()
}

fn server(spec: &str) -> Value {
    pod(spec)["spec"]["containers"][0].clone()
}

fn yaml(spec: &str) -> String {
    let cr = llm(spec);
    let children = plan(&cr, &known(&cr)).plan.children;
    children.iter().map(|child| crate::sorted_yaml(&child.object)).collect::<Vec<_>>().join("---\n")
}

#[test]
fn the_smallest_resource() {
    expect_file!["snapshots/smallest.yaml"].assert_eq(&yaml("{}"));
}

#[test]
fn weights_from_a_hub_with_credentials_on_gpus() {
    expect_file!["snapshots/hub-gpu.yaml"].assert_eq(&yaml(
        "{model: {uri: 'hf://org/name', revision: abc, credentialsRef: {name: hub, key: token}},
          replicas: 2, accelerator: {device: {count: 4}, productNames: [NVIDIA-H100-80GB-HBM3]},
          resources: {requests: {cpu: 2, memory: 8Gi}, limits: {memory: 16Gi}},
          routing: {timeouts: {request: 2m, firstToken: 30s}}}",
    ));
}

#[test]
fn a_custom_engine_with_fetched_weights() {
    expect_file!["snapshots/custom.yaml"].assert_eq(&yaml(
        "{model: {uri: 'https://models.example.org/m.gguf'},
          engine: {name: Custom, image: 'example.org/llama:1', args: [--model, $(MODEL_PATH)], env: [{name: A, value: b}]}}",
    ));
}

#[test]
fn planning_again_over_what_was_applied_changes_nothing() {
    for spec in ["{}", "{replicas: 3}", "{model: {uri: 'pvc://weights/llama'}}", "{suspend: true}"] {
        let cr = llm(spec);
        let first = plan(&cr, &known(&cr)).plan;
        let mut seen = known(&cr);
        for child in &first.children {
            seen.children.entry(child.kind).or_default().push(child.object.clone());
        }
        let again = plan(&cr, &seen).plan;
        assert_eq!(again, first, "{spec}");
        for child in &again.children {
            let live = seen.child(child.kind, child.name()).unwrap();
            assert!(!owned_fields_differ(&child.object, live), "{spec}: {}", child.kind);
        }
    }
}

#[test]
fn the_configuration_rolls_pods_and_the_resources_own_labels_do_not() {
    let template =
        |cr| plan(&cr, &known(&cr)).plan.children.pop().unwrap().object["spec"]["template"].clone();
    let before = template(llm("{}"));
    let mut labelled = llm("{}");
    labelled.metadata.labels = Some([("app.kubernetes.io/instance".to_owned(), "argo".to_owned())].into());
    labelled.metadata.annotations = Some([("note".to_owned(), "changed".to_owned())].into());
    assert_eq!(template(labelled), before);
    for spec in ["{replicas: 5}", "{access: {networkPolicy: None}}", "{rollout: {maxSurge: 2}}"] {
        assert_eq!(template(llm(spec)), before, "{spec} must roll no pod");
    }
    for spec in [
        "{model: {uri: 'builtin://demo', contextLength: 512}}",
        "{model: {uri: 'builtin://demo', servedName: other}}",
        "{routing: {timeouts: {request: 30s}}}",
        "{batching: {maxQueue: 5}}",
    ] {
        let after = template(llm(spec));
        assert_ne!(after["spec"]["volumes"], before["spec"]["volumes"], "{spec} must roll the pods");
        let mut same = after.clone();
        same["spec"]["volumes"] = before["spec"]["volumes"].clone();
        assert_eq!(same["metadata"], before["metadata"], "{spec} must roll them once");
    }
}

fn replica_set(config: &str, wanted: i32, present: i32) -> Value {
    let volumes = json!([{"name": "candela-config", "configMap": {"name": config}}]);
    json!({
        "metadata": {"name": config}, "status": {"replicas": present},
        "spec": {"replicas": wanted, "selector": {}, "template": {"spec": {"containers": [], "volumes": volumes}}},
    })
}

#[test]
fn configurations_stay_while_pods_may_read_them() {
    let cr = llm("{}");
    let mut seen = known(&cr);
    let sets = [("chat-new", 1, 0), ("chat-old", 0, 1), ("chat-ended", 0, 0)];
    seen.replica_sets = sets
        .iter()
        .map(|(config, wanted, present)| {
            serde_json::from_value(replica_set(config, *wanted, *present)).unwrap()
        })
        .collect();
    let pod = json!({
        "metadata": {"name": "last"},
        "spec": replica_set("chat-ending", 0, 0)["spec"]["template"]["spec"],
    });
    seen.pods.push(serde_json::from_value(pod).unwrap());
    seen.cluster_keys = Some(crate::trust::keys("first"));
    let plan = plan(&cr, &seen).plan;
    let kept: Vec<_> = plan.kept.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
    assert_eq!(
        kept,
        [
            (OwnedKind::ConfigMap, "chat-ending"),
            (OwnedKind::ConfigMap, "chat-new"),
            (OwnedKind::ConfigMap, "chat-old"),
        ]
    );
    let mut longest = llm("{}");
    longest.metadata.name = Some("a".repeat(50));
    let children = candela_planner::plan(&longest, &known(&longest), &settings()).plan.children;
    let config = children.iter().find(|child| child.kind == OwnedKind::ConfigMap).unwrap();
    assert_eq!(config.name().len(), 61, "a name that is also a valid label");
}

#[test]
fn disruption_budget_comes_with_the_second_replica() {
    assert_eq!(planned("{replicas: 1}", OwnedKind::PodDisruptionBudget), None);
    let budget = planned("{replicas: 2}", OwnedKind::PodDisruptionBudget).unwrap();
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
    assert_eq!(planned("{replicas: 2, suspend: true}", OwnedKind::PodDisruptionBudget), None);
}

#[test]
fn suspended_keeps_everything_but_the_replicas() {
    let suspended = planned("{replicas: 2, suspend: true}", OwnedKind::Deployment).unwrap();
    assert_eq!(suspended["spec"]["replicas"], 0);
    assert!(planned("{suspend: true}", OwnedKind::Service).is_some());
}

#[test]
fn rollouts_never_stop_a_replica_before_another_serves_unless_told_to() {
    let strategy = |spec: &str| planned(spec, OwnedKind::Deployment).unwrap()["spec"]["strategy"].clone();
    assert_eq!(
        strategy("{}"),
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})
    );
    assert_eq!(strategy("{rollout: {strategy: Recreate}}"), json!({"type": "Recreate"}));
    assert_eq!(
        strategy("{rollout: {maxSurge: 0, maxUnavailable: 50%}}"),
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}})
    );
}

#[test]
fn the_start_may_take_as_long_as_the_progress_deadline() {
    let probe = |spec: &str| {
        let probe = server(spec)["startupProbe"].clone();
        probe["periodSeconds"].as_i64().unwrap() * probe["failureThreshold"].as_i64().unwrap()
    };
    assert_eq!(probe("{}"), 1800);
    assert_eq!(probe("{rollout: {progressDeadline: 2h}}"), 7200);
    let deployment = planned("{rollout: {progressDeadline: 2h}}", OwnedKind::Deployment).unwrap();
    assert_eq!(deployment["spec"]["progressDeadlineSeconds"], 7200);
}

#[test]
fn stopping_lasts_as_long_as_the_longest_request() {
    let grace = |spec: &str| pod(spec)["spec"]["terminationGracePeriodSeconds"].clone();
    assert_eq!(grace("{}"), 60);
    assert_eq!(grace("{routing: {timeouts: {request: 5m}}}"), 310);
    assert_eq!(grace("{podTemplate: {terminationGracePeriod: 20s}, routing: {timeouts: {request: 5m}}}"), 20);
}

/// `server.json` of the resource, as the server reads it.
fn server_config(spec: &str) -> candela_wire::config::ServerConfig {
    let map = planned(spec, OwnedKind::ConfigMap).unwrap();
    serde_json::from_str(map["data"]["server.json"].as_str().unwrap()).unwrap()
}

#[test]
fn quantization_is_written_only_where_something_is_to_change() {
    let asked = |word: &str| {
        let spec = format!("{{model: {{uri: 'hf://a/b', quantization: {word}}}}}");
        serde_json::to_value(&server_config(&spec).models[0]).unwrap()["quantization"].clone()
    };
    assert_eq!((asked("Q8"), asked("Q4"), asked("None")), (json!("Q8"), json!("Q4"), Value::Null));
}

#[test]
fn tasks_are_written_as_they_were_asked_for_and_in_one_order() {
    let tasks = |words: &str| {
        let spec = format!("{{model: {{uri: 'hf://a/b', tasks: {words}}}}}");
        serde_json::to_value(&server_config(&spec).models[0]).unwrap()["tasks"].clone()
    };
    assert_eq!((tasks("[]"), tasks("[Generate]")), (Value::Null, json!(["Generate"])));
    assert_eq!(tasks("[Embed]"), json!(["Embed"]));
    assert_eq!(tasks("[TokenClassify]"), json!(["TokenClassify"]));
    assert_eq!(
        tasks("[Rerank, Embed]"),
        json!(["Embed", "Rerank"]),
        "a set has no order, so it rolls no pod"
    );
}

#[test]
fn batching_reaches_the_server_as_it_is_written() {
    let batching = |spec: &str| serde_json::to_value(server_config(spec).batching).unwrap();
    assert_eq!(batching("{}"), json!({}));
    assert_eq!(batching("{batching: {}}"), json!({}));
    assert_eq!(
        batching("{batching: {maxBatchTokens: 256, maxSequences: 4, maxQueue: 32, maxWait: 1m30s}}"),
        json!({"maxBatchTokens": 256, "maxSequences": 4, "maxQueue": 32, "maxWaitMs": 90000})
    );
    // A resource that says nothing new keeps its configuration, hence its pods.
    assert_eq!(planned("{}", OwnedKind::Deployment), planned("{batching: {}}", OwnedKind::Deployment));
}

#[test]
fn accelerators_are_asked_for_twice_and_only_where_they_are_used() {
    let spec = "{accelerator: {device: {resourceName: nvidia.com/gpu, count: 4}}, model: {uri: 'hf://a/b'}}";
    let server = server(spec);
    assert_eq!(
        server["resources"],
        json!({"requests": {"nvidia.com/gpu": "4"}, "limits": {"nvidia.com/gpu": "4"}})
    );
    assert_eq!(server["image"], settings().images[1].image);
    let pod = pod(spec);
    assert_eq!(pod["spec"]["initContainers"][0]["resources"], json!({}));
    assert_eq!(pod["spec"]["tolerations"][0]["key"], "nvidia.com/gpu");
}

#[test]
fn product_names_are_demanded_by_every_alternative_of_the_users_affinity() {
    let terms = |spec: &str| {
        pod(spec)["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            .clone()
    };
    let product = json!({"key": "nvidia.com/gpu.product", "operator": "In", "values": ["A", "B"]});
    assert_eq!(
        terms("{accelerator: {device: {count: 1}, productNames: [A, B]}}"),
        json!([{"matchExpressions": [product]}])
    );
    let zone = |zone: &str| json!({"key": "zone", "operator": "In", "values": [zone]});
    assert_eq!(
        terms(
            "{accelerator: {device: {count: 1}, productNames: [A, B]}, placement: {affinity: {nodeAffinity: {
              requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
                {matchExpressions: [{key: zone, operator: In, values: [x]}]},
                {matchExpressions: [{key: zone, operator: In, values: [y]}]}]}}}}}"
        ),
        json!([{"matchExpressions": [zone("x"), product]}, {"matchExpressions": [zone("y"), product]}])
    );
}

#[test]
fn only_the_step_that_fetches_sees_the_credentials() {
    let pod = pod("{model: {uri: 'https://models.example.org/m.gguf', credentialsRef: {name: s, key: k}}}");
    let mounts = |container: &Value| container["volumeMounts"].to_string().contains("candela-credentials");
    assert!(mounts(&pod["spec"]["initContainers"][0]));
    assert!(!mounts(&pod["spec"]["containers"][0]));
}

#[test]
fn a_claim_is_mounted_read_only_and_needs_no_init_step() {
    let pod = pod("{model: {uri: 'pvc://weights/llama/3'}}");
    assert_eq!(pod["spec"].get("initContainers"), None);
    let mount = json!({"name": "candela-pvc", "mountPath": "/pvc/weights", "readOnly": true});
    assert!(pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap().contains(&mount));
}

#[test]
fn a_custom_engine_learns_port_name_and_path_from_its_environment() {
    let env = |spec: &str| {
        let env = server(spec)["env"].clone();
        let pairs = env.as_array().unwrap().iter();
        pairs
            .map(|var| {
                format!("{}={}", var["name"].as_str().unwrap(), var["value"].as_str().unwrap_or("<ref>"))
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    let custom = "engine: {name: Custom, image: x}";
    for (model, expected) in [
        ("{}", "PORT=8080 MODEL_NAME=chat HOME=/tmp"),
        ("{uri: 'hf://a/b'}", "PORT=8080 MODEL_NAME=chat MODEL_PATH=/models/chat HOME=/tmp"),
        (
            "{uri: 'hf://a/b/q8/m.gguf'}",
            "PORT=8080 MODEL_NAME=chat MODEL_PATH=/models/chat/q8/m.gguf HOME=/tmp",
        ),
        (
            "{uri: 'http://h/x/m.gguf?a=b'}",
            "PORT=8080 MODEL_NAME=chat MODEL_PATH=/models/chat/m.gguf HOME=/tmp",
        ),
        ("{uri: 'pvc://c/m'}", "PORT=8080 MODEL_NAME=chat MODEL_PATH=/pvc/c/m HOME=/tmp"),
        (
            "{uri: 'hf://a/b', servedName: 'org/m:1'}",
            "PORT=8080 MODEL_NAME=org/m:1 MODEL_PATH=/models/org+m=1 HOME=/tmp",
        ),
    ] {
        assert_eq!(env(&format!("{{{custom}, model: {model}}}")), expected);
    }
}

#[test]
fn a_custom_image_that_brings_its_weights_needs_no_configuration() {
    let spec = "{model: {}, engine: {name: Custom, image: x}}";
    assert_eq!(planned(spec, OwnedKind::ConfigMap), None);
    assert_eq!(server(spec)["readinessProbe"]["httpGet"]["path"], "/v1/models");
    assert_eq!(server(spec)["lifecycle"]["preStop"]["sleep"]["seconds"], 5);
}

#[test]
fn the_network_policy_lets_out_what_the_source_needs_and_no_more() {
    let ports = |spec: &str| {
        let policy = planned(spec, OwnedKind::NetworkPolicy).unwrap();
        let rules = policy["spec"]["egress"].as_array().unwrap().clone();
        let ports = rules.iter().flat_map(|rule| rule["ports"].as_array().unwrap().clone());
        ports.map(|port| port["port"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ports("{}"), [53, 53]);
    assert_eq!(ports("{model: {uri: 'hf://a/b'}}"), [53, 53, 443]);
    assert_eq!(ports("{model: {uri: 'http://h:8000/m.gguf'}}"), [53, 53, 443, 8000]);
    assert_eq!(planned("{access: {networkPolicy: None}}", OwnedKind::NetworkPolicy), None);
}

#[test]
fn every_field_of_placement_and_pod_template_reaches_the_pod() {
    let pod = pod(
        "{placement: {nodeSelector: {disk: ssd}, tolerations: [{key: a, operator: Exists}], priorityClassName: high,
           runtimeClassName: nvidia, schedulerName: other,
           topologySpread: [{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway}]},
          podTemplate: {labels: {team: a}, annotations: {note: b}, volumes: [
             {name: c, configMap: {name: cm}}, {name: s, secret: {secretName: sec}},
             {name: p, persistentVolumeClaim: {claimName: pc, readOnly: true}},
             {name: e, emptyDir: {medium: Memory, sizeLimit: 1Gi}}],
           volumeMounts: [{name: c, mountPath: /c, subPath: x, readOnly: true}]}}",
    );
    let spec = &pod["spec"];
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(spec["tolerations"], json!([{"key": "a", "operator": "Exists"}]));
    assert_eq!(spec["priorityClassName"], "high");
    assert_eq!(spec["runtimeClassName"], "nvidia");
    assert_eq!(spec["schedulerName"], "other");
    assert_eq!(spec["topologySpreadConstraints"][0]["topologyKey"], "zone");
    assert_eq!(pod["metadata"]["labels"]["team"], "a");
    assert_eq!(pod["metadata"]["annotations"]["note"], "b");
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(volumes.contains(&json!({"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})));
    assert!(
        volumes
            .contains(&json!({"name": "p", "persistentVolumeClaim": {"claimName": "pc", "readOnly": true}}))
    );
    let mount = json!({"name": "c", "mountPath": "/c", "subPath": "x", "readOnly": true});
    assert!(spec["containers"][0]["volumeMounts"].as_array().unwrap().contains(&mount));
}
