//! Rolling updates under load, with clients that never try again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    client::{self, Connections, Once},
    load::Load,
    node::{self, Story, prove},
    watch::Seen,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_updates_under_load_lose_nothing() -> Result<()> {
    let story = Story::alone("rolling").await?;
    let url = chat::serve_sample(&story).await?;
    let first = Once::new(&url, Connections::NewEach).chat(&chat::body(false)).await?;
    let expected = client::whole_text(&first)?;
    ensure!(expected.contains("Paris"), "the answer is {expected:?}");

    let (rollouts, least) = if prove() { (3, 2_000) } else { (1, 300) };
    let load = Load::start(&url, &expected, chat::body);
    let mut windows = Vec::new();
    // As many more as it takes for that many requests to have met one: load outside of a rollout proves nothing.
    while windows.len() < rollouts || windows.iter().map(|&w| load.under_way_in(w)).sum::<usize>() < least {
        ensure!(windows.len() < 20 * rollouts, "too few requests meet a rollout: is anything answered?");
        windows.push(roll(&story, windows.len()).await.context("rollout")?);
    }
    let sent = load.finish().await;
    let failures: Vec<_> = sent
        .iter()
        .filter_map(|request| {
            let failure = request.failure.as_ref()?;
            let place = windows.iter().position(|&window| request.under_way_in(window));
            let after = place.map(|at| (request.until - windows[at].0).as_secs_f64());
            Some(format!("rollout {place:?}, after {after:?} s: {failure}"))
        })
        .collect();
    for (number, &window) in windows.iter().enumerate() {
        let met = sent.iter().filter(|request| request.under_way_in(window)).count();
        let seconds = (window.1 - window.0).as_secs_f64();
        println!("rollout {}: {seconds:.1} s, {met} requests under way in it", number + 1);
        ensure!(met >= 50, "only {met} requests met this rollout");
    }
    let met =
        sent.iter().filter(|request| windows.iter().any(|&window| request.under_way_in(window))).count();
    println!(
        "{} rolling updates under {} clients without retries: {met} requests under way in one ({} in all), {} failed",
        windows.len(),
        crate::load::manners().len(),
        sent.len(),
        failures.len()
    );
    ensure!(failures.is_empty(), "{} failed: {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    ensure!(met >= least, "only {met} requests met a rollout");
    Ok(())
}

/// One rollout: from the first pod of the new revision until the last one of the old revision is gone, drained.
async fn roll(story: &Story, number: usize) -> Result<(Instant, Instant)> {
    const LIMIT: Duration = Duration::from_secs(120);
    let uid = |seen: &Seen| seen.object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let old: Vec<String> = story.pods.present().iter().map(uid).collect();
    let (mark, of_models) = (story.pods.mark(), story.models.mark());
    let length = 1024 - 16 * (number + 1);
    story.patch("llm/chat", &json!({"spec": {"model": {"contextLength": length}}})).await?;
    let is_new = |seen: &Seen| !old.contains(&uid(seen));
    let begun = story.pods.until(mark, "a new pod", LIMIT, is_new).await?;
    let rolled = |o: &Value| node::settled(o) && o["status"]["models"][0]["contextLength"] == length;
    story.model_until(of_models, "chat", "rolled out", LIMIT, rolled).await?;
    let only_new = |present: &[Seen]| present.iter().all(|seen| !old.contains(&uid(seen)));
    story.pods.until_all("the old pods are gone", LIMIT, only_new).await?;
    Ok((begun.at, Instant::now()))
}

/// The same load against a copy of the same pods, told to take nothing more once SIGTERM has come: a load that fails
/// nobody there would prove nothing above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_drain_is_found_out() -> Result<()> {
    let story = Story::alone("no-drain").await?;
    let url = chat::serve_sample(&story).await?;
    let first = Once::new(&url, Connections::NewEach).chat(&chat::body(false)).await?;
    let expected = client::whole_text(&first)?;

    let labels = json!({"app": "no-drain"});
    let deployments = node::kind("apps/v1", "Deployment", "deployments");
    let mut deployment = story.get(&deployments, "chat").await?;
    deployment["metadata"] = json!({"name": "no-drain"});
    deployment["spec"]["selector"] = json!({"matchLabels": labels});
    deployment["spec"]["template"]["metadata"] = json!({"labels": labels});
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut();
    args.context("the server has no arguments")?.extend([json!("--drain-window-seconds"), json!("0")]);
    let service = story.get(&node::kind("v1", "Service", "services"), "chat").await?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "no-drain"},
        "spec": {"selector": labels, "ports": service["spec"]["ports"]}});
    story.apply(&deployment).await?;
    story.apply(&service).await?;
    let rollout = ["rollout", "status", "deployment/no-drain", "--timeout=120s"];
    story.kubectl(&rollout).await?;
    let (cluster, name) = (story.cluster.clone(), format!("{}/no-drain:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&name)).await??;
    Once::new(&url, Connections::NewEach).until_reachable().await?;

    let load = Load::start(&url, &expected, chat::body);
    let mut n_rollouts = 0;
    while load.n_failed() == 0 && n_rollouts < 5 {
        n_rollouts += 1;
        story.kubectl(&["rollout", "restart", "deployment/no-drain"]).await?;
        story.kubectl(&rollout).await?;
    }
    let sent = load.finish().await;
    let n_failed = sent.iter().filter(|request| request.failure.is_some()).count();
    println!("without draining: {n_failed} of {} requests failed in {n_rollouts} rollouts", sent.len());
    ensure!(n_failed > 0, "the load did not notice servers that do not drain");
    Ok(())
}
