//! What the servers report of themselves.

use expect_test::expect;
use serde_json::json;

use crate::fixtures::serving;

#[test]
fn everything_that_is_known_of_a_serving_model() {
    let status = serving().process("chat-aaa-1").status();
    expect![[r#"
        currentRevision: chat-aaa
        engine: Candle
        models:
        - architecture: LlamaForCausalLM
          contextLength: 1024
          digest: sha256:abababababababababababababababababababababababababababababababab
          estimatedMemory: 20000000
          parameters: 3000000
          quantization: F16
          servedName: chat
          sizeBytes: 6000000
          tasks:
          - Generate
        readyReplicas: 1
        replicas: 1
        revisions:
        - image: candela.local/server:dev
          modelDigest: sha256:abababababababababababababababababababababababababababababababab
          name: chat-aaa
          ready: 1
        selector: candela.dev/llmdeployment=chat
        startup:
          firstToken: 0.31
          imagePull: 2.0
          load: 0.25
          schedule: 1.0
          warmup: 0.05
        targetRevision: chat-aaa
        updatedReplicas: 1
        url: http://chat.team.svc/v1
    "#]]
    .assert_eq(&crate::sorted_yaml(&json!({
        "url": status.url, "engine": status.engine, "selector": status.selector, "replicas": status.replicas,
        "readyReplicas": status.ready_replicas, "updatedReplicas": status.updated_replicas,
        "currentRevision": status.current_revision, "targetRevision": status.target_revision,
        "revisions": status.revisions, "models": status.models, "startup": status.startup,
    })));
}

#[test]
fn a_restarted_operator_blanks_nothing() {
    let mut world = serving().process("chat-aaa-1");
    let settled = world.status();
    world.cr.status = Some(settled.clone());
    world.seen.processes.clear();
    assert_eq!(world.status(), settled);
}
