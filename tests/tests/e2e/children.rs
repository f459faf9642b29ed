//! What people do by hand to a model's children is undone, what is not Candela's is left alone, and GitOps sees no
//! difference afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    node::{self, READY, Story, prove},
    watch::{Seen, Watch},
};

const SOON: Duration = Duration::from_secs(20);

/// Kinds of the children by `apiVersion`, plural, and name after the model's, where that is fixed.
const CHILDREN: [(&str, &str, &str); 5] = [
    ("v1", "Service", "services"),
    ("apps/v1", "Deployment", "deployments"),
    ("v1", "ServiceAccount", "serviceaccounts"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn children_changed_or_deleted_by_hand_come_back() -> Result<()> {
    let story = Story::beside_others("children").await?;
    chat::serve_sample(&story).await?;
    edits_are_undone(&story).await.context("edits")?;
    for (api_version, kind, plural) in CHILDREN {
        let watch = story.watch(api_version, kind, plural);
        deleted_comes_back(&story, &watch, kind, |seen| seen.name() == "chat").await?;
    }
    // Its name may follow from its content.
    let config_maps = story.watch("v1", "ConfigMap", "configmaps");
    deleted_comes_back(&story, &config_maps, "ConfigMap", |seen| {
        seen.object["metadata"]["ownerReferences"][0]["name"] == "chat" && seen.name() != "chat-server-trust"
    })
    .await?;
    deleted_comes_back(&story, &config_maps, "ConfigMap", |seen| seen.name() == "chat-server-trust").await?;
    let mark = story.models.mark();
    story.patch("llm/chat", &json!({"metadata": {"annotations": {"story": "over"}}})).await?;
    story.model_until(mark, "chat", "Ready again", READY, node::settled).await?;
    Ok(())
}

async fn edits_are_undone(story: &Story) -> Result<()> {
    let services = story.watch("v1", "Service", "services");
    let deployments = story.watch("apps/v1", "Deployment", "deployments");
    let port = |object: &Value| object["spec"]["ports"][0]["targetPort"].clone();
    let of_chat = |seen: &Seen| seen.name() == "chat";
    let before = services.until(0, "Service", SOON, of_chat).await?;
    let edit = json!({"spec": {"ports": [{"port": 80, "targetPort": 1}]}}).to_string();
    story.kubectl(&["patch", "service", "chat", "--type=strategic", "-p", &edit]).await?;
    undone(&services, "the Service's port", |o| port(o) == 1, |o| port(o) == port(&before.object)).await?;

    let image = |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let before = deployments.until(0, "Deployment", SOON, of_chat).await?;
    let edit = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [
        {"name": "server", "image": "candela.local/other:1"}]}}}});
    story.kubectl(&["patch", "deployment", "chat", "--type=strategic", "-p", &edit.to_string()]).await?;
    undone(
        &deployments,
        "the Deployment's image and replicas",
        |o| image(o) == "candela.local/other:1" && o["spec"]["replicas"] == 1,
        |o| image(o) == image(&before.object) && o["spec"]["replicas"] == 2,
    )
    .await
}

async fn undone(
    watch: &Watch,
    what: &str,
    edited: impl Fn(&Value) -> bool,
    restored: impl Fn(&Value) -> bool,
) -> Result<()> {
    let edit = watch.until(0, &format!("{what}, edited"), SOON, |seen| edited(&seen.object)).await?;
    let mend = watch
        .until(0, &format!("{what}, restored"), SOON, |seen| seen.at >= edit.at && restored(&seen.object))
        .await?;
    println!("{what} edited by hand: restored after {:.2} s", (mend.at - edit.at).as_secs_f64());
    Ok(())
}

