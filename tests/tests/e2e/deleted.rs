//! A namespace can be deleted whatever its model is doing.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{
    chat,
    node::{self, READY, Story},
    served,
    watch::Watch,
};

/// The pods' grace period here; the promise is a minute beside it.
const GRACE: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_secs(60);

struct Phase {
    name: &'static str,
    spec: Value,
    /// What to change once the first state was reached.
    then: Option<Value>,
    /// When to delete: after the change, if there is one.
    on: Moment,
}

enum Moment {
    Applied,
    Pod(fn(&Value) -> bool),
    Model(fn(&Value) -> bool),
}

fn runs(pod: &Value, list: &str) -> bool {
    pod["status"][list].as_array().is_some_and(|all| all.iter().any(|c| c["state"]["running"].is_object()))
}

fn phases(url: &str) -> Vec<Phase> {
    let phase = |name, spec, then, on| Phase { name, spec, then, on };
    let gpus = json!({"accelerator": {"device": {"resourceName": "nvidia.com/gpu", "count": 64}}});
    vec![
        phase("applied", json!({}), None, Moment::Applied),
        phase(
            "fetching",
            json!({"model": {"uri": format!("{url}/never/model/")}}),
            None,
            Moment::Pod(|pod| runs(pod, "initContainerStatuses")),
        ),
        phase(
            "loading",
            json!({}),
            None,
            Moment::Pod(|pod| {
                let all = pod["status"]["containerStatuses"].as_array();
                runs(pod, "containerStatuses")
                    && all.is_some_and(|all| all.iter().all(|c| c["ready"] == false))
            }),
        ),
        phase("ready", json!({}), None, Moment::Model(node::settled)),
        phase(
            "rolling",
            json!({}),
            Some(json!({"spec": {"model": {"contextLength": 512}}})),
            Moment::Model(|o| {
                let status = &o["status"];
                status["revisions"].as_array().is_some_and(|all| all.len() == 2)
                    && status["updatedReplicas"] == 1
            }),
        ),
        phase("stalled", gpus, None, Moment::Model(|o| node::condition(o, "Stalled")["status"] == "True")),
        phase(
            "suspended",
            json!({}),
            Some(json!({"spec": {"suspend": true}})),
            Moment::Model(|o| node::is(o, "Ready", "False", "Suspended")),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_in_every_phase() -> Result<()> {
    let story = Story::beside_others("phases").await?;
    let served = served::serve(&story).await?;
    let phases = phases(&served.url);
    let all = phases
        .iter()
        .map(async |phase| delete_in(&story, phase).await.with_context(|| format!("phase {}", phase.name)));
    let deleted = futures::future::try_join_all(all).await?;
    let limit = GONE_WITHIN + GRACE;
    let gone = node::until_namespaces_gone(&story.client, &deleted, limit).await?;
    let slowest = gone.last().map_or(0.0, |(_, after)| after.as_secs_f64());
    println!(
        "namespaces deleted in {} phases: all gone {slowest:.1} s after the last was deleted",
        gone.len()
    );
    drop(served);
    Ok(())
}

/// The namespace's name; its deletion was asked for in the very phase.
async fn delete_in(story: &Story, phase: &Phase) -> Result<String> {
    let namespace = format!("phase-{}", phase.name);
    node::create_namespace(&story.client, &namespace).await?;
    let models = Watch::open(&story.client, &node::models(), &namespace);
    let pods = Watch::open(&story.client, &node::pods(), &namespace);
    let mut model = chat::demo("chat");
    model["metadata"]["namespace"] = json!(namespace);
    model["spec"]["podTemplate"] = json!({"terminationGracePeriod": format!("{}s", GRACE.as_secs())});
    for (field, value) in phase.spec.as_object().into_iter().flatten() {
        model["spec"][field] = value.clone();
    }
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    std::fs::write(file.path(), model.to_string())?;
    story.kubectl_in(&namespace, &["apply", "-f", &file.path().display().to_string()]).await?;
    if let Some(change) = &phase.then {
        models.until(0, "Ready", READY, |seen| node::settled(&seen.object)).await?;
        let change = change.to_string();
        story.kubectl_in(&namespace, &["patch", "llm/chat", "--type=merge", "-p", &change]).await?;
    }
    match phase.on {
        Moment::Applied => {}
        Moment::Pod(reached) => drop(pods.until(0, phase.name, READY, |seen| reached(&seen.object)).await?),
        Moment::Model(reached) => {
            drop(models.until(0, phase.name, READY, |seen| reached(&seen.object)).await?)
        }
    }
    node::delete_namespaces(&story.client, std::slice::from_ref(&namespace)).await?;
    Ok(namespace)
}
