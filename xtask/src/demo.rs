//! `cargo xtask demo`: a cluster of its own on this machine, Candela in it, two sample models, one streamed chat. It
//! only calls what a person would call, and prints it, so that each step can be repeated by hand.

mod chat;
mod cluster;
mod progress;

use std::{
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::{cluster::Cluster, progress::Progress};
use crate::image::{target_dir, workspace_root};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    action: Action,
    /// Name of the demo's cluster; its state is in `target/cluster/NAME`.
    #[arg(long, default_value = "demo")]
    name: String,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Action {
    /// Start what is not running, and chat.
    Up,
    /// Stop the cluster and remove its state.
    Down,
}

/// The samples that the demo applies.
const SERVED: &str = "chat";
const WITHOUT_GPUS: &str = "chat-gpu";
const QUESTION: &str = "What is the capital of France?";
const OPERATOR_DEADLINE: Duration = Duration::from_secs(120);
const MODEL_DEADLINE: Duration = Duration::from_secs(180);

pub(crate) fn run(args: Args) -> Result<()> {
    let cluster = Cluster::new(&target_dir()?.join("cluster"), &args.name)?;
    match args.action {
        Action::Down => cluster.down(),
        Action::Up => up(&cluster),
    }
}

fn up(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    let root = workspace_root()?;
    step("Starting a Kubernetes cluster with one fake GPU")?;
    cluster.up(&["--reuse", "--gpus", "1", "--gpu-product", "NVIDIA-H100-80GB-HBM3"])?;

    step("Loading the images of operator and server")?;
    let images = target_dir()?.join("images");
    for image in ["operator.tar", "server.tar"] {
        let path = images.join(image);
        if !path.is_file() {
            bail!("{} is not there; first run: make build", path.display());
        }
        cluster.load(&path)?;
    }

    step("Installing Candela: kubectl apply -k manifests/overlays/test")?;
    install(cluster, &root.join("manifests/overlays/test"))?;
    wait_for_operator(cluster).map_err(|error| explain(cluster, error))?;

    step("Applying two models: kubectl apply -k manifests/samples")?;
    cluster.kubectl(&["apply", "-k", &path_text(&root.join("manifests/samples"))?])?;
    wait_for_models(cluster).map_err(|error| explain(cluster, error))?;

    step(&format!("Asking `{SERVED}` through its Service: {QUESTION}"))?;
    let url = cluster.forward(&format!("default/{SERVED}:http"))?;
    chat::wait_until_reachable(&url)?;
    let answer = chat::stream(&url, SERVED, QUESTION)?;
    say(&format!(
        "   ({} pieces, the first after {} ms, the whole in {} ms)\n",
        answer.pieces,
        answer.first.as_millis(),
        answer.whole.as_millis()
    ))?;

    step("What Candela says of the two")?;
    for name in [SERVED, WITHOUT_GPUS] {
        conditions(cluster, name)?;
    }
    say(&cluster.kubectl(&["get", "candela"])?)?;
    farewell(cluster, &url, started.elapsed())
}

/// A custom resource right after its definition may be refused while the API server still learns of it, and so may
/// an object in a namespace that is just being made: `apply` again is the answer to both.
fn install(cluster: &Cluster, overlay: &Path) -> Result<()> {
    let overlay = path_text(overlay)?;
    let mut last = cluster.kubectl(&["apply", "-k", &overlay]);
    if last.is_err() {
        last = cluster.kubectl(&["apply", "-k", &overlay]);
    }
    last?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=30s",
        "crd/llmdeployments.candela.dev",
    ])?;
    Ok(())
}

fn wait_for_operator(cluster: &Cluster) -> Result<()> {
    let mut progress = Progress::new(OPERATOR_DEADLINE);
    loop {
        let deployment = cluster.get("candela-system", "deployment/candela-operator")?;
        let ready = deployment["status"]["readyReplicas"].as_i64().unwrap_or(0);
        let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(0);
        progress.show("operator", &format!("{ready} of {wanted} replicas ready"))?;
        if ready == wanted && wanted > 0 {
            return progress.done();
        }
        progress.wait("the operator did not become ready")?;
    }
}

fn wait_for_models(cluster: &Cluster) -> Result<()> {
    let mut progress = Progress::new(MODEL_DEADLINE);
    loop {
        let served = cluster.get("default", &format!("llmdeployments.candela.dev/{SERVED}"))?;
        let without = cluster.get("default", &format!("llmdeployments.candela.dev/{WITHOUT_GPUS}"))?;
        progress.show(SERVED, &summary(&served, "Ready"))?;
        progress.show(WITHOUT_GPUS, &summary(&without, "Schedulable"))?;
        let wanted = served["spec"]["replicas"].as_i64();
        let all = served["status"]["readyReplicas"].as_i64() == wanted;
        let ready = is(&served, "Ready", "True") && all && !is(&served, "Reconciling", "True");
        if ready && is(&without, "Schedulable", "False") && is(&without, "Stalled", "True") {
            return progress.done();
        }
        progress.wait("the samples did not get where they should")?;
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    // What an older generation earned says nothing of this one.
    let generation = object["metadata"]["generation"].as_i64();
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind && c["observedGeneration"].as_i64() == generation)
}

fn is(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == status)
}

fn summary(object: &Value, kind: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ready = object["status"]["readyReplicas"].as_i64().unwrap_or(0);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or(0);
    match condition(object, kind) {
        None => format!("{ready} of {wanted} ready, not looked at yet"),
        Some(condition) => format!(
            "{ready} of {wanted} ready, {kind}={} {}: {}",
            text(&condition["status"]),
            text(&condition["reason"]),
            text(&condition["message"])
        ),
    }
}

fn conditions(cluster: &Cluster, name: &str) -> Result<()> {
    let object = cluster.get("default", &format!("llmdeployments.candela.dev/{name}"))?;
    say(&format!("   {name}\n"))?;
    for condition in object["status"]["conditions"].as_array().into_iter().flatten() {
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        say(&format!(
            "     {:<22} {:<7} {:<24} {}\n",
            text("type"),
            text("status"),
            text("reason"),
            text("message")
        ))?;
    }
    Ok(())
}

/// A failure with what the cluster knows about it.
fn explain(cluster: &Cluster, error: anyhow::Error) -> anyhow::Error {
    let pods = cluster.kubectl(&["get", "pods", "--all-namespaces", "--output", "wide"]).unwrap_or_default();
    let log = cluster
        .kubectl(&[
            "logs",
            "-n",
            "candela-system",
            "-l",
            "app.kubernetes.io/name=candela-operator",
            "--tail",
            "20",
        ])
        .unwrap_or_default();
    error.context(format!("the pods:\n{pods}\nthe operator's last lines:\n{log}"))
}

fn farewell(cluster: &Cluster, url: &str, elapsed: Duration) -> Result<()> {
    let config = cluster.kubeconfig();
    say(&format!(
        "
Candela runs; all of this took {} s. Go on with:
  export KUBECONFIG={}
  kubectl get candela                       # no kubectl here? {}
  kubectl describe llm {WITHOUT_GPUS}
  kubectl scale llm {SERVED} --replicas 3
  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{\"model\": \"{SERVED}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}]}}'
The demo keeps running in the background until: make demo-down
",
        elapsed.as_secs(),
        config.display(),
        cluster.hint("kubectl get candela"),
    ))
}

fn path_text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?.to_owned())
}

fn step(title: &str) -> Result<()> {
    say(&format!("\n== {title}\n"))
}

/// Prints at once: what is streamed should be seen streaming.
fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
