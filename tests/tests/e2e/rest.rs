//! Nothing is asked and nothing is written while nothing changes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    audit::{Asked, Audit},
    chat,
    node::{self, SYSTEM, Story, prove},
    watch::{Seen, Watch},
};

/// Leases excepted, for which both replicas ask; a watch that ends after its time is opened again; and once a minute the
/// leader asks for the keys of the cluster's tokens.
fn allowed(asked: &Asked) -> bool {
    asked.of_lease() && matches!(asked.verb.as_str(), "get" | "update")
        || asked.verb == "watch"
        || asked.verb == "get" && KEYS.contains(&asked.uri.as_str())
}

const KEYS: [&str; 2] = ["/.well-known/openid-configuration", "/openid/v1/jwks"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_cluster_hears_nothing_but_leases_and_watches() -> Result<()> {
    let story = Story::alone("rest").await?;
    chat::serve_sample(&story).await?;
    let known = |o: &serde_json::Value| node::settled(o) && o["status"]["models"][0].is_object();
    story.model_until(0, "chat", "its facts", node::READY, known).await?;
    // What is left of the stories before this one still changes.
    for kind in [node::models(), node::pods()] {
        let only_here = |all: &[Seen]| {
            all.iter().all(|seen| [story.namespace.as_str(), SYSTEM].contains(&seen.namespace()))
        };
        Watch::everywhere(&story.client, &kind).until_all("nothing else", node::READY, only_here).await?;
    }
    let mut audit = Audit::from_now(&story.cluster)?;
    let started = Instant::now();
    let mut quiet_since = started;
    // The last words about what just became ready.
    while quiet_since.elapsed() < Duration::from_secs(3) {
        if !audit.fresh()?.iter().all(allowed) {
            quiet_since = Instant::now();
        }
        ensure!(started.elapsed() < Duration::from_secs(60), "no three seconds of rest within a minute");
        node::poll_pause().await;
    }
    println!("at rest {:.1} s after Ready", (quiet_since - started).as_secs_f64());

    let length = Duration::from_secs(if prove() { 600 } else { 60 });
    let started = Instant::now();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    while started.elapsed() < length {
        for asked in audit.fresh()? {
            if !allowed(&asked) {
                bail!("after {:?} at rest: {} {}", started.elapsed(), asked.verb, asked.uri);
            }
            let of = if asked.resource.is_empty() { &asked.uri } else { &asked.resource };
            *counts.entry(format!("{} {of}", asked.verb)).or_default() += 1;
        }
        node::poll_pause().await;
    }
    println!("{} s at rest: {counts:?} and no other request of the operator", length.as_secs());
    // A watch lasts some minutes; one that is opened again and again is no rest.
    let most = length.as_secs() as usize / 60 + 4;
    let bounded = |what: &str| what.starts_with("watch") || what.starts_with("get /");
    let restless = counts.iter().find(|(what, count)| bounded(what) && **count > most);
    ensure!(restless.is_none(), "more than {most} of one watch, or of one look at the keys: {counts:?}");
    let leases = counts.get("update leases").copied().unwrap_or_default();
    ensure!(leases > 0, "the leader did not renew, so this log is not the operator's: {counts:?}");
    Ok(())
}