async fn deleted_comes_back(
    story: &Story,
    watch: &Watch,
    kind: &str,
    is_ours: impl Fn(&Seen) -> bool,
) -> Result<()> {
    let before = watch.until(0, kind, SOON, |seen| is_ours(seen) && !seen.gone).await?;
    let uid = &before.object["metadata"]["uid"];
    let mark = watch.mark();
    story.kubectl(&["delete", kind, before.name(), "--wait=false"]).await?;
    let gone = |seen: &Seen| seen.gone && seen.object["metadata"]["uid"] == *uid;
    let gone = watch.until(mark, &format!("{kind}, deleted"), SOON, gone).await?;
    let anew =
        |seen: &Seen| !seen.gone && seen.name() == before.name() && seen.object["metadata"]["uid"] != *uid;
    let anew = watch.until(mark, &format!("{kind}, made anew"), SOON, anew).await?;
    println!(
        "{kind} deleted by hand: back after {:.2} s",
        anew.at.saturating_duration_since(gone.at).as_secs_f64()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diff_is_empty_after_scaling_by_hand_and_after_a_rollout() -> Result<()> {
    let story = Story::beside_others("gitops").await?;
    let mut in_git = chat::demo("chat");
    story.apply(&in_git).await?;
    story.model_until(0, "chat", "Ready", READY, node::settled).await?;

    let mark = story.models.mark();
    story.kubectl(&["scale", "llmdeployments.candela.dev/chat", "--replicas=1"]).await?;
    let one = |o: &Value| node::settled(o) && o["spec"]["replicas"] == 1;
    story.model_until(mark, "chat", "one replica", READY, one).await?;
    let differs = story.diff(&in_git).await.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(!differs.is_empty(), "a diff does not show what `kubectl scale` changed");
    let mark = story.models.mark();
    story.apply(&in_git).await?;
    story.model_until(mark, "chat", "two replicas", READY, node::settled).await?;
    story.diff(&in_git).await.context("diff after kubectl scale and apply")?;

    let deployments = story.watch("apps/v1", "Deployment", "deployments");
    story.kubectl(&["scale", "deployment/chat", "--replicas=1"]).await?;
    undone(
        &deployments,
        "the Deployment's scale",
        |o| o["spec"]["replicas"] == 1,
        |o| o["spec"]["replicas"] == 2,
    )
    .await?;
    story.diff(&in_git).await.context("diff after scaling the Deployment by hand")?;

    in_git["spec"]["model"]["contextLength"] = json!(512);
    let mark = story.models.mark();
    story.apply(&in_git).await?;
    let rolled = |o: &Value| node::settled(o) && o["status"]["models"][0]["contextLength"] == 512;
    story.model_until(mark, "chat", "rolled out", READY, rolled).await?;
    story.diff(&in_git).await.context("diff after a rollout")?;
    println!("kubectl diff: empty after scaling model and Deployment by hand, and after a rollout");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_service_of_the_same_name_is_left_alone() -> Result<()> {
    let story = Story::beside_others("foreign").await?;
    let services = node::kind("v1", "Service", "services");
    story.kubectl(&["create", "service", "clusterip", "chat", "--tcp=80:1234"]).await?;
    let before = story.get(&services, "chat").await?;
    story.kubectl(&["apply", "-f", &node::sample("chat.yaml")]).await?;
    let refused = |o: &Value| {
        node::is(o, "Validated", "False", "NameConflict")
            && node::is(o, "Stalled", "True", "NameConflict")
            && node::is(o, "Ready", "False", "NameConflict")
    };
    let seen = story.model_until(0, "chat", "NameConflict", READY, refused).await?;
    let message = node::condition(&seen.object, "Validated")["message"].as_str().unwrap_or_default();
    ensure!(message.contains("Service `chat`"), "the message does not name the Service: {message}");
    for other in ["ModelAvailable", "NetworkPolicyEnforced"] {
        let found = node::condition(&seen.object, other);
        ensure!(found["reason"] != "NameConflict", "{found}");
    }
    let after = story.get(&services, "chat").await?;
    ensure!(before == after, "the Service was touched: {after}");
    let deployment = story.get(&node::kind("apps/v1", "Deployment", "deployments"), "chat").await?;
    ensure!(deployment.is_null(), "half of a plan was applied: {deployment}");
    println!("foreign Service: NameConflict, untouched");
    if !prove() {
        return Ok(());
    }
    // The next step that the message gives. No watch shows a foreign object: it is looked at again after half a minute.
    let mark = story.models.mark();
    story.kubectl(&["delete", "service", "chat"]).await?;
    let ready = story.model_until(mark, "chat", "Ready once the name is free", READY, node::settled).await?;
    let since = ready.at - seen.at;
    println!(
        "foreign Service: NameConflict, untouched; Ready {:.1} s later, after it was deleted",
        since.as_secs_f64()
    );
    Ok(())
}
