//! The operator as it ships (the binary that `xtask image` staged), as a process of its own on the real API server,
//! behind a proxy that can kill it. It looks after one namespace and is started again whenever it ends.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use candela_tests::proxy::Proxy;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

const CONFIG: &str = "
images: [{engine: Candle, device: Cpu, image: 'candela.local/server:dev'}]
networkPolicyEnforced: No
lease: {duration: 3s, retryPeriod: 300ms, margin: 500ms}
";
const TICK: Duration = Duration::from_millis(100);
/// Nobody has written for so long: the operator works within milliseconds of an event, and is the leader meanwhile.
const QUIET: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(90);

/// Kinds of the children, and what else a test reads.
pub(crate) fn resource(kind: &str) -> ApiResource {
    let gvk = match kind {
        "LlmDeployment" => GroupVersionKind::gvk("candela.dev", "v1alpha1", kind),
        "Deployment" => GroupVersionKind::gvk("apps", "v1", kind),
        "PodDisruptionBudget" => GroupVersionKind::gvk("policy", "v1", kind),
        "NetworkPolicy" => GroupVersionKind::gvk("networking.k8s.io", "v1", kind),
        "Lease" => GroupVersionKind::gvk("coordination.k8s.io", "v1", kind),
        _ => GroupVersionKind::gvk("", "v1", kind),
    };
    let mut out = ApiResource::from_gvk(&gvk);
    if kind == "NetworkPolicy" {
        out.plural = "networkpolicies".to_owned();
    }
    out
}

pub(crate) struct Installation {
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
    pub(crate) proxy: Proxy,
    folder: tempfile::TempDir,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Name of the process that runs now.
    identity: String,
    ends: Vec<ExitStatus>,
}

/// A process that ends with its handle.
#[derive(Clone)]
struct Process(Arc<Mutex<Child>>);

impl Process {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().expect("no holder panics")
    }

    /// SIGKILL.
    fn kill(&self) {
        // An error says that it has ended.
        let _ = self.child().kill();
    }

    async fn ended(&self) -> Result<ExitStatus> {
        let mut ticks = interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            if let Some(status) = self.child().try_wait()? {
                return Ok(status);
            }
        }
    }
}

/// Kills a process that is no longer waited for.
struct Reaper(Process);

impl Drop for Reaper {
    fn drop(&mut self) {
        self.0.kill();
        let _ = self.0.child().wait();
    }
}

fn program() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("target/images/stage/operator/rootfs/usr/bin/candela-operator");
    ensure!(path.is_file(), "the operator of the image is missing: run `make images`");
    // Cargo does not know of it, and what an old one does proves nothing of the code that is there.
    let built = path.metadata()?.modified()?;
    for sources in ["operator", "crds", "wire", "Cargo.lock"] {
        let newest = newest(&root.join(sources))?;
        ensure!(newest <= built, "the operator of the image is older than `{sources}`: run `make images`");
    }
    Ok(path)
}

/// When the newest file at or below `path` was written.
fn newest(path: &Path) -> Result<SystemTime> {
    let metadata = path.metadata()?;
    if !metadata.is_dir() {
        return Ok(metadata.modified()?);
    }
    let mut out = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let tests = path.file_name().is_some_and(|name| name == "tests" || name == "tests.rs");
        if !tests {
            out = out.max(newest(&path)?);
        }
    }
    Ok(out)
}

