//! The cluster with Candela in it, and what a person would ask of it.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candela_tests::cluster::{Cluster, Options};
use serde_json::Value;

pub(crate) struct Node {
    pub(crate) cluster: Cluster,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn sample(name: &str) -> String {
    repository().join("manifests/samples").join(name).display().to_string()
}

pub(crate) fn condition(object: &Value, kind: &str, status: &str) -> bool {
    // What an older generation earned says nothing of this one.
    let generation = &object["metadata"]["generation"];
    object["status"]["conditions"].as_array().is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == kind && c["status"] == status && c["observedGeneration"] == *generation)
    })
}

impl Node {
    pub(crate) fn up() -> Result<Self> {
        let images = repository().join("target/images");
        for image in ["operator.tar", "server.tar"] {
            let path = images.join(image);
            ensure!(path.is_file(), "{} is missing: run `make build`", path.display());
        }
        let cluster = Cluster::up(&Options {
            audit: true,
            gpus: 4,
            gpu_product: Some("NVIDIA-H100-80GB-HBM3".into()),
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
        let node = Self { cluster };
        node.until("candela-system", "deployment/candela-operator", Duration::from_secs(120), |o| {
            o["status"]["readyReplicas"] == o["spec"]["replicas"]
        })?;
        Ok(node)
    }

    pub(crate) fn kubectl(&self, namespace: &str, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl([&["--namespace", namespace], arguments].concat())
    }

    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.cluster.kubectl(["create", "namespace", name]).map(drop)
    }

    pub(crate) fn apply_sample(&self, namespace: &str, name: &str) -> Result<()> {
        self.kubectl(namespace, &["apply", "-f", &sample(name)]).map(drop)
    }

    /// The object; null while there is none.
    pub(crate) fn get(&self, namespace: &str, what: &str) -> Result<Value> {
        let text = self.kubectl(namespace, &["get", what, "--ignore-not-found", "--output", "json"])?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    pub(crate) fn until(
        &self,
        namespace: &str,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let started = Instant::now();
        loop {
            let object = self.get(namespace, what)?;
            if reached(&object) {
                println!("{namespace}/{what}: there after {:.1} s", started.elapsed().as_secs_f64());
                return Ok(object);
            }
            if started.elapsed() > limit {
                let pods = self.kubectl(namespace, &["get", "pods", "--output", "wide"])?;
                let of_operator = ["logs", "-l", "app.kubernetes.io/name=candela-operator", "--tail=15"];
                let log = self.kubectl("candela-system", &of_operator).unwrap_or_default();
                bail!("{what} did not get there in {limit:?}: {object:#}\npods:\n{pods}\noperator:\n{log}");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}
