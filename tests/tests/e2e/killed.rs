//! The operator's processes are killed in the midst of their writes, as a node does that runs out of memory: whoever
//! leads next ends where an undisturbed one would.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    audit::Audit,
    chat, node,
    node::{READY, SYSTEM, Story, kind, prove},
    watch::{Seen, Watch},
};

const SEED: u64 = 20_251_123;
/// The lease's 15 s, two looks of the standby, and a container's restart.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(30);
/// Creating one model, updating another and deleting a third takes about this many writes.
const WRITES: usize = 16;

/// Every kind that a model owns.
const OWNED: [(&str, &str, &str); 6] = [
    ("apps/v1", "Deployment", "deployments"),
    ("v1", "Service", "services"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("v1", "ConfigMap", "configmaps"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_killed_at_any_moment_is_replaced_and_all_converges() -> Result<()> {
    let story = Story::alone("killed").await?;
    let leases = Watch::open(&story.client, &kind("coordination.k8s.io/v1", "Lease", "leases"), SYSTEM);
    let operators = Watch::open(&story.client, &node::pods(), SYSTEM);
    let mut rng = StdRng::seed_from_u64(SEED);
    // What the first round updates and deletes.
    for name in ["m0", "m1"] {
        story.apply(&one_replica(name)).await?;
    }
    for name in ["m0", "m1"] {
        story.model_until(0, name, "Ready", READY, node::settled).await?;
    }
    let rounds = if prove() { 12 } else { 2 };
    for round in 0..rounds {
        let after = rng.random_range(0..WRITES);
        let both = round % 2 == 1;
        one_round(&story, &leases, &operators, round, after, both).await.with_context(|| {
            format!("round {round} of seed {SEED}: killed after {after} writes, both: {both}")
        })?;
        if prove() && round + 1 < rounds {
            // New pods: the kubelet makes a container that ends again and again wait for minutes. They end in order,
            // so this is the other handover, of a lease that is given up.
            story.kubectl_in(SYSTEM, &["rollout", "restart", "deployment/candela-operator"]).await?;
            let rolled = ["rollout", "status", "deployment/candela-operator", "--timeout=120s"];
            story.kubectl_in(SYSTEM, &rolled).await?;
        }
    }
    println!("operator killed {rounds} times (seed {SEED}): converged each time");
    Ok(())
}

fn one_replica(name: &str) -> Value {
    let mut model = chat::demo(name);
    model["spec"]["replicas"] = json!(1);
    model
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
}

/// Model `m(n)` is deleted, the next one updated, one more created, all at once; then the kill.
async fn one_round(
    story: &Story,
    leases: &Watch,
    operators: &Watch,
    round: usize,
    after: usize,
    both: bool,
) -> Result<()> {
    let [old, kept, new] = [0, 1, 2].map(|n| format!("m{}", round + n));
    let ready = |present: &[Seen]| {
        present.len() == 2 && present.iter().all(|seen| container_id(&seen.object).is_some())
    };
    let pods = operators.until_all("two operators", READY, ready).await?;
    // One of these two: after a rollout the lease may still name a process that has ended.
    let of = |lease: &Seen, pod: &Seen| holder(&lease.object).starts_with(&format!("{}_", pod.name()));
    let held = |leases: &[Seen]| leases.iter().any(|lease| pods.iter().any(|pod| of(lease, pod)));
    let lease = leases.until_all("a leader", HANDED_OVER_WITHIN, held).await?;
    let before = lease.iter().find(|lease| pods.iter().any(|pod| of(lease, pod)));
    let before = holder(&before.context("the lease was just held")?.object).to_owned();
    let leads = |seen: &&Seen| before.starts_with(&format!("{}_", seen.name()));
    let victims: Vec<&Seen> = pods.iter().filter(|seen| both || leads(seen)).collect();
    let ids: Vec<&str> = victims.iter().filter_map(|seen| container_id(&seen.object)).collect();

    let mark = story.models.mark();
    let length = 512 + round;
    let mut audit = Audit::from_now(&story.cluster)?;
    let target = format!("llm/{old}");
    let (updated, created) = (json!({"spec": {"model": {"contextLength": length}}}), one_replica(&new));
    let kept_target = format!("llm/{kept}");
    let deletion = ["delete", target.as_str(), "--wait=false"];
    let changes = async {
        tokio::try_join!(story.apply(&created), story.patch(&kept_target, &updated), story.kubectl(&deletion),)
    };
    let (changed, written) = tokio::join!(changes, kill_after(&mut audit, after, &ids));
    changed?;
    let (written, killed) = written?;

    let other =
        |seen: &Seen| !seen.gone && !holder(&seen.object).is_empty() && holder(&seen.object) != before;
    let handed =
        leases.until(0, "another leader", HANDED_OVER_WITHIN, |seen| seen.at > killed && other(seen)).await?;
    story.model_until(mark, &new, "created", READY, node::settled).await?;
    let rolled = |o: &Value| node::settled(o) && o["status"]["models"][0]["contextLength"] == length;
    let last = story.model_until(mark, &kept, "updated", READY, rolled).await?;
    for (api_version, name, plural) in OWNED {
        let watch = story.watch(api_version, name, plural);
        let of = |seen: &Seen, model: &str| {
            seen.object["metadata"]["labels"]["candela.dev/llmdeployment"] == model
        };
        let wanted = match name {
            "PodDisruptionBudget" => 0, // One replica has none.
            "ConfigMap" => 2,           // The server's configuration, and whose tokens it believes.
            _ => 1,
        };
        watch
            .until_all(&format!("{wanted} {name} for each model"), READY, |present| {
                let count = |model: &str| present.iter().filter(|seen| of(seen, model)).count();
                count(&old) == 0 && count(&kept) == wanted && count(&new) == wanted
            })
            .await?;
    }
    println!(
        "killed {} after {written} writes: another leader after {:.1} s, all settled after {:.1} s",
        if both { "both operators" } else { "the leader" },
        (handed.at - killed).as_secs_f64(),
        last.at.saturating_duration_since(killed).as_secs_f64()
    );
    Ok(())
}

/// Of a pod's only container, if it is ready.
pub(crate) fn container_id(pod: &Value) -> Option<&str> {
    let container = &pod["status"]["containerStatuses"][0];
    let id = container["containerID"].as_str().filter(|_| container["ready"] == true)?;
    id.strip_prefix("containerd://")
}

/// Kills once the operator has written so often; gives how often it had.
async fn kill_after(audit: &mut Audit, writes: usize, containers: &[&str]) -> Result<(usize, Instant)> {
    let started = Instant::now();
    let mut written = 0;
    while written < writes && started.elapsed() < Duration::from_secs(10) {
        written += audit.fresh()?.iter().filter(|asked| asked.is_write() && !asked.of_lease()).count();
        tokio::task::yield_now().await;
    }
    let pids = processes(containers)?;
    ensure!(
        pids.len() >= containers.len(),
        "only {} processes in {} containers",
        pids.len(),
        containers.len()
    );
    // The shell's own: there need not be a program of that name.
    let killed = Command::new("sh").arg("-c").arg(format!("kill -KILL {}", pids.join(" "))).status()?;
    ensure!(killed.success(), "kill: {killed}");
    Ok((written, Instant::now()))
}

/// By the container's name in their cgroups, which the machine sees whatever namespace they are in.
pub(crate) fn processes(containers: &[&str]) -> Result<Vec<String>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process may have ended meanwhile.
        let cgroups = fs::read_to_string(format!("/proc/{name}/cgroup")).unwrap_or_default();
        if containers.iter().any(|id| cgroups.contains(id)) {
            pids.push(name);
        }
    }
    Ok(pids)
}
