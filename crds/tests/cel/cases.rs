//! One object that each CEL rule lets pass and one that it refuses. Evaluated in process by `main.rs` beside this, and
//! by a real API server in `tests/tests/control_plane/admission.rs`.

use serde_json::{Value, json};

pub(crate) struct Case {
    /// A part of the rule's message that no other rule has.
    pub(crate) message: &'static str,
    pub(crate) accept: &'static str,
    pub(crate) reject: &'static str,
    /// `metadata.name` of the rejected object, when that is what is wrong.
    pub(crate) reject_name: Option<&'static str>,
}

/// A case whose objects are patches of the smallest spec: `{model: {uri: builtin://demo}, replicas: 1}`.
const fn case(message: &'static str, accept: &'static str, reject: &'static str) -> Case {
    Case { message, accept, reject, reject_name: None }
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { reject_name: Some("2-models"), ..case("metadata.name also names a Service", "{}", "{}") },
        case("model.uri is required", "{}", "{model: {}}"),
        case(
            "builtin:// models are part of Candela's own server image",
            "{engine: {name: Custom, image: x}, model: {uri: 'hf://a/b'}}",
            "{engine: {name: Custom, image: x}, model: {uri: 'builtin://demo'}}",
        ),
        case(
            "model.contextLength has no effect with engine Custom",
            "{model: {uri: 'builtin://demo', contextLength: 512}}",
            "{engine: {name: Custom, image: x}, model: {contextLength: 512}}",
        ),
        case(
            "routing.timeouts are enforced by Candela's own server only",
            "{routing: {timeouts: {request: 30s}}}",
            "{engine: {name: Custom, image: x}, model: {}, routing: {timeouts: {request: 30s}}}",
        ),
        case(
            "model.quantization must be None, Q8 or Q4",
            "{model: {uri: 'hf://a/b', quantization: Q4}}",
            "{model: {uri: 'hf://a/b', quantization: Fp8}}",
        ),
        case(
            "model.quantization is done by Candela's own server only",
            "{model: {uri: 'hf://a/b', quantization: None}}",
            "{engine: {name: Custom, image: x}, model: {uri: 'hf://a/b', quantization: Q8}}",
        ),
        case(
            "builtin://demo generates text and nothing else",
            "{model: {uri: 'builtin://demo', tasks: [Generate]}}",
            "{model: {uri: 'builtin://demo', tasks: [Embed]}}",
        ),
        case(
            "model.tasks may hold one task",
            "{model: {uri: 'hf://a/b', tasks: [TokenClassify]}}",
            "{model: {uri: 'hf://a/b', tasks: [Embed, Rerank]}}",
        ),
        case(
            "model.format Gguf is for models that generate text",
            "{model: {uri: 'hf://a/b', tasks: [Generate], format: Gguf}}",
            "{model: {uri: 'hf://a/b', tasks: [Embed], format: Gguf}}",
        ),
        case(
            "model.tasks chooses what Candela's own server does",
            "{model: {uri: 'hf://a/b', tasks: [Embed]}}",
            "{engine: {name: Custom, image: x}, model: {uri: 'hf://a/b', tasks: [Embed]}}",
        ),
        case(
            "batching is done by Candela's own server only",
            "{batching: {maxSequences: 4}}",
            "{engine: {name: Custom, image: x}, model: {}, batching: {maxSequences: 4}}",
        ),
        case(
            "batching.maxBatchTokens must not be below",
            "{batching: {maxBatchTokens: 16, maxSequences: 16}}",
            "{batching: {maxBatchTokens: 16, maxSequences: 17}}",
        ),
        case(
            "batching.maxBatchTokens must be a number of tokens",
            "{batching: {maxBatchTokens: 65536}}",
            "{batching: {maxBatchTokens: 15}}",
        ),
        case(
            "batching.maxSequences must be from",
            "{batching: {maxSequences: 1024, maxBatchTokens: 1024}}",
            "{batching: {maxSequences: 1025}}",
        ),
        case("batching.maxQueue must be from", "{batching: {maxQueue: 1}}", "{batching: {maxQueue: 0}}"),
        case("batching.maxWait must be from", "{batching: {maxWait: 100ms}}", "{batching: {maxWait: 99ms}}"),
        case(
            "additionalModels are loaded by Candela's own server only",
            "{additionalModels: [{uri: 'hf://a/b', servedName: b}]}",
            "{engine: {name: Custom, image: x}, model: {}, additionalModels: [{uri: 'hf://a/b', servedName: b}]}",
        ),
        case(
            "each model needs a servedName of its own",
            "{model: {uri: 'builtin://demo', servedName: a}, additionalModels: [{uri: 'hf://a/b', servedName: chat}, {uri: 'hf://a/b', servedName: b}]}",
            "{additionalModels: [{uri: 'hf://a/b', servedName: b}, {uri: 'hf://a/b', servedName: chat}]}",
        ),
        case(
            "model.format only chooses which files are fetched",
            "{engine: {name: Custom, image: x}, model: {uri: 'hf://a/b', format: Gguf}}",
            "{engine: {name: Custom, image: x}, model: {uri: 'pvc://c/m', format: Gguf}}",
        ),
        case(
            "only what Candela fetches can be verified",
            "{model: {uri: 'pvc://c/m', verification: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}}",
            "{engine: {name: Custom, image: x}, model: {uri: 'pvc://c/m', verification: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}}",
        ),
        case("replicas must be a number from 0 to 1000", "{replicas: 1000}", "{replicas: -1}"),
        case(
            "model.revision is a commit, tag or branch",
            "{model: {uri: 'hf://a/b', revision: main}}",
            "{model: {uri: 'builtin://demo', revision: main}}",
        ),
        case(
            "model.credentialsRef is only sent to",
            "{model: {uri: 'https://h/m.gguf', credentialsRef: {name: s, key: token}}}",
            "{model: {uri: 'pvc://c/m', credentialsRef: {name: s, key: token}}}",
        ),
        case(
            "builtin:// models come verified with the image",
            "{model: {uri: 'hf://a/b', verification: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}}",
            "{model: {uri: 'builtin://demo', verification: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}}",
        ),
        case(
            "model.uri must be builtin://demo",
            "{model: {uri: 'http://h:8080/a/m.gguf'}}",
            "{model: {uri: 's3://b/m'}}",
        ),
        case(
            "model.servedName must be letters",
            "{model: {uri: 'builtin://demo', servedName: 'org/chat-small:v1'}}",
            "{model: {uri: 'builtin://demo', servedName: 'a/../b'}}",
        ),
        case(
            "model.contextLength must be a number of tokens",
            "{model: {uri: 'builtin://demo', contextLength: 16}}",
            "{model: {uri: 'builtin://demo', contextLength: 0}}",
        ),
        case(
            "model.verification.sha256 must be 64",
            "{model: {uri: 'hf://a/b', verification: {sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}}}",
            "{model: {uri: 'hf://a/b', verification: {sha256: E3B0}}}",
        ),
        case(
            "engine Custom needs engine.image",
            "{engine: {name: Candle}}",
            "{engine: {name: Custom}, model: {}}",
        ),
        case(
            "engine.image is only for engine Custom",
            "{engine: {name: Custom, image: x}, model: {}}",
            "{engine: {name: Candle, image: x}}",
        ),
        case(
            "engine.args are only for engine Custom",
            "{engine: {name: Custom, image: x, args: [a]}, model: {}}",
            "{engine: {name: Candle, args: [a]}}",
        ),
        case(
            "engine.env is only for engine Custom",
            "{engine: {name: Custom, image: x, env: [{name: A, value: b}]}, model: {}}",
            "{engine: {name: Candle, env: [{name: A, value: b}]}}",
        ),
        case(
            "each variable needs exactly one of",
            "{engine: {name: Custom, image: x, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}, model: {}}",
            "{engine: {name: Custom, image: x, env: [{name: A}]}, model: {}}",
        ),
        case(
            "PORT, MODEL_NAME and MODEL_PATH are set by Candela",
            "{engine: {name: Custom, image: x, env: [{name: PORT2, value: '1'}]}, model: {}}",
            "{engine: {name: Custom, image: x, env: [{name: PORT, value: '1'}]}, model: {}}",
        ),
        case(
            "valueFrom needs exactly one of",
            "{engine: {name: Custom, image: x, env: [{name: A, valueFrom: {configMapKeyRef: {name: s, key: k}}}]}, model: {}}",
            "{engine: {name: Custom, image: x, env: [{name: A, valueFrom: {}}]}, model: {}}",
        ),
        case(
            "resources.requests must not be above resources.limits",
            "{resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {cpu: 2, memory: 1024Mi}}}",
            "{resources: {requests: {memory: 2Gi}, limits: {memory: 1G}}}",
        ),
        case(
            "resources take cpu, memory",
            "{resources: {limits: {cpu: '1', hugepages-2Mi: 4Mi}}}",
            "{resources: {limits: {nvidia.com/gpu: '1'}}}",
        ),
        case(
            "resources.requests must be amounts from 0 to 1E",
            "{resources: {requests: {cpu: 0, memory: 1E, ephemeral-storage: 1.5Gi}}}",
            "{resources: {requests: {memory: 100E}}}",
        ),
        case(
            "resources.limits must be amounts from 0 to 1E",
            "{resources: {limits: {cpu: '0.5', memory: '1e9'}}}",
            "{resources: {limits: {cpu: -1}}}",
        ),
        case(
            "huge pages cannot be overcommitted",
            "{resources: {requests: {cpu: 1, hugepages-2Mi: 4Mi}, limits: {hugepages-2Mi: 4096Ki}}}",
            "{resources: {requests: {cpu: 1, hugepages-2Mi: 2Mi}, limits: {hugepages-2Mi: 4Mi}}}",
        ),
        case(
            "huge pages need cpu or memory",
            "{resources: {limits: {memory: 1Gi, hugepages-1Gi: 2Gi}}}",
            "{resources: {limits: {hugepages-1Gi: 2Gi}}}",
        ),
        case(
            "must be a whole number of pages",
            "{resources: {limits: {memory: 1Gi, hugepages-2Mi: 64Mi}}}",
            "{resources: {limits: {memory: 1Gi, hugepages-2Mi: 3Mi}}}",
        ),
        case(
            "placement.nodeSelector needs label keys",
            "{placement: {nodeSelector: {example.org/zone: a, zone: ''}}}",
            "{placement: {nodeSelector: {-zone: a}}}",
        ),
        case(
            "placement.nodeSelector needs label values",
            "{placement: {nodeSelector: {zone: eu-1_b.c}}}",
            "{placement: {nodeSelector: {zone: 'a b'}}}",
        ),
        case(
            "topologySpread.topologyKey must be a label key",
            "{placement: {topologySpread: [{topologyKey: topology.kubernetes.io/zone, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway}]}}",
            "{placement: {topologySpread: [{topologyKey: 'a/b/c', maxSkew: 1, whenUnsatisfiable: ScheduleAnyway}]}}",
        ),
        case(
            "accelerator.device.resourceName must be DOMAIN/NAME",
            "{accelerator: {device: {resourceName: nvidia.com/mig-1g.10gb, count: 1}}}",
            "{accelerator: {device: {resourceName: gpu, count: 1}}}",
        ),
        case(
            "accelerator.device.count must be",
            "{accelerator: {device: {count: 64}}}",
            "{accelerator: {device: {count: 0}}}",
        ),
        case(
            "strategy Recreate stops every old replica first",
            "{rollout: {strategy: Recreate}}",
            "{rollout: {strategy: Recreate, maxSurge: 1}}",
        ),
        case(
            "maxSurge and maxUnavailable must not both be 0",
            "{rollout: {maxSurge: 0, maxUnavailable: 1}}",
            "{rollout: {maxSurge: 0, maxUnavailable: 0%}}",
        ),
        case("maxSurge 0 needs maxUnavailable", "{rollout: {maxSurge: 25%}}", "{rollout: {maxSurge: 0}}"),
        case(
            "rollout.progressDeadline must be",
            "{rollout: {progressDeadline: 1h30m}}",
            "{rollout: {progressDeadline: 1s}}",
        ),
        case(
            "firstToken must not be longer",
            "{routing: {timeouts: {request: 2m, firstToken: 30s}}}",
            "{routing: {timeouts: {request: 30s, firstToken: 2m}}}",
        ),
        case(
            "routing.timeouts.request must be from",
            "{routing: {timeouts: {request: 1h}}}",
            "{routing: {timeouts: {request: 1ms}}}",
        ),
        case(
            "routing.timeouts.firstToken must be from",
            "{routing: {timeouts: {firstToken: 1s}}}",
            "{routing: {timeouts: {firstToken: 48h}}}",
        ),
        case(
            "each of podTemplate.volumeMounts must name",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /data}]}}",
            "{podTemplate: {volumeMounts: [{name: d, mountPath: /data}]}}",
        ),
        case(
            "labels under candela.dev/",
            "{podTemplate: {labels: {example.org/team: a}}}",
            "{podTemplate: {labels: {app.kubernetes.io/instance: a}}}",
        ),
        case(
            "annotations under candela.dev/",
            "{podTemplate: {annotations: {example.org/team: a}}}",
            "{podTemplate: {annotations: {candela.dev/config-hash: a}}}",
        ),
        case(
            "podTemplate.terminationGracePeriod must be",
            "{podTemplate: {terminationGracePeriod: 5m}}",
            "{podTemplate: {terminationGracePeriod: 0s}}",
        ),
        case(
            "each volume needs exactly one of",
            "{podTemplate: {volumes: [{name: d, secret: {secretName: s}}]}}",
            "{podTemplate: {volumes: [{name: d, hostPath: {path: /}}]}}",
        ),
        case(
            "volume names starting with candela-",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}]}}",
            "{podTemplate: {volumes: [{name: candela-config, emptyDir: {}}]}}",
        ),
        case(
            "podTemplate.labels needs keys",
            "{podTemplate: {labels: {example.org/team: a}}}",
            "{podTemplate: {labels: {'the team': a}}}",
        ),
        case(
            "podTemplate.labels needs values",
            "{podTemplate: {labels: {team: a.b}}}",
            "{podTemplate: {labels: {team: -a}}}",
        ),
        case(
            "podTemplate.annotations needs keys",
            "{podTemplate: {annotations: {Example.org/note: 'any text: at all'}}}",
            "{podTemplate: {annotations: {'a//b': c}}}",
        ),
        case(
            "mountPath must be a plain absolute path",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /data/..cache}]}}",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: //etc/candela}]}}",
        ),
        case(
            "subPath must stay inside",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /data, subPath: a/..b}]}}",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /data, subPath: a/../../b}]}}",
        ),
        case(
            "emptyDir.sizeLimit must be",
            "{podTemplate: {volumes: [{name: d, emptyDir: {sizeLimit: 512Mi}}]}}",
            "{podTemplate: {volumes: [{name: d, emptyDir: {sizeLimit: -1}}]}}",
        ),
        case(
            "mountPath must stay out of",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /models2}]}}",
            "{podTemplate: {volumes: [{name: d, emptyDir: {}}], volumeMounts: [{name: d, mountPath: /models/x}]}}",
        ),
    ]
}

/// The smallest resource with `patch` (YAML) laid over its spec, field by field.
pub(crate) fn object(name: &str, patch: &str) -> Value {
    let mut spec = json!({"model": {"uri": "builtin://demo"}, "replicas": 1});
    let patch: Value = serde_yaml::from_str(patch).unwrap();
    for (key, value) in patch.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "candela.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    })
}

/// Values of `spec.model.uri` that look right.
pub(crate) const ACCEPTED_URIS: [&str; 7] = [
    "builtin://demo",
    "hf://meta-llama/Llama-3.2-1B",
    "hf://org/name/q8/model.gguf",
    "https://models.example.org/a/b.gguf",
    "http://10.0.0.1:8000/folder/",
    "pvc://weights",
    "pvc://weights/llama/3",
];
/// Values of `spec.model.uri` that do not.
pub(crate) const REFUSED_URIS: [&str; 10] = [
    "builtin://other",
    "hf://llama",
    "hf://a/b/c",
    "https://user:secret@host/m",
    "https://host",
    "https://host/a b",
    "pvc://Weights/x",
    "pvc://weights/../etc",
    "file:///etc/passwd",
    "s3://bucket/x",
];
