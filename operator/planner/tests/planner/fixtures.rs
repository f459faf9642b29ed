//! A cluster in a few words: a resource from small YAML, and what the world makes of its plan.

use std::collections::BTreeMap;

use candela_crds::{EngineName, LlmDeployment, LlmDeploymentStatus};
use candela_planner::{
    Device, ImageRule, NetworkPolicyEnforced, NodeFacts, Observed, OwnedKind, PlanOutcome, Settings, Stamp,
    check,
};
use candela_wire::internal::{ModelStatus, ProcessStatus, Requests, STATUS_VERSION, Startup, State};
use expect_test::Expect;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

pub(crate) const UID: &str = "11111111-1111-1111-1111-111111111111";
const DEPLOYMENT_UID: &str = "22222222-2222-2222-2222-222222222222";

/// The smallest resource, with these keys of `spec` on top.
pub(crate) fn llm(spec: &str) -> LlmDeployment {
    let mut whole = json!({"model": {"uri": "builtin://demo"}, "replicas": 1});
    let patch: Value = serde_yaml::from_str(spec).unwrap();
    for (key, value) in patch.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "candela.dev/v1alpha1",
        "kind": "LlmDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": UID, "generation": 3},
        "spec": whole,
    }))
    .unwrap()
}

pub(crate) fn settings() -> Settings {
    let image = |device, image: &str| ImageRule {
        engine: EngineName::Candle,
        device,
        image: image.to_owned(),
        args: Vec::new(),
    };
    Settings {
        images: vec![
            image(Device::Cpu, "candela.local/server:dev"),
            image(Device::Nvidia, "candela.local/server:dev-cuda"),
        ],
        network_policy_enforced: NetworkPolicyEnforced::Yes,
        operator_namespace: "candela-system".to_owned(),
        hub_endpoint: None,
    }
}

pub(crate) fn stamp() -> Stamp {
    Stamp { generation: 3, now: at("2026-01-01T00:10:00Z") }
}

pub(crate) fn at(text: &str) -> Time {
    serde_json::from_value(json!(text)).unwrap()
}

/// A plan, sound by every invariant.
#[track_caller]
pub(crate) fn plan(cr: &LlmDeployment, seen: &Observed) -> PlanOutcome {
    let outcome = candela_planner::plan(cr, seen, &settings());
    assert_eq!(check::check_plan(&outcome.plan, UID), Vec::<String>::new());
    outcome
}

/// The object of this kind in the plan for this spec.
#[track_caller]
pub(crate) fn planned(spec: &str, kind: OwnedKind) -> Option<Value> {
    let cr = llm(spec);
    let outcome = plan(&cr, &known(&cr));
    let resolved = outcome.resolved.as_ref().map(|_| ());
    assert_eq!(resolved, Ok(()), "{spec}");
    outcome.plan.children.into_iter().find(|child| child.kind == kind).map(|child| child.object)
}

/// A world in which whatever the spec refers to exists, and nothing else.
pub(crate) fn known(cr: &LlmDeployment) -> Observed {
    let mut seen = Observed::default();
    let models = || std::iter::once(&cr.spec.model).chain(&cr.spec.additional_models);
    for rest in models().filter_map(|model| model.uri.as_ref()?.strip_prefix("pvc://")) {
        seen.claims.insert(rest.split('/').next().unwrap().to_owned());
    }
    for reference in models().filter_map(|model| model.credentials_ref.as_ref()) {
        let facts = candela_planner::SecretFacts {
            labels: BTreeMap::from([("candela.dev/usable".to_owned(), "true".to_owned())]),
            annotations: BTreeMap::from([(
                "candela.dev/hosts".to_owned(),
                "huggingface.co, models.example.org".to_owned(),
            )]),
        };
        seen.secrets.insert(reference.name.clone(), facts);
    }
    seen
}

/// What the cluster made of a plan.
pub(crate) struct World {
    pub(crate) cr: LlmDeployment,
    pub(crate) seen: Observed,
}

impl World {
    /// The plan was applied, and of the one replica there is this pod, which is not ready.
    pub(crate) fn starting(spec: &str, pod: Value) -> Self {
        Self::new(spec).applied(1, 1, 0).replica_set("aaa", 1, 1, 0).pod("chat-aaa-1", "aaa", pod)
    }

    /// Nothing has happened yet.
    pub(crate) fn new(spec: &str) -> Self {
        let cr = llm(spec);
        let seen = known(&cr);
        Self { cr, seen }
    }

    /// The plan was applied; the Deployment's controller reports these replicas.
    pub(crate) fn applied(mut self, replicas: i32, updated: i32, ready: i32) -> Self {
        let outcome = plan(&self.cr, &self.seen);
        for child in outcome.plan.children {
            let mut live = child.object;
            live["metadata"]["uid"] = json!(DEPLOYMENT_UID);
            live["metadata"]["generation"] = json!(7);
            if child.kind == OwnedKind::Deployment {
                live["status"] = json!({
                    "observedGeneration": 7, "replicas": replicas, "updatedReplicas": updated,
                    "readyReplicas": ready, "availableReplicas": ready,
                });
            }
            self.seen.children.insert(child.kind, vec![live]);
        }
        self
    }

    /// The Deployment carries this condition.
    pub(crate) fn deployment_condition(mut self, condition: Value) -> Self {
        self.deployment()["status"]["conditions"] = json!([condition]);
        self
    }

