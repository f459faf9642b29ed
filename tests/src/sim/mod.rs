//! The real operator on the in-memory API server, in virtual time: everything that happens in an hour takes
//! milliseconds, and the same plan gives the same end.

pub mod oracle;
pub mod workloads;

use std::time::Duration;

use anyhow::{Result, bail};
use candela_operator::config::OperatorConfig;
use candela_operator::planted::Planted;
use candela_operator::{PlantedBug, RunOptions, run};
use candela_wire::internal::{ModelStatus, ProcessStatus, Requests, STATUS_VERSION, Startup, State};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::fake::actors::Controllers;
use crate::fake::{FakeCluster, Record};

/// Path of the LlmDeployments in the namespace of the workloads.
pub const LLMS: &str = "/apis/candela.dev/v1alpha1/namespaces/default/llmdeployments";

const CONFIG: &str = "
images:
- {engine: Candle, device: Cpu, image: 'candela.local/server:dev'}
- {engine: Candle, device: Nvidia, image: 'candela.local/server:dev', args: ['--device', 'cpu']}
networkPolicyEnforced: No
lease: {duration: 15s, retryPeriod: 2s, margin: 3s}
";

/// Length of the lease in the simulation.
pub const LEASE: Duration = Duration::from_secs(15);

/// A cluster with its controllers, and the operators that were started on it.
pub struct World {
    pub cluster: FakeCluster,
    pub controllers: Controllers,
    background: JoinHandle<()>,
    operators: Vec<Operator>,
}

/// One operator process.
pub struct Operator {
    pub name: String,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Operator {
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.background.abort();
        self.operators.iter().for_each(|operator| operator.task.abort());
    }
}

impl World {
    pub fn new() -> Self {
        let cluster = FakeCluster::candela();
        cluster.must("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "candela-system"}}));
        let node = json!({"metadata": {"name": "node-1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
            "status": {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": "110", "nvidia.com/gpu": "4"},
                "conditions": [{"type": "Ready", "status": "True"}]}});
        cluster.must("POST", "/api/v1/nodes", &node);
        let controllers = Controllers::new(&cluster);
        let background = tokio::spawn(controllers.clone().run());
        Self { cluster, controllers, background, operators: Vec::new() }
    }

    /// Starts the next operator: `op-1`, `op-2`, …
    pub fn start(&mut self, bug: Option<PlantedBug>) -> &Operator {
        let name = format!("op-{}", self.operators.len() + 1);
        let config = OperatorConfig::parse(CONFIG, "simulation").expect("the configuration above is valid");
        let mut options = RunOptions::new(self.cluster.client(&name), config, name.clone());
        options.planted = bug.map_or_else(Planted::default, Planted::with);
        options.puller = Some(std::sync::Arc::new(|_| Box::pin(async { Ok(healthy()) })));
        let shutdown = options.shutdown.clone();
        let task = tokio::spawn(async move {
            // How it ends shows in what it wrote.
            let _ = run(options).await;
        });
        self.operators.push(Operator { name, task, shutdown });
        self.operators.last().expect("one was pushed")
    }

    pub fn operator(&self, at: usize) -> &Operator {
        &self.operators[at]
    }

    /// The process is gone from one instruction to the next.
    pub fn kill(&mut self, at: usize) {
        let operator = &self.operators[at];
        operator.task.abort();
        self.cluster.disturb(|faults| faults.link(&operator.name).dead = true);
    }

    /// Ends an operator as SIGTERM does.
    pub async fn stop(&mut self, at: usize) {
        let operator = &mut self.operators[at];
        operator.shutdown.cancel();
        let _ = (&mut operator.task).await;
    }

    /// Waits until nobody has written anything for `quiet`. An operator that a fault has killed is followed by a new
    /// one, as the kubelet would.
    pub async fn settle(&mut self, quiet: Duration) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(1800);
        let mut since = Instant::now();
        let mut seen = self.mark();
        while since.elapsed() < quiet {
            self.replace_the_dead();
            // Virtual time: passes when every task waits.
            sleep(Duration::from_secs(2)).await;
            let now = self.mark();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            if Instant::now() > deadline {
                let last: Vec<_> = self.cluster.log().iter().rev().take(12).map(describe).collect();
                bail!("still writing after 30 minutes:\n{}", last.join("\n"));
            }
        }
        Ok(())
    }

    fn replace_the_dead(&mut self) {
        let Some(at) = self.operators.len().checked_sub(1) else { return };
        let name = self.operators[at].name.clone();
        let dead = self.cluster.disturb(|faults| faults.link(&name).dead);
        if dead || self.operators[at].has_ended() {
            self.kill(at);
            self.start(None);
        }
    }

    /// Number of stored changes that are not leases or events.
    fn mark(&self) -> usize {
        self.cluster.count(|record| record.committed && record.is_workload_write())
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// One line of a log.
pub fn describe(record: &Record) -> String {
    let sub = record.subresource.as_deref().map(|s| format!("/{s}")).unwrap_or_default();
    let stored = if record.committed { " stored" } else { "" };
    format!(
        "{} {} {}{sub} {}/{} -> {}{stored}",
        record.client, record.verb, record.kind, record.namespace, record.name, record.code
    )
}

/// What every server says of itself here.
fn healthy() -> ProcessStatus {
    ProcessStatus {
        api_version: STATUS_VERSION.to_owned(),
        component: "server".to_owned(),
        build: "simulated".to_owned(),
        state: State::Ready,
        models: vec![ModelStatus {
            served_name: "a".to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)),
            architecture: "LlamaForCausalLM".to_owned(),
            parameters: 1_000_000,
            size_bytes: 2_000_000,
            estimated_memory_bytes: 4_000_000,
            quantization: "F16".to_owned(),
            context_length: 1024,
            tasks: vec!["Generate".to_owned()],
            revision: None,
        }],
        registry: Vec::new(),
        startup: Startup { load_seconds: Some(0.5), ..Startup::default() },
        progress: None,
        requests: Requests::default(),
    }
}

/// A small resource of this name.
pub fn llm(name: &str, replicas: u32) -> Value {
    json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "metadata": {"name": name},
        "spec": {"model": {"uri": "builtin://demo"}, "replicas": replicas,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}}})
}

/// Name of the ConfigMap with the keys for the resource `a`.
pub const TRUST: &str = "a-server-trust";

/// Name of the ConfigMap that the resource `a` has now: it ends in a hash.
pub fn config_of(cluster: &FakeCluster) -> String {
    let named = |object: &Value| object["metadata"]["name"].as_str().map(str::to_owned);
    let mut names: Vec<_> = cluster.all("ConfigMap").iter().filter_map(named).collect();
    names.retain(|name| name.starts_with("a-") && name != TRUST);
    assert_eq!(names.len(), 1, "one configuration when settled: {names:?}");
    names.remove(0)
}
