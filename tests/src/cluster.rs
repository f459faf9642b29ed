//! A real cluster for a test: starts `candela-cluster` and takes everything of it away when dropped.
//!
//! The handle speaks to the program's command line only; how a cluster is made is `tests/cluster`'s business.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// What `up` shall start. The default is a node without accelerators.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Unique among the clusters of this checkout: lower-case letters, digits, dashes.
    pub name: String,
    /// No node: API server, etcd, controller manager and scheduler.
    pub control_plane_only: bool,
    /// Write the metadata of every request to [`Cluster::audit_log`].
    pub audit: bool,
    /// How many `nvidia.com/gpu` the node offers.
    pub gpus: u32,
    /// Their product, as the label `nvidia.com/gpu.product` names it.
    pub gpu_product: Option<String>,
    /// MIG slices by profile, as in `("1g.10gb", 7)`.
    pub mig: Vec<(String, u32)>,
    /// Nodes that kwok fakes.
    pub fake_nodes: u32,
    /// Start metrics-server.
    pub metrics_server: bool,
}

impl Options {
    /// A cluster of that name with nothing special.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.control_plane_only {
            flags.push("--control-plane-only".into());
        }
        if self.audit {
            flags.push("--audit".into());
        }
        if self.gpus > 0 {
            flags.push(format!("--gpus={}", self.gpus));
        }
        if let Some(product) = &self.gpu_product {
            flags.push(format!("--gpu-product={product}"));
        }
        if !self.mig.is_empty() {
            let slices: Vec<_> = self.mig.iter().map(|(profile, n)| format!("{profile}={n}")).collect();
            flags.push(format!("--mig={}", slices.join(",")));
        }
        if self.fake_nodes > 0 {
            flags.push(format!("--fake-nodes={}", self.fake_nodes));
        }
        if self.metrics_server {
            flags.push("--addons=metrics-server".into());
        }
        flags
    }
}

/// What `status` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its first process lives.
    pub running: bool,
    /// Every component runs and is healthy.
    pub ready: bool,
    /// The API server, as the host reaches it.
    #[serde(default)]
    pub server: String,
    /// Memory of everything but the pods; pages that components share count once.
    #[serde(rename = "residentMiB")]
    pub resident_mib: u64,
    /// Absent while the cluster does not run.
    #[serde(default)]
    pub components: Option<Vec<Component>>,
}

/// One program of the cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Such as `kube-apiserver`.
    pub name: String,
    /// `running`, `paused`, `killed`, `ended` or `unhealthy`.
    pub state: String,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
}

/// A running cluster. Dropped: gone, with all that it made. It also ends with this process, however that ends.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    program: PathBuf,
    dir: PathBuf,
}

impl Cluster {
    /// Starts a cluster and returns once its node takes pods.
    pub fn up(options: &Options) -> anyhow::Result<Self> {
        let program = program()?;
        let root = match std::env::var_os("CANDELA_CLUSTER_ROOT") {
            Some(root) => PathBuf::from(root),
            None => repository().join("target/cluster"),
        };
        let mut command = Command::new(&program);
        command
            .args(["up", "--name", &options.name])
            .arg(format!("--tied-to={}", std::process::id()))
            .args(options.flags());
        // Only what was started here is taken away when the handle is dropped.
        succeed(command)?;
        Ok(Self { name: options.name.clone(), dir: root.join(&options.name), program })
    }

    /// The administrator's kubeconfig; it serves on the host and inside [`Cluster::exec`] alike.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// One JSON object a line, of `audit.k8s.io/v1`; written only if [`Options::audit`] was set.
    pub fn audit_log(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    /// Folder on the host of a volume that the cluster's provisioner made, by the volume's name.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.dir.join("volumes").join(name)
    }

    /// The log of a component.
    pub fn log(&self, component: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{component}.log"))
    }

