//! Candela on a real node: the operator's and the server's own images, installed by `kubectl apply -k`, asked over a
//! Service. One cluster for all of it, one namespace for each story.

#![expect(clippy::print_stdout, reason = "the figures of a run are read in its output")]

mod load;
mod node;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use self::node::Node;

const QUESTION: &str = "What is the capital of France?";

/// One test, so that the cluster is taken down when it ends, however it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_apply_to_an_answered_chat_on_a_real_node() -> Result<()> {
    // An `Err` says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let node = Node::up()?;
    let url = ready_and_answering(&node, "chat").await.context("apply, Ready, chat")?;
    children_are_restored(&node, "chat").context("children edited and deleted by hand")?;
    scaling_by_hand_leaves_no_difference(&node, "chat").context("diff after kubectl scale")?;
    a_foreign_service_is_left_alone(&node).context("foreign Service")?;
    rolling_update_under_load(&node, "chat", &url).await.context("rolling update under load")?;
    Ok(())
}

fn chat_body(stream: bool) -> String {
    json!({"model": "chat", "stream": stream, "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": QUESTION}]})
    .to_string()
}

async fn ready_and_answering(node: &Node, namespace: &str) -> Result<String> {
    node.namespace(namespace)?;
    node.apply_sample(namespace, "chat.yaml")?;
    let model = node.until(namespace, "llm/chat", Duration::from_secs(120), |o| {
        node::condition(o, "Ready", "True") && o["status"]["readyReplicas"] == 2
    })?;
    let status = &model["status"];
    ensure!(status["url"] == format!("http://chat.{namespace}.svc/v1"), "url: {}", status["url"]);
    let facts = &status["models"][0];
    ensure!(facts.is_object(), "status.models is empty: {status}");
    println!("model facts: {facts}\nstart-up: {}", status["startup"]);

    let url = node.cluster.forward(&format!("{namespace}/chat:http"))?;
    let client = reqwest::Client::new();
    // Pods are ready a moment before kube-proxy has written the Service's rules.
    load::until_reachable(&client, &url).await?;
    let answer = load::ask(&client, &url, chat_body(false)).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    ensure!(text.contains("Paris"), "the answer is {text:?}");
    let streamed = load::streamed_text(&load::ask(&client, &url, chat_body(true)).await?)?;
    ensure!(streamed == text, "streamed {streamed:?}, whole {text:?}");
    Ok(url)
}

fn children_are_restored(node: &Node, namespace: &str) -> Result<()> {
    let patch = r#"{"spec":{"ports":[{"port":80,"targetPort":1}]}}"#;
    node.kubectl(namespace, &["patch", "service", "chat", "--type=strategic", "-p", patch])?;
    node.until(namespace, "service/chat", Duration::from_secs(20), |o| {
        o["spec"]["ports"][0]["targetPort"] != 1
    })?;
    for child in [
        "service/chat",
        "configmap/chat-config",
        "serviceaccount/chat",
        "poddisruptionbudget/chat",
        "networkpolicy/chat",
    ] {
        let before = node.get(namespace, child)?["metadata"]["uid"].clone();
        node.kubectl(namespace, &["delete", child, "--wait=false"])?;
        node.until(namespace, child, Duration::from_secs(20), |o| {
            o["metadata"]["uid"].is_string() && o["metadata"]["uid"] != before
        })?;
    }
    node.until(namespace, "llm/chat", Duration::from_secs(60), |o| node::condition(o, "Ready", "True"))?;
    Ok(())
}

fn scaling_by_hand_leaves_no_difference(node: &Node, namespace: &str) -> Result<()> {
    node.kubectl(namespace, &["scale", "llmdeployments.candela.dev/chat", "--replicas=1"])?;
    node.until(namespace, "deployment/chat", Duration::from_secs(30), |o| o["spec"]["replicas"] == 1)?;
    node.apply_sample(namespace, "chat.yaml")?;
    node.until(namespace, "llm/chat", Duration::from_secs(60), |o| {
        node::condition(o, "Ready", "True") && o["status"]["readyReplicas"] == 2
    })?;
    // `diff` ends with 1 where something would change.
    node.kubectl(namespace, &["diff", "-f", &node::sample("chat.yaml")]).map(drop)
}

fn a_foreign_service_is_left_alone(node: &Node) -> Result<()> {
    let namespace = "foreign";
    node.namespace(namespace)?;
    node.kubectl(namespace, &["create", "service", "clusterip", "chat", "--tcp=80:1234"])?;
    let before = node.get(namespace, "service/chat")?;
    node.apply_sample(namespace, "chat.yaml")?;
    node.until(namespace, "llm/chat", Duration::from_secs(30), |o| {
        let conditions = o["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["reason"] == "NameConflict"))
    })?;
    let after = node.get(namespace, "service/chat")?;
    ensure!(before["metadata"] == after["metadata"] && before["spec"] == after["spec"], "{after}");
    // Its pods would compete with the load that follows.
    node.kubectl(namespace, &["delete", "llm/chat", "--wait=false"]).map(drop)
}

async fn rolling_update_under_load(node: &Node, namespace: &str, url: &str) -> Result<()> {
    let (updates, least) = if std::env::var_os("CANDELA_PROVE").is_some() { (3, 2_000) } else { (1, 600) };
    let load = load::Load::start(url, least, chat_body);
    for update in 1..=updates {
        let before = node.get(namespace, "deployment/chat")?["metadata"]["generation"].clone();
        let patch = json!({"spec": {"model": {"contextLength": 1024 - update * 64}}}).to_string();
        node.kubectl(namespace, &["patch", "llm/chat", "--type=merge", "-p", &patch])?;
        node.until(namespace, "deployment/chat", Duration::from_secs(120), |o| {
            let (generation, status) = (&o["metadata"]["generation"], &o["status"]);
            *generation != before
                && status["observedGeneration"] == *generation
                && status["updatedReplicas"] == 2
                && status["readyReplicas"] == 2
                && status["replicas"] == 2
        })?;
    }
    let outcome = load.finish().await;
    println!("{updates} rolling updates: {} requests, {} failed", outcome.sent, outcome.failures.len());
    ensure!(outcome.failures.is_empty(), "{:#?}", &outcome.failures[..outcome.failures.len().min(10)]);
    ensure!(outcome.sent >= least, "only {} requests", outcome.sent);
    Ok(())
}