impl Installation {
    pub(crate) async fn new(namespace: String) -> Result<Self> {
        let client = crate::client().await;
        let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &resource("Namespace"));
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
        let proxy = Proxy::start(client.clone()).await?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("kubeconfig"), proxy.kubeconfig())?;
        fs::write(folder.path().join("operator.yaml"), CONFIG)?;
        Ok(Self { client, namespace, proxy, folder, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub(crate) fn api(&self, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(kind))
    }

    /// Runs what a user does while operators run, one after the other, as a kubelet starts them.
    pub(crate) async fn run<T>(&self, user: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            end = user => end.with_context(|| format!("{}; the operator said:\n{}", self.namespace, self.log())),
            stopped = self.operate() => { stopped?; bail!("no operator is left") }
        }
    }

    async fn operate(&self) -> Result<()> {
        for n in 1.. {
            let identity = format!("op-{n}");
            let process = self.spawn(&identity)?;
            let _reaper = Reaper(process.clone());
            self.state().identity = identity;
            let victim = process.clone();
            self.proxy.set_victim(move || victim.kill());
            let status = process.ended().await?;
            self.state().ends.push(status);
            self.proxy.revive();
        }
        Ok(())
    }

    fn spawn(&self, identity: &str) -> Result<Process> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let child = Command::new(program()?)
            .args(["run", "--log-format=text", "--internal-listen=127.0.0.1:0", "--identity", identity])
            .args(["--namespace", &self.namespace, "--operator-namespace", &self.namespace])
            .arg("--kubeconfig")
            .arg(self.folder.path().join("kubeconfig"))
            .arg("--config")
            .arg(self.folder.path().join("operator.yaml"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("failed to start the operator")?;
        Ok(Process(Arc::new(Mutex::new(child))))
    }

    /// How many processes a SIGKILL has ended, and how many ended otherwise.
    pub(crate) fn ends(&self) -> (usize, usize) {
        let state = self.state();
        let killed = state.ends.iter().filter(|status| status.signal() == Some(9)).count();
        (killed, state.ends.len() - killed)
    }

    /// The last lines of all operators of this installation.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].iter().fold(String::new(), |mut out, line| {
            let _ = writeln!(out, "  {line}");
            out
        })
    }

    /// Whether the process that runs now is the leader.
    async fn leads(&self) -> Result<bool> {
        let lease = self.api("Lease").get_opt("candela-operator").await?;
        let holder = lease.map(|lease| lease.data["spec"]["holderIdentity"].clone());
        Ok(holder == Some(json!(self.state().identity)))
    }

    /// Until the leader is alive, the status of `name` speaks of its spec (or all of it is gone), and nobody has
    /// written for a while.
    pub(crate) async fn settle(&self, name: &str) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        let mut ticks = interval(TICK);
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            ticks.tick().await;
            let current = match self.api("LlmDeployment").get_opt(name).await? {
                Some(llm) => llm.data["status"]["observedGeneration"] == json!(llm.metadata.generation),
                None => self.children().await?.is_empty(),
            };
            let mark = (self.proxy.writes().len(), self.state().identity.clone());
            if !current || !self.leads().await? || seen.as_ref() != Some(&mark) {
                (seen, since) = (Some(mark), Instant::now());
            }
            if since.elapsed() > QUIET {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("not settled in {DEADLINE:?}: {:?}", self.proxy.writes());
            }
        }
    }

    /// Until `reached` holds for the resource.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        reached: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let until = Instant::now() + DEADLINE;
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            let object = serde_json::to_value(self.api("LlmDeployment").get(name).await?)?;
            if reached(&object) {
                return Ok(object);
            }
            if Instant::now() > until {
                bail!("not {what} in {DEADLINE:?}: {:#}", object["status"]);
            }
        }
    }

    /// The children, without what differs between two runs.
    pub(crate) async fn children(&self) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        let mine = kube::api::ListParams::default().labels("app.kubernetes.io/managed-by=candela");
        for kind in
            ["ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"]
        {
            for child in self.api(kind).list(&mine).await?.items {
                let mut content = child.data.clone();
                if let Some(map) = content.as_object_mut() {
                    map.remove("status");
                }
                for field in ["clusterIP", "clusterIPs"] {
                    if let Some(map) = content.get_mut("spec").and_then(Value::as_object_mut) {
                        map.remove(field);
                    }
                }
                let owners: Vec<_> =
                    child.metadata.owner_references.iter().flatten().map(|o| (&o.kind, &o.name)).collect();
                out.push(json!({"kind": kind, "name": child.metadata.name, "labels": child.metadata.labels,
                    "owners": owners, "content": content}));
            }
        }
        Ok(out)
    }

    /// Everything that a user sees of a settled installation: the children, and what the status says of `name`.
    pub(crate) async fn end_state(&self, name: &str) -> Result<Value> {
        let mut seen = json!({"children": self.children().await?});
        if let Some(llm) = self.api("LlmDeployment").get_opt(name).await? {
            let status = &llm.data["status"];
            let conditions = status["conditions"].as_array();
            let conditions: Vec<_> =
                conditions.into_iter().flatten().map(|c| [&c["type"], &c["status"], &c["reason"]]).collect();
            seen["resource"] = json!({"spec": llm.data["spec"], "conditions": conditions,
                "url": status["url"], "replicas": status["replicas"], "readyReplicas": status["readyReplicas"],
                "current": status["observedGeneration"] == json!(llm.metadata.generation)});
        }
        // The name of the namespace is in addresses and in owned policies.
        Ok(serde_json::from_str(&seen.to_string().replace(&self.namespace, "NAMESPACE"))?)
    }
}