    pub(crate) fn deployment(&mut self) -> &mut Value {
        &mut self.seen.children.get_mut(&OwnedKind::Deployment).unwrap()[0]
    }

    /// Then the spec was edited: the children are those of before.
    pub(crate) fn edited(mut self, spec: &str) -> Self {
        let edited = llm(spec);
        self.cr.spec = edited.spec;
        self
    }

    /// A ReplicaSet of the Deployment.
    pub(crate) fn replica_set(mut self, hash: &str, revision: u32, replicas: i32, ready: i32) -> Self {
        let set = json!({
            "metadata": {
                "name": format!("chat-{hash}"), "namespace": "team",
                "labels": {"candela.dev/llmdeployment": "chat", "pod-template-hash": hash},
                "annotations": {"deployment.kubernetes.io/revision": revision.to_string()},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat",
                    "uid": DEPLOYMENT_UID, "controller": true}],
            },
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"pod-template-hash": hash}},
                "template": {"spec": {"containers": [{"name": "server", "image": "candela.local/server:dev"}]}},
            },
            "status": {"replicas": replicas, "readyReplicas": ready},
        });
        self.seen.replica_sets.push(serde_json::from_value(set).unwrap());
        self
    }

    /// A pod of the ReplicaSet `hash`, with this status.
    pub(crate) fn pod(mut self, name: &str, hash: &str, status: Value) -> Self {
        let init: Vec<Value> = status["initContainerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| json!({"name": container["name"]}))
            .collect();
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "team", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"candela.dev/llmdeployment": "chat", "pod-template-hash": hash},
            },
            "spec": {"containers": [{"name": "server"}], "initContainers": init},
            "status": status,
        });
        self.seen.pods.push(serde_json::from_value(pod).unwrap());
        self
    }

    /// A pod of the ReplicaSet `hash` that was told to stop, and has not ended.
    pub(crate) fn ending(mut self, name: &str, hash: &str) -> Self {
        self = self.pod(name, hash, ready_pod());
        let pod = self.seen.pods.last_mut().unwrap();
        pod.metadata.deletion_timestamp = Some(stamp().now);
        pod.spec.as_mut().unwrap().node_name = Some("gpu-1".to_owned());
        self
    }

    /// What the server in this pod reports.
    pub(crate) fn process(mut self, pod: &str) -> Self {
        let status = ProcessStatus {
            api_version: STATUS_VERSION.to_owned(),
            component: "server".to_owned(),
            build: "0.1.0".to_owned(),
            state: State::Ready,
            models: vec![ModelStatus {
                served_name: "chat".to_owned(),
                digest: format!("sha256:{}", "ab".repeat(32)),
                architecture: "LlamaForCausalLM".to_owned(),
                parameters: 3_000_000,
                size_bytes: 6_000_000,
                estimated_memory_bytes: 20_000_000,
                quantization: "F16".to_owned(),
                context_length: 1024,
                tasks: vec!["Generate".to_owned()],
                revision: None,
            }],
            registry: Vec::new(),
            startup: Startup {
                fetch_seconds: None,
                load_seconds: Some(0.25),
                warmup_seconds: Some(0.05),
                first_token_seconds: Some(0.31),
            },
            progress: None,
            requests: Requests::default(),
        };
        self.seen.processes.insert(pod.to_owned(), status);
        self
    }

    /// A node with GPUs of this product.
    pub(crate) fn node(mut self, name: &str, product: &str, gpus: i64) -> Self {
        self.seen.nodes.push(NodeFacts {
            name: name.to_owned(),
            labels: BTreeMap::from([("nvidia.com/gpu.product".to_owned(), product.to_owned())]),
            allocatable: BTreeMap::from([("nvidia.com/gpu".to_owned(), gpus)]),
            unschedulable: false,
        });
        self
    }

    pub(crate) fn status(&self) -> LlmDeploymentStatus {
        let outcome = plan(&self.cr, &self.seen);
        candela_planner::status(&self.cr, &outcome, &self.seen, &settings(), stamp())
    }

    /// The conditions on one line, those that are there only while true included.
    pub(crate) fn summary(&self) -> String {
        let conditions = self.status().conditions;
        let words: Vec<String> = conditions
            .iter()
            .map(|found| format!("{}={}/{}", found.type_, found.status.as_str(), found.reason))
            .collect();
        words.join("\n")
    }
}

/// One replica of the smallest resource, ready.
pub(crate) fn serving() -> World {
    World::new("{}").applied(1, 1, 1).replica_set("aaa", 1, 1, 1).pod("chat-aaa-1", "aaa", ready_pod())
}

/// The conditions of the world, one on each line.
#[track_caller]
pub(crate) fn check(world: &World, expected: Expect) {
    expected.assert_eq(&world.summary());
}

pub(crate) fn ready_pod() -> Value {
    json!({
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z"},
        ],
        "containerStatuses": [running(true)],
    })
}

pub(crate) fn running(ready: bool) -> Value {
    json!({
        "name": "server", "image": "candela.local/server:dev", "imageID": "", "ready": ready, "started": ready,
        "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:03Z"}},
    })
}

/// A pod that has a node and one container in this state.
pub(crate) fn pod_with(container: Value) -> Value {
    let mut whole = json!({"name": "server", "image": "candela.local/server:dev", "imageID": "", "ready": false,
        "started": false, "restartCount": 0});
    for (key, value) in container.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:01Z"},
        ],
        "containerStatuses": [whole],
    })
}

pub(crate) fn unscheduled(message: &str) -> Value {
    json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:01Z"}],
    })
}
