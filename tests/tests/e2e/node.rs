//! The cluster with Candela in it, and a story's part of it: a namespace and watches of what happens there.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candela_tests::cluster::{Cluster, Options};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::watch::{Seen, Watch};

pub(crate) const PRODUCT: &str = "NVIDIA-H100-80GB-HBM3";
pub(crate) const GPUS: u32 = 4;
pub(crate) const SYSTEM: &str = "candela-system";
/// Longest that a pod of a sample may take to serve, on a machine that does other things as well.
pub(crate) const READY: Duration = Duration::from_secs(120);

/// Some stories want the node or the operator for themselves: they cordon it, kill it, or count what it does.
static TURN: RwLock<()> = RwLock::const_new(());
/// The cluster goes when the last story that holds it ends; stories that wait for their turn hold it as well.
static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// The long variants were asked for.
pub(crate) fn prove() -> bool {
    std::env::var_os("CANDELA_PROVE").is_some()
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn sample(name: &str) -> String {
    repository().join("manifests/samples").join(name).display().to_string()
}

fn cluster() -> Result<Arc<Cluster>> {
    let mut shared = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return Ok(cluster);
    }
    let images = repository().join("target/images");
    for image in ["operator.tar", "server.tar"] {
        let path = images.join(image);
        ensure!(path.is_file(), "{} is missing: run `make build`", path.display());
    }
    let cluster = Cluster::up(&Options {
        audit: true,
        gpus: GPUS,
        gpu_product: Some(PRODUCT.into()),
        ..Options::named("t-e2e")
    })?;
    for image in ["operator.tar", "server.tar"] {
        cluster.load_image(&images.join(image))?;
    }
    let overlay = repository().join("manifests/overlays/test").display().to_string();
    // A custom resource right after its definition may be refused while the API server still learns of it.
    if cluster.kubectl(["apply", "-k", &overlay]).is_err() {
        cluster.kubectl(["apply", "-k", &overlay])?;
    }
    let rollout = ["rollout", "status", "deployment/candela-operator", "--timeout=120s"];
    cluster.kubectl([&["--namespace", SYSTEM], &rollout[..]].concat())?;
    let cluster = Arc::new(cluster);
    *shared = Arc::downgrade(&cluster);
    Ok(cluster)
}

pub(crate) fn kind(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

pub(crate) fn models() -> ApiResource {
    kind("candela.dev/v1alpha1", "LlmDeployment", "llmdeployments")
}

pub(crate) fn pods() -> ApiResource {
    kind("v1", "Pod", "pods")
}

/// The condition of that type, if it speaks of the present generation; else null.
pub(crate) fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    // What an older generation earned says nothing of this one.
    let generation = &object["metadata"]["generation"];
    let all = object["status"]["conditions"].as_array();
    all.and_then(|all| {
        all.iter().find(|found| found["type"] == type_ && found["observedGeneration"] == *generation)
    })
    .unwrap_or(&Value::Null)
}

pub(crate) fn is(object: &Value, type_: &str, status: &str, reason: &str) -> bool {
    let found = condition(object, type_);
    found["status"] == status && found["reason"] == reason
}

/// Ready, with every replica, and nothing left to do.
pub(crate) fn settled(object: &Value) -> bool {
    let status = &object["status"];
    condition(object, "Ready")["status"] == "True"
        && condition(object, "RolloutComplete")["status"] == "True"
        && condition(object, "Reconciling").is_null()
        && condition(object, "Stalled").is_null()
        && status["readyReplicas"] == object["spec"]["replicas"]
        && status["replicas"] == object["spec"]["replicas"]
}

/// One test's part of the cluster. Its namespace goes with it.
pub(crate) struct Story {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) models: Watch,
    pub(crate) pods: Watch,
    started: Instant,
    _turn: Turn,
}

