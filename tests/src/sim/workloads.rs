//! What users do, step by step; each step waits until the cluster has settled.

use serde_json::{Value, json};

use super::{LLMS, llm};
use crate::fake::FakeCluster;

type Step = fn(&FakeCluster);

/// A named series of steps.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub steps: &'static [Step],
}

fn create(cluster: &FakeCluster) {
    cluster.must("POST", LLMS, &llm("a", 2));
}

fn change(cluster: &FakeCluster, spec: &Value) {
    cluster.must("PATCH", &format!("{LLMS}/a"), &json!({"spec": spec}));
}

fn scale_up(cluster: &FakeCluster) {
    change(cluster, &json!({"replicas": 3}));
}

fn scale_to_one(cluster: &FakeCluster) {
    change(cluster, &json!({"replicas": 1}));
}

fn change_model(cluster: &FakeCluster) {
    change(cluster, &json!({"model": {"servedName": "renamed", "contextLength": 512}}));
}

fn recreate(cluster: &FakeCluster) {
    change(cluster, &json!({"rollout": {"strategy": "Recreate"}}));
}

fn without_policy(cluster: &FakeCluster) {
    change(cluster, &json!({"access": {"networkPolicy": "None"}}));
}

fn suspend(cluster: &FakeCluster) {
    change(cluster, &json!({"suspend": true}));
}

fn resume(cluster: &FakeCluster) {
    change(cluster, &json!({"suspend": null}));
}

fn delete(cluster: &FakeCluster) {
    cluster.must("DELETE", &format!("{LLMS}/a"), &Value::Null);
}

/// Each with every fault at every write.
pub const ALL: [Workload; 6] = [
    Workload { name: "create", steps: &[create] },
    Workload { name: "scale", steps: &[create, scale_up, scale_to_one] },
    Workload { name: "model change", steps: &[create, change_model] },
    Workload { name: "options on and off", steps: &[create, recreate, without_policy] },
    Workload { name: "suspend and resume", steps: &[create, suspend, resume] },
    Workload { name: "delete", steps: &[create, delete] },
];
