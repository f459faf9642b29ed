//! One model on all four GPUs of the only node: an update finds no room, says so, and finishes once told how; a drain
//! finishes as well.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    node::{self, GPUS, PRODUCT, READY, Story, prove},
};

/// From the pod's status showing it to the condition.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_on_every_gpu_is_updated_and_drained() -> Result<()> {
    let story = Story::alone("full-gpus").await?;
    let mut model = chat::demo("big");
    model["spec"]["replicas"] = json!(1);
    model["spec"]["accelerator"] =
        json!({"device": {"resourceName": "nvidia.com/gpu", "count": GPUS}, "productNames": [PRODUCT]});
    model["spec"]["podTemplate"] = json!({"terminationGracePeriod": "20s"});
    story.apply(&model).await?;
    story.model_until(0, "big", "Ready", READY, node::settled).await?;

    no_room_is_told(&story).await.context("update with the default rollout")?;
    let in_place = json!({"rollout": {"maxSurge": 0, "maxUnavailable": 1}});
    finishes(&story, "maxSurge 0, while the old update hangs", in_place, 992).await?;
    if prove() {
        finishes(&story, "maxSurge 0", json!({}), 976).await?;
    }
    let recreate = json!({"rollout": {"strategy": "Recreate", "maxSurge": null, "maxUnavailable": null}});
    finishes(&story, "Recreate", recreate, 960).await?;
    drained(&story).await.context("drain")?;
    Ok(())
}

async fn no_room_is_told(story: &Story) -> Result<()> {
    let (mark, of_pods) = (story.models.mark(), story.pods.mark());
    story.patch("llm/big", &json!({"spec": {"model": {"contextLength": 1008}}})).await?;
    let no_room = |o: &Value| node::is(o, "RolloutComplete", "False", "NoRoomToSurge");
    let told = story.model_until(mark, "big", "NoRoomToSurge", READY, no_room).await?;
    let waits = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")
        })
    };
    let shown = story.pods.until(of_pods, "a pod without room", READY, |seen| waits(&seen.object)).await?;
    let late = told.at.saturating_duration_since(shown.at);
    println!("no room for a surge pod: told {:.2} s after the pod's status showed it", late.as_secs_f64());
    ensure!(late <= TOLD_WITHIN, "told after {late:?}");
    let found = node::condition(&told.object, "RolloutComplete")["message"].as_str().unwrap_or_default();
    for word in ["Recreate", "maxSurge: 0", "nvidia.com/gpu"] {
        ensure!(found.contains(word), "the message does not name `{word}`: {found}");
    }
    ensure!(node::condition(&told.object, "Ready")["status"] == "True", "the old revision does not serve");
    Ok(())
}

async fn finishes(story: &Story, what: &str, mut spec: Value, length: i32) -> Result<()> {
    let mark = story.models.mark();
    let started = std::time::Instant::now();
    spec["model"] = json!({"contextLength": length});
    story.patch("llm/big", &json!({ "spec": spec })).await?;
    let rolled = |o: &Value| node::settled(o) && o["status"]["models"][0]["contextLength"] == length;
    let done = story.model_until(mark, "big", what, READY, rolled).await?;
    println!("update on full GPUs, {what}: {:.1} s", (done.at - started).as_secs_f64());
    // A pod that ends still has the GPUs: the wait for it is no fault.
    for seen in story.models.since(mark) {
        let stalled = node::condition(&seen.object, "Stalled");
        let of_this_update = seen.object["spec"]["model"]["contextLength"] == length;
        ensure!(!of_this_update || stalled["status"] != "True", "{what}: {stalled}");
    }
    Ok(())
}

/// Of Candela's pods: the operator's own budget keeps one of its two pods, and there is no other node for it here.
async fn drained(story: &Story) -> Result<()> {
    let nodes = story.kubectl(&["get", "nodes", "--output", "name"]).await?;
    let node = nodes.trim();
    let mark = story.models.mark();
    let started = std::time::Instant::now();
    let drain = story
        .kubectl(&[
            "drain",
            node,
            "--pod-selector=app.kubernetes.io/managed-by=candela",
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=90s",
        ])
        .await;
    let drained = started.elapsed();
    let away = match drain {
        Ok(_) => {
            let no_node = |o: &Value| {
                node::condition(o, "Schedulable")["status"] == "False"
                    && node::condition(o, "Ready")["status"] == "False"
            };
            story.model_until(mark, "big", "not schedulable", READY, no_node).await.map(drop)
        }
        Err(error) => Err(error),
    };
    let mark = story.models.mark();
    story.kubectl(&["uncordon", node]).await?;
    away?;
    let back = story.model_until(mark, "big", "Ready after uncordon", READY, node::settled).await?;
    let total = back.at - started;
    println!(
        "drain: {:.1} s; Ready again {:.1} s after its start",
        drained.as_secs_f64(),
        total.as_secs_f64()
    );
    Ok(())
}
