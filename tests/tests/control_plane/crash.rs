//! The operator's process is killed before and after each of its writes to the real API server: create, update, delete.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use candela_tests::fake::{Fault, Rule};
use candela_tests::proxy::OPERATOR;
use futures::StreamExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::installation::Installation;

/// For one plan as a whole.
const DEADLINE: Duration = Duration::from_secs(240);
/// For an end state to become the one of the unbroken run.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// How many of the last writes of an unbroken run may be absent in another one: a status is written once for what
/// happened since it was written last, so its writes depend on how fast pods are created.
const AT_THE_END: u64 = 3;
/// Plans at the same time; each has an operator, its restarts, and a lease to wait for.
const CONCURRENCY: usize = 6;

/// What a user does; the last step decides what the end looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    Create,
    Update,
    Delete,
}

async fn user(at: &Installation, flow: Flow) -> Result<()> {
    let llms = at.api("LlmDeployment");
    let spec = json!({"model": {"uri": "builtin://demo"}, "replicas": 2});
    let body = json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "metadata": {"name": "a"}, "spec": spec});
    llms.create(&PostParams::default(), &serde_json::from_value(body)?).await?;
    at.settle("a").await?;
    match flow {
        Flow::Create => return Ok(()),
        Flow::Update => {
            let patch = json!({"spec": {"replicas": 1, "model": {"contextLength": 512}}});
            llms.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        Flow::Delete => drop(llms.delete("a", &DeleteParams::default()).await?),
    }
    at.settle("a").await
}

/// The end without a fault, and how many writes led there.
async fn unbroken(flow: Flow) -> Result<(Value, u64)> {
    let at = Installation::new(format!("crash-{flow:?}").to_lowercase()).await?;
    let goal = at
        .run(async {
            user(&at, flow).await?;
            at.end_state("a").await
        })
        .await?;
    ensure!(at.ends() == (0, 0), "an operator ended by itself: {:?}", at.ends());
    Ok((goal, at.proxy.writes().len() as u64))
}

/// What became of a plan whose end was the right one.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// One process got SIGKILL; so many others ended by themselves, as one does that cannot renew its lease in time.
    Killed { otherwise: usize },
    /// This run made fewer writes.
    NoSuchWrite,
}

/// Kills the operator once; fails unless the end is `goal`.
async fn killed(flow: Flow, nth: u64, fault: Fault, goal: &Value) -> Result<Outcome> {
    let at = Installation::new(format!("crash-{flow:?}-{nth}-{fault:?}").to_lowercase()).await?;
    at.proxy.add_fault(Rule::at_write(OPERATOR, nth, fault));
    at.run(async {
        user(&at, flow).await?;
        let until = Instant::now() + CONVERGENCE;
        loop {
            let end = at.end_state("a").await?;
            if end == *goal {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("the end is\n{end:#}\nand without the kill it was\n{goal:#}");
            }
            at.settle("a").await?;
        }
    })
    .await?;
    let (killed, otherwise) = at.ends();
    let fired = at.proxy.fired();
    ensure!(killed as u64 == fired && fired <= 1, "{killed} processes were killed by {fired} faults");
    Ok(if fired == 1 { Outcome::Killed { otherwise } } else { Outcome::NoSuchWrite })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_killed_at_any_write_to_a_real_api_server_ends_in_the_same_state() {
    let _turn = crate::TURN.lock().await;
    let mut plans = Vec::new();
    let mut writes = Vec::new();
    for flow in [Flow::Create, Flow::Update, Flow::Delete] {
        let (goal, n_writes) = unbroken(flow).await.unwrap();
        assert_eq!(goal["children"].as_array().is_some_and(Vec::is_empty), flow == Flow::Delete, "{goal:#}");
        assert!(n_writes >= 6, "{flow:?} makes only {n_writes} writes: the harness sees nothing");
        writes.push(format!("{flow:?} {n_writes}"));
        for nth in 1..=n_writes {
            let certain = nth + AT_THE_END <= n_writes;
            let each = [Fault::KillBefore, Fault::KillAfter];
            plans.extend(each.map(|fault| (flow, nth, fault, goal.clone(), certain)));
        }
    }
    let n_plans = plans.len();
    // The slice of `make test`: each fourth plan, from the one that the seed says.
    let all = std::env::var_os("CANDELA_PROVE").is_some();
    let seed = std::env::var("CANDELA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0_usize);
    let chosen: Vec<_> = plans
        .into_iter()
        .enumerate()
        .filter(|(n, _)| all || n % 4 == seed % 4)
        .map(|(_, plan)| plan)
        .collect();
    let n_chosen = chosen.len();
    let ends: Vec<_> = futures::stream::iter(chosen)
        .map(|(flow, nth, fault, goal, certain)| async move {
            let plan = async {
                let outcome =
                    timeout(DEADLINE, killed(flow, nth, fault, &goal)).await.context("out of time")??;
                ensure!(outcome != Outcome::NoSuchWrite || !certain, "there was no such write");
                Ok(outcome)
            };
            plan.await.with_context(|| format!("{flow:?}, {fault:?} at write {nth}"))
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    let failed: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {n_chosen} plans failed: {failed:#?}", failed.len());
    let (mut n_killed, mut n_otherwise) = (0, 0);
    for outcome in ends.into_iter().flatten() {
        if let Outcome::Killed { otherwise } = outcome {
            n_killed += 1;
            n_otherwise += otherwise;
        }
    }
    println!(
        "writes of the unbroken runs: {}; {n_chosen} of {n_plans} plans, all with the same end: in {n_killed} one \
         operator process got SIGKILL before or after a write, in {} there was no such write; {n_otherwise} other \
         processes ended by themselves",
        writes.join(", "),
        n_chosen - n_killed,
    );
}
