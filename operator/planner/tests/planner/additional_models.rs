//! Several models in the same pods: what each of them makes of the children and of the status.

use candela_crds::{ConditionType, Reason};
use candela_planner::OwnedKind;
use candela_wire::config::ServerConfig;
use expect_test::{expect, expect_file};
use serde_json::{Value, json};

use crate::fixtures::{World, known, llm, plan, planned, pod_with, running, serving};

/// One model of each kind of source beside the generator.
const MIXED: &str = "{model: {uri: 'pvc://weights/llama', servedName: chat-small},
  additionalModels: [
    {servedName: org/rerank, uri: 'https://models.example.org:8443/rerank/', credentialsRef: {name: b, key: k}},
    {servedName: embed, uri: 'hf://org/embed', revision: abc, credentialsRef: {name: a, key: token}},
    {servedName: other, uri: 'pvc://more/m.gguf', contextLength: 512},
    {servedName: same, uri: 'pvc://weights/qwen'}]}";

fn pod(spec: &str) -> Value {
    let cr = llm(spec);
    let mut seen = known(&cr);
    for secret in seen.secrets.values_mut() {
        let hosts = "huggingface.co, models.example.org:8443".to_owned();
        secret.annotations.insert("candela.dev/hosts".to_owned(), hosts);
    }
    let children = plan(&cr, &seen).plan.children;
    let deployment = children.iter().find(|child| child.kind == OwnedKind::Deployment).unwrap();
    deployment.object["spec"]["template"]["spec"].clone()
}

#[test]
fn each_model_has_its_files_its_volume_and_its_token() {
    let pod = pod(MIXED);
    let part = json!({
        "fetch": pod["initContainers"][0]["volumeMounts"],
        "server": pod["containers"][0]["volumeMounts"],
        "volumes": pod["volumes"],
    });
    expect_file!["snapshots/additional-models.yaml"].assert_eq(&serde_yaml::to_string(&part).unwrap());
}

#[test]
fn the_server_is_told_of_every_model_the_main_one_first() {
    let map = |spec: &str| planned(spec, OwnedKind::ConfigMap).unwrap()["data"]["server.json"].clone();
    let spec = "{additionalModels: [
        {servedName: z, uri: 'builtin://demo', contextLength: 64},
        {servedName: org/e, uri: 'hf://a/b', credentialsRef: {name: s, key: k}, format: Safetensors}]}";
    let config: ServerConfig = serde_json::from_str(map(spec).as_str().unwrap()).unwrap();
    assert_eq!(
        serde_json::to_value(&config.models).unwrap(),
        json!([
            {"servedName": "chat", "uri": "builtin://demo"},
            {"servedName": "org/e", "uri": "hf://a/b", "format": "Safetensors",
                "credentialsFile": "/var/run/candela/additional-credentials/org+e/token"},
            {"servedName": "z", "uri": "builtin://demo", "contextLength": 64},
        ])
    );
    let swapped = "{additionalModels: [
        {servedName: org/e, uri: 'hf://a/b', credentialsRef: {name: s, key: k}, format: Safetensors},
        {servedName: z, uri: 'builtin://demo', contextLength: 64}]}";
    assert_eq!(map(swapped), map(spec), "the order means nothing, so it must roll no pod");
    assert_eq!(map("{additionalModels: []}"), map("{}"));
}

#[test]
fn the_network_policy_lets_out_what_every_source_needs() {
    let spec = "{model: {uri: 'pvc://w/m'}, additionalModels: [
        {servedName: a, uri: 'http://h:8000/m.gguf'}, {servedName: b, uri: 'http://i:9000/m/'}]}";
    let policy = planned(spec, OwnedKind::NetworkPolicy).unwrap();
    assert_eq!(
        policy["spec"]["egress"][1]["ports"],
        json!([{"port": 443, "protocol": "TCP"}, {"port": 8000, "protocol": "TCP"}, {"port": 9000, "protocol": "TCP"}])
    );
}

#[test]
fn what_a_model_lacks_is_said_with_its_name() {
    let blocked = |spec: &str, forget: bool| {
        let cr = llm(spec);
        let mut seen = known(&cr);
        if forget {
            seen.claims.clear();
            seen.secrets.clear();
        }
        let blocked = plan(&cr, &seen).resolved.unwrap_err();
        (blocked.reason, blocked.message)
    };
    for (models, forget, reason, says) in [
        ("{servedName: e, uri: 'pvc://w/m'}", true, Reason::ClaimNotFound, "`spec.additionalModels[e].uri`"),
        (
            "{servedName: e, uri: 'hf://a/b', credentialsRef: {name: s, key: k}}",
            true,
            Reason::CredentialsNotFound,
            "`spec.additionalModels[e].credentialsRef`",
        ),
        (
            "{servedName: e, uri: 's3://a/b'}",
            false,
            Reason::InvalidSpec,
            "`spec.additionalModels[e].uri` cannot be used",
        ),
        ("{servedName: e}", false, Reason::InvalidSpec, "`spec.additionalModels[e].uri` is required"),
        ("{uri: 'hf://a/b'}", false, Reason::InvalidSpec, "needs a servedName"),
        ("{servedName: chat, uri: 'hf://a/b'}", false, Reason::InvalidSpec, "the servedName `chat`"),
    ] {
        let (found, message) = blocked(&format!("{{additionalModels: [{models}]}}"), forget);
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(says), "`{message}` should say `{says}`");
    }
    let custom =
        "{engine: {name: Custom, image: x}, model: {}, additionalModels: [{servedName: e, uri: 'hf://a/b'}]}";
    let (reason, message) = blocked(custom, false);
    assert_eq!(reason, Reason::InvalidSpec);
    assert!(message.contains("a resource of its own"), "{message}");
}

const TWO: &str = "{additionalModels: [{servedName: embed, uri: 'builtin://demo'}]}";

#[track_caller]
fn model_available(world: &World) -> String {
    let status = world.status();
    let found = status.condition(ConditionType::ModelAvailable).unwrap();
    format!("{}/{}: {}", found.status.as_str(), found.reason, found.message)
}

#[test]
fn the_condition_names_the_models_and_says_how_far_each_is() {
    let loading = || World::starting(TWO, pod_with(running(false)));
    expect!["False/Loading: the server is loading `chat`, `embed`"].assert_eq(&model_available(&loading()));
    let world = loading().process("chat-aaa-1");
    expect!["False/Loading: the server is loading `embed`; it has loaded `chat`"]
        .assert_eq(&model_available(&world));
    let serves = World { cr: llm(TWO), ..serving() };
    expect!["True/Loaded: `chat`, `embed` are loaded in a pod that serves"]
        .assert_eq(&model_available(&serves));
}

#[test]
fn the_status_has_the_facts_of_each_model() {
    let mut world = serving().process("chat-aaa-1");
    let reported = world.seen.processes.get_mut("chat-aaa-1").unwrap();
    let mut second = reported.models[0].clone();
    second.served_name = "embed".to_owned();
    second.tasks = vec!["Embed".to_owned(), "Rerank".to_owned()];
    reported.models.push(second);
    let models = world.status().models;
    let facts: Vec<_> =
        models.iter().map(|model| (model.served_name.as_str(), model.tasks.join("+"))).collect();
    assert_eq!(facts, [("chat", "Generate".to_owned()), ("embed", "Embed+Rerank".to_owned())]);
}