    /// Loads an OCI or Docker archive into the node; returns the names that pods may use.
    pub fn load_image(&self, archive: &Path) -> anyhow::Result<Vec<String>> {
        let names = self.run("load", [archive])?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Makes `namespace/service` or `namespace/service:port` reachable on the host for as long as the cluster lives;
    /// returns its URL. Asking twice gives the same one.
    pub fn forward(&self, service: &str) -> anyhow::Result<String> {
        Ok(self.run("forward", [service])?.trim().to_owned())
    }

    /// Ends a component at once; it stays down until [`Cluster::restart`].
    pub fn kill(&self, component: &str) -> anyhow::Result<()> {
        self.run("kill", [component]).map(drop)
    }

    /// Stops a component where it is, its connections open.
    pub fn pause(&self, component: &str) -> anyhow::Result<()> {
        self.run("pause", [component]).map(drop)
    }

    /// Lets a paused component go on.
    pub fn resume(&self, component: &str) -> anyhow::Result<()> {
        self.run("resume", [component]).map(drop)
    }

    /// Ends a component if it runs, starts it, and returns once it is healthy.
    pub fn restart(&self, component: &str) -> anyhow::Result<()> {
        self.run("restart", [component]).map(drop)
    }

    /// The cluster's state, asked now.
    pub fn status(&self) -> anyhow::Result<Status> {
        let text = self.run("status", ["--output=json"])?;
        serde_json::from_str(&text).context("cannot read the status of the cluster")
    }

    /// A command inside the cluster's network, with its DNS and `KUBECONFIG`, to be spawned by the caller. It sees the
    /// host's files.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["exec", "--name", &self.name, "--"]).args(arguments);
        command
    }

    /// Runs a command inside the cluster's network to its end.
    pub fn exec<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Output> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).output().context("cannot run a command in the cluster")
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args(["kubectl", "--name", &self.name, "--"]).args(arguments);
        succeed(command)
    }

    /// Until the API server serves every CustomResourceDefinition that was applied. `kubectl wait` fails on one that has
    /// no conditions yet, so right after an apply it cannot be used.
    pub fn wait_for_crds(&self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let list: Value = serde_json::from_str(&self.kubectl(["get", "crd", "--output=json"])?)?;
            let open: Vec<_> =
                list["items"].as_array().into_iter().flatten().filter(|crd| !established(crd)).collect();
            if open.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "not established in 30 s: {open:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn run<S: AsRef<OsStr>>(
        &self,
        verb: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.args([verb, "--name", &self.name]).args(arguments);
        succeed(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut arguments = Vec::new();
        if std::thread::panicking() {
            // The logs tell what went wrong.
            arguments.push("--keep-logs");
        }
        if let Err(error) = self.run("down", arguments) {
            tracing::error!(cluster = %self.name, error = %error, "cluster was not taken away");
        }
    }
}

fn established(crd: &Value) -> bool {
    let conditions = crd["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
}

fn succeed(mut command: Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!("`{}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("output is not UTF-8")
}

fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

fn program() -> anyhow::Result<PathBuf> {
    let path = repository().join("target/cluster/candela-cluster");
    ensure!(path.is_file(), "{} is missing: run `make cluster-bin`", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_that_say_only_what_was_asked() {
        assert!(Options::named("a").flags().is_empty());
        let options = Options {
            audit: true,
            gpus: 4,
            gpu_product: Some("NVIDIA-L4".into()),
            mig: vec![("1g.10gb".into(), 7), ("3g.40gb".into(), 1)],
            ..Options::named("a")
        };
        assert_eq!(
            options.flags(),
            ["--audit", "--gpus=4", "--gpu-product=NVIDIA-L4", "--mig=1g.10gb=7,3g.40gb=1"]
        );
    }

    #[test]
    fn a_definition_without_conditions_is_not_served_yet() {
        let with = |status: Value| serde_json::json!({"status": status});
        assert!(!established(&with(serde_json::json!({}))));
        let condition =
            |status| serde_json::json!({"conditions": [{"type": "Established", "status": status}]});
        assert!(!established(&with(condition("False"))));
        assert!(established(&with(condition("True"))));
    }

    #[test]
    fn status_of_a_cluster_that_does_not_run_can_be_read() {
        let text = r#"{"name":"a","running":false,"options":{},"ready":false,"stages":null,"components":null,"residentMiB":0}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(!status.running && status.components.is_none());
    }
}
