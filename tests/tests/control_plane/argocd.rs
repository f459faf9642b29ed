//! Argo CD's health script on statuses that the operator's process wrote to the real API server: each row of the table
//! in `docs/how-to/read-conditions.md`. There is no kubelet here, so the test plays one: a node, and what its pods say.

#[path = "../../../operator/planner/tests/planner/argocd.rs"]
mod script;

use std::time::Duration;

use anyhow::{Result, bail};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::interval;

use crate::installation::{Installation, resource};

const NODE: &str = "played";

fn nodes(client: &kube::Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource("Node"))
}

/// A node that is ready for as long as this is polled.
async fn node_beats(client: &kube::Client) -> Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    nodes(client).create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    let mut beats = interval(Duration::from_secs(5));
    loop {
        beats.tick().await;
        let now = now()?;
        let capacity = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played",
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        let status =
            json!({"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}});
        nodes(client).patch_status(NODE, &PatchParams::default(), &Patch::Merge(&status)).await?;
    }
}

fn now() -> Result<Value> {
    Ok(serde_json::to_value(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::now(),
    ))?)
}

/// What the kubelet would report of a container.
#[derive(Clone, Copy)]
enum Container {
    Ready,
    NoImage,
}

/// Pods that are not on their way out; those that are have nobody else to end them.
async fn pods(at: &Installation) -> Result<Vec<DynamicObject>> {
    let pods = at.api("Pod");
    let (leaving, staying): (Vec<_>, Vec<_>) = pods
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .partition(|pod| pod.metadata.deletion_timestamp.is_some());
    for pod in leaving {
        let name = pod.metadata.name.unwrap_or_default();
        match pods.delete(&name, &DeleteParams::default().grace_period(0)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(staying)
}

async fn report(at: &Installation, pod: &DynamicObject, container: Container) -> Result<()> {
    let (now, name) = (now()?, pod.metadata.name.clone().unwrap_or_default());
    let ready = matches!(container, Container::Ready);
    let (phase, state) = match container {
        Container::Ready => ("Running", json!({"running": {"startedAt": now}})),
        Container::NoImage => (
            "Pending",
            json!({"waiting": {"reason": "ImagePullBackOff",
                "message": "Back-off pulling image \"candela.local/server:dev\": not found"}}),
        ),
    };
    let conditions: Vec<_> = [("PodScheduled", true), ("Initialized", true), ("ContainersReady", ready), ("Ready", ready)]
        .map(|(kind, holds)| {
            json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now})
        })
        .into();
    let containers = pod.data["spec"]["containers"].as_array();
    let statuses: Vec<_> = containers
        .into_iter()
        .flatten()
        .map(|c| {
            json!({"name": c["name"], "image": c["image"], "imageID": "", "ready": ready, "started": ready,
                "restartCount": 0, "state": state})
        })
        .collect();
    let status = json!({"status": {"phase": phase, "conditions": conditions, "containerStatuses": statuses}});
    at.api("Pod").patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Until Argo CD shows `health` and the condition Ready is `ready`; then what else the row says.
async fn row(at: &Installation, what: &str, health: &str, ready: &str) -> Result<Value> {
    let object = at
        .until("a", &format!("{what}: {health} with Ready={ready}"), |object| {
            script::health(object).0 == health && condition(object, "Ready").0 == ready
        })
        .await?;
    // A row is where the resource stays, not what it passes.
    at.settle("a").await?;
    let object = serde_json::to_value(at.api("LlmDeployment").get("a").await?).unwrap_or(object);
    let (found, message) = script::health(&object);
    if (found.as_str(), condition(&object, "Ready").0) != (health, ready) {
        bail!("{what} did not stay {health}: {found}, {message}: {:#}", object["status"]);
    }
    println!("{what}: {health}, Ready={ready} {}: {message}", condition(&object, "Ready").1);
    Ok(object)
}

fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    found.map_or(("absent", ""), |c| (c["status"].as_str().unwrap_or(""), c["reason"].as_str().unwrap_or("")))
}

async fn every_row(at: &Installation) -> Result<()> {
    let llms = at.api("LlmDeployment");
    let body = json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "metadata": {"name": "a"},
        "spec": {"model": {"uri": "builtin://demo"}, "replicas": 1}});
    let body: DynamicObject = serde_json::from_value(body)?;
    let created = serde_json::to_value(llms.create(&PostParams::default(), &body).await?)?;
    assert_eq!(script::health(&created).0, "Progressing", "before the operator has seen it");
    let change = async |patch: Value| llms.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await;

    let object = row(at, "progressing, nothing serves yet", "Progressing", "False").await?;
    assert_eq!(condition(&object, "Reconciling").0, "True");
    for pod in pods(at).await? {
        report(at, &pod, Container::Ready).await?;
    }
    let object = row(at, "serving", "Healthy", "True").await?;
    assert_eq!((condition(&object, "Reconciling").0, condition(&object, "Stalled").0), ("absent", "absent"));

    let old = pods(at).await?;
    change(json!({"spec": {"model": {"contextLength": 512}}})).await?;
    let object = row(at, "rolling, the old one serves", "Progressing", "True").await?;
    assert_eq!(condition(&object, "Reconciling").0, "True");
    let is_new = |pod: &DynamicObject| old.iter().all(|old| old.metadata.uid != pod.metadata.uid);
    let new: Vec<_> = pods(at).await?.into_iter().filter(is_new).collect();
    assert_eq!(new.len(), 1);
    report(at, &new[0], Container::NoImage).await?;
    let object = row(at, "new revision failed, the old one serves", "Degraded", "True").await?;
    assert_eq!(condition(&object, "Stalled").0, "True");

    report(at, &new[0], Container::Ready).await?;
    row(at, "rolled out", "Healthy", "True").await?;
    for pod in pods(at).await? {
        report(at, &pod, Container::NoImage).await?;
    }
    let object = row(at, "nothing serves, and will not by itself", "Degraded", "False").await?;
    assert_eq!(condition(&object, "Stalled").0, "True");

    change(json!({"spec": {"suspend": true}})).await?;
    let object = row(at, "suspended", "Suspended", "False").await?;
    assert_eq!(condition(&object, "Ready").1, "Suspended");
    // With nobody to end pods, the next test's node would still have them.
    llms.delete("a", &DeleteParams::default()).await?;
    at.settle("a").await?;
    let mut ticks = interval(Duration::from_millis(100));
    while !at.api("Pod").list(&ListParams::default()).await?.items.is_empty() {
        ticks.tick().await;
        pods(at).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argo_cd_shows_what_the_table_says_on_statuses_of_the_real_api_server() {
    let _turn = crate::TURN.lock().await;
    let at = Installation::new("argocd".to_owned()).await.unwrap();
    let played = tokio::select! {
        ended = at.run(every_row(&at)) => ended,
        stopped = node_beats(&at.client) => stopped,
    };
    // The other tests know a cluster without nodes.
    nodes(&at.client).delete(NODE, &DeleteParams::default()).await.unwrap();
    played.unwrap();
}