#[expect(dead_code, reason = "held until the story ends")]
enum Turn {
    Alone(RwLockWriteGuard<'static, ()>),
    BesideOthers(RwLockReadGuard<'static, ()>),
}

impl Story {
    /// Waits until no other story goes on, and makes the namespace.
    pub(crate) async fn alone(namespace: &str) -> Result<Self> {
        let cluster = tokio::task::spawn_blocking(cluster).await??;
        Self::begin(cluster, Turn::Alone(TURN.write().await), namespace).await
    }

    /// For a story that bears others in other namespaces.
    pub(crate) async fn beside_others(namespace: &str) -> Result<Self> {
        let cluster = tokio::task::spawn_blocking(cluster).await??;
        Self::begin(cluster, Turn::BesideOthers(TURN.read().await), namespace).await
    }

    async fn begin(cluster: Arc<Cluster>, turn: Turn, namespace: &str) -> Result<Self> {
        // An `Err` says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        create_namespace(&client, namespace).await?;
        Ok(Self {
            models: Watch::open(&client, &models(), namespace),
            pods: Watch::open(&client, &pods(), namespace),
            cluster,
            client,
            namespace: namespace.to_owned(),
            started: Instant::now(),
            _turn: turn,
        })
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_in(&self.namespace, arguments).await
    }

    pub(crate) async fn kubectl_in(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        let all: Vec<String> =
            ["--namespace", namespace].iter().chain(arguments).map(|&word| word.to_owned()).collect();
        let cluster = Arc::clone(&self.cluster);
        tokio::task::spawn_blocking(move || cluster.kubectl(all)).await?
    }

    /// `kubectl apply` of one object.
    pub(crate) async fn apply(&self, object: &Value) -> Result<()> {
        let file = self.write(object)?;
        self.kubectl(&["apply", "-f", &file.path().display().to_string()]).await.map(drop)
    }

    /// `kubectl diff` of one object: ends well only where nothing would change.
    pub(crate) async fn diff(&self, object: &Value) -> Result<()> {
        let file = self.write(object)?;
        self.kubectl(&["diff", "-f", &file.path().display().to_string()]).await.map(drop)
    }

    fn write(&self, object: &Value) -> Result<tempfile::NamedTempFile> {
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), object.to_string())?;
        Ok(file)
    }

    pub(crate) async fn patch(&self, what: &str, patch: &Value) -> Result<()> {
        self.kubectl(&["patch", what, "--type=merge", "-p", &patch.to_string()]).await.map(drop)
    }

    pub(crate) fn watch(&self, api_version: &str, name: &str, plural: &str) -> Watch {
        Watch::open(&self.client, &kind(api_version, name, plural), &self.namespace)
    }

    /// The object; null while there is none.
    pub(crate) async fn get(&self, kind: &ApiResource, name: &str) -> Result<Value> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, kind);
        Ok(serde_json::to_value(api.get_opt(name).await?)?)
    }

    /// The first state of a model from `mark` on that fits. When there is none: also what the operator said last.
    pub(crate) async fn model_until(
        &self,
        mark: usize,
        name: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Seen> {
        let found = self
            .models
            .until(mark, &format!("{name}: {what}"), limit, |seen| {
                seen.name() == name && !seen.gone && fits(&seen.object)
            })
            .await;
        match found {
            Ok(found) => Ok(found),
            Err(error) => {
                let pods = self.kubectl(&["get", "pods", "--output", "wide"]).await.unwrap_or_default();
                let of_operator =
                    ["logs", "--selector=app.kubernetes.io/name=candela-operator", "--tail=15", "--prefix"];
                let log = self.kubectl_in(SYSTEM, &of_operator).await.unwrap_or_default();
                bail!("{error:#}\npods:\n{pods}\noperator:\n{log}")
            }
        }
    }
}

impl Drop for Story {
    /// Nothing waits for the namespace to go; that it does is a story of its own. The models first: a namespace's own
    /// deletion takes its pods first, and the rest half a grace period later.
    fn drop(&mut self) {
        println!("story {}: {:.1} s", self.namespace, self.started.elapsed().as_secs_f64());
        let within = ["--namespace", &self.namespace, "delete", "llmdeployments.candela.dev", "--all"];
        let _ = self.cluster.kubectl([&within[..], &["--wait=false"]].concat());
        let _ = self.cluster.kubectl(["delete", "namespace", &self.namespace, "--wait=false"]);
    }
}

fn namespaces(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &kind("v1", "Namespace", "namespaces"))
}

pub(crate) async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    namespaces(client).create(&Default::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

pub(crate) async fn delete_namespaces(client: &Client, names: &[String]) -> Result<()> {
    for name in names {
        namespaces(client).delete(name, &Default::default()).await?;
    }
    Ok(())
}

/// How long each took to go, counted from now, in the order of going.
pub(crate) async fn until_namespaces_gone(
    client: &Client,
    names: &[String],
    limit: Duration,
) -> Result<Vec<(String, Duration)>> {
    let started = Instant::now();
    let mut gone: Vec<(String, Duration)> = Vec::new();
    loop {
        let present = namespaces(client).list(&Default::default()).await?;
        for name in names {
            let known = gone.iter().any(|(known, _)| known == name);
            if !known && present.items.iter().all(|found| found.name_any() != *name) {
                gone.push((name.clone(), started.elapsed()));
            }
        }
        if gone.len() == names.len() {
            return Ok(gone);
        }
        if started.elapsed() > limit {
            let left: Vec<_> =
                present.items.iter().filter(|found| names.contains(&found.name_any())).collect();
            bail!("still there after {limit:?}: {}", serde_json::to_string(&left).context("namespaces")?);
        }
        poll_pause().await;
    }
}

/// Between two looks at what has no watch; whoever uses it has a deadline.
pub(crate) async fn poll_pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}
