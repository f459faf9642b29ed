//! The operator dies before and after each of its writes to the real API server: create, update, delete.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use candela_operator::config::OperatorConfig;
use candela_operator::{RunOptions, run};
use candela_tests::fake::{Fault, Rule};
use candela_tests::proxy::{OPERATOR, Proxy};
use futures::StreamExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout};

const CONFIG: &str = "
images: [{engine: Candle, device: Cpu, image: 'candela.local/server:dev'}]
networkPolicyEnforced: No
lease: {duration: 2s, retryPeriod: 300ms, margin: 500ms}
";
const DEADLINE: Duration = Duration::from_secs(60);

/// Steps of a user; the last one decides what the end looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Workload {
    Create,
    Update,
    Delete,
}

fn resource(kind: &str) -> ApiResource {
    let gvk = match kind {
        "LlmDeployment" => GroupVersionKind::gvk("candela.dev", "v1alpha1", kind),
        "Deployment" => GroupVersionKind::gvk("apps", "v1", kind),
        "PodDisruptionBudget" => GroupVersionKind::gvk("policy", "v1", kind),
        "NetworkPolicy" => GroupVersionKind::gvk("networking.k8s.io", "v1", kind),
        _ => GroupVersionKind::gvk("", "v1", kind),
    };
    let mut out = ApiResource::from_gvk(&gvk);
    if kind == "NetworkPolicy" {
        out.plural = "networkpolicies".to_owned();
    }
    out
}

struct Plan {
    client: kube::Client,
    proxy: Proxy,
    namespace: String,
}

impl Plan {
    async fn start(namespace: String, fault: Option<Rule>) -> Result<Self> {
        let client = crate::client().await;
        let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &resource("Namespace"));
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        let proxy = Proxy::start(client.clone()).await?;
        if let Some(rule) = fault {
            proxy.add_fault(rule);
        }
        Ok(Self { client, proxy, namespace })
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(kind))
    }

    /// Operators one after the other, as a kubelet starts them.
    async fn operate(&self) -> Result<()> {
        for generation in 1.. {
            let client = kube::Client::try_from(self.proxy.config()?)?;
            let config = OperatorConfig::parse(CONFIG, "crash test")?;
            let mut options = RunOptions::new(client, config, format!("op-{generation}"));
            options.operator_namespace.clone_from(&self.namespace);
            options.watch_namespace = Some(self.namespace.clone());
            let operator = tokio::spawn(async move { run(options).await.map_err(|error| error.to_string()) });
            let abort = operator.abort_handle();
            tokio::select! {
                () = self.proxy.killed() => abort.abort(),
                ended = operator => eprintln!("{}: operator {generation} ended: {ended:?}", self.namespace),
            }
            self.proxy.revive();
        }
        Ok(())
    }

    async fn write(&self, workload: Workload) -> Result<()> {
        let llms = self.api("LlmDeployment");
        let spec = json!({"model": {"uri": "builtin://demo"}, "replicas": 2});
        let body = json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "metadata": {"name": "a"}, "spec": spec});
        llms.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        if workload == Workload::Create {
            return self.settle().await;
        }
        self.settle().await?;
        if workload == Workload::Update {
            let patch = json!({"spec": {"replicas": 1, "model": {"contextLength": 512}}});
            llms.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        } else {
            llms.delete("a", &DeleteParams::default()).await?;
        }
        self.settle().await
    }

    /// Until the status speaks of the spec and nobody has written for two seconds.
    async fn settle(&self) -> Result<()> {
        let llms = self.api("LlmDeployment");
        let deadline = Instant::now() + DEADLINE;
        let mut ticks = interval(Duration::from_millis(200));
        let (mut seen, mut since) = (usize::MAX, Instant::now());
        loop {
            ticks.tick().await;
            let current = match llms.get_opt("a").await? {
                Some(llm) => llm.data["status"]["observedGeneration"] == json!(llm.metadata.generation),
                None => self.children().await?.is_empty(),
            };
            let n_writes = self.proxy.writes().len();
            if n_writes != seen || !current {
                (seen, since) = (n_writes, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(3) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not settled in {DEADLINE:?}: {:?}", self.proxy.writes());
            }
        }
    }

    /// The children, without what differs between two runs.
    async fn children(&self) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        let mine = ListParams::default().labels("app.kubernetes.io/managed-by=candela");
        for kind in
            ["ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"]
        {
            for child in self.api(kind).list(&mine).await?.items {
                let mut spec = child.data.clone();
                if let Some(map) = spec.as_object_mut() {
                    map.remove("status");
                }
                for field in ["clusterIP", "clusterIPs"] {
                    if let Some(map) = spec.get_mut("spec").and_then(Value::as_object_mut) {
                        map.remove(field);
                    }
                }
                let owners = child.metadata.owner_references.as_ref().map_or(0, Vec::len);
                let seen = json!({"kind": kind, "name": child.metadata.name, "labels": child.metadata.labels,
                    "owners": owners, "content": spec});
                let text = seen.to_string().replace(&self.namespace, "NAMESPACE");
                out.push(serde_json::from_str(&text)?);
            }
        }
        Ok(out)
    }

    async fn run(&self, workload: Workload) -> Result<Vec<Value>> {
        let user = async {
            self.write(workload).await?;
            self.children().await
        };
        tokio::select! {
            end = user => end,
            stopped = self.operate() => { stopped?; bail!("no operator is left") }
        }
    }
}

async fn plan(workload: Workload, at: Option<(u64, Fault)>) -> Result<(Vec<Value>, u64)> {
    let word = format!("{workload:?}").to_lowercase();
    let (namespace, rule) = match at {
        None => (format!("crash-{word}"), None),
        Some((nth, fault)) => {
            let when = format!("{fault:?}").to_lowercase();
            (format!("crash-{word}-{nth}-{when}"), Some(Rule::at_write(OPERATOR, nth, fault)))
        }
    };
    let plan = Plan::start(namespace.clone(), rule).await?;
    let end = timeout(DEADLINE * 3, plan.run(workload)).await.context("out of time")?.context(namespace)?;
    Ok((end, plan.proxy.writes().len() as u64))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_to_a_real_api_server_ends_in_the_same_state() {
    let _turn = crate::TURN.lock().await;
    let mut plans = Vec::new();
    for workload in [Workload::Create, Workload::Update, Workload::Delete] {
        let (goal, n_writes) = plan(workload, None).await.unwrap();
        assert_eq!(goal.is_empty(), workload == Workload::Delete);
        for nth in 1..=n_writes {
            plans.extend(
                [Fault::KillBefore, Fault::KillAfter].map(|fault| (workload, nth, fault, goal.clone())),
            );
        }
    }
    let n_plans = plans.len();
    // The slice of `make test`: each third.
    let all = std::env::var_os("CANDELA_PROVE").is_some();
    let chosen: Vec<_> =
        plans.into_iter().enumerate().filter(|(at, _)| all || at % 3 == 0).map(|(_, p)| p).collect();
    let n_chosen = chosen.len();
    let ends: Vec<_> = futures::stream::iter(chosen)
        .map(|(workload, nth, fault, goal)| async move {
            let (end, _) = plan(workload, Some((nth, fault))).await.unwrap();
            (format!("{workload:?}, {fault:?} at write {nth}"), end, goal)
        })
        .buffer_unordered(6)
        .collect()
        .await;
    for (what, end, goal) in &ends {
        assert_eq!(end, goal, "{what}");
    }
    println!("{n_chosen} of {n_plans} crashes on the real API server, all ended in the reference state");
}
