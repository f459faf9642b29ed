//! From apply to an answered chat, and what the status says of it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    client::{self, Connections, Once},
    node::{self, READY, Story},
};

pub(crate) const QUESTION: &str = "What is the capital of France?";

/// Two replicas of the demo model on CPU, as the sample of that name has them.
pub(crate) fn demo(name: &str) -> Value {
    json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "metadata": {"name": name}, "spec": {
        "model": {"uri": "builtin://demo"},
        "replicas": 2,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
    }})
}

pub(crate) fn body(stream: bool) -> Value {
    json!({"model": "chat", "stream": stream, "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": QUESTION}]})
}

/// The sample, ready and reachable: its URL on this machine.
pub(crate) async fn serve_sample(story: &Story) -> Result<String> {
    story.kubectl(&["apply", "-f", &node::sample("chat.yaml")]).await?;
    story.model_until(0, "chat", "Ready", READY, node::settled).await?;
    let (cluster, service) = (story.cluster.clone(), format!("{}/chat:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&service)).await??;
    Once::new(&url, Connections::NewEach).until_reachable().await?;
    Ok(url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_is_answered_and_the_status_tells_the_facts() -> Result<()> {
    let story = Story::beside_others("chat").await?;
    let started = std::time::Instant::now();
    let url = serve_sample(&story).await?;
    let ready = story
        .model_until(0, "chat", "Ready", READY, |o| node::settled(o) && o["status"]["models"][0].is_object())
        .await?;
    let wall = ready.at - started;
    println!("apply to Ready: {:.1} s", wall.as_secs_f64());
    let status = &ready.object["status"];
    ensure!(status["url"] == format!("http://chat.{}.svc/v1", story.namespace), "url: {}", status["url"]);
    ensure!(status["engine"] == "Candle" && status["updatedReplicas"] == 2, "{status}");
    facts_are_those_of_the_files(&status["models"])?;
    startup_is_plausible(&status["startup"], wall)?;
    ensure!(node::is(&ready.object, "NetworkPolicyEnforced", "False", "NotEnforced"), "{status}");
    ensure!(node::is(&ready.object, "ModelAvailable", "True", "Loaded"), "{status}");

    let once = Once::new(&url, Connections::Kept);
    let text = client::whole_text(&once.chat(&body(false)).await?)?;
    ensure!(text.contains("Paris"), "the answer is {text:?}");
    let streamed = client::streamed_text(&once.chat(&body(true)).await?)?;
    ensure!(streamed == text, "streamed {streamed:?}, whole {text:?}");
    println!("{QUESTION} {text}");
    Ok(())
}

/// What the demo's own files say, read here without the server's code.
fn facts_are_those_of_the_files(models: &Value) -> Result<()> {
    let folder = node::repository().join("server/models/demo");
    let read = |name: &str| std::fs::read(PathBuf::from(&folder).join(name)).context(name.to_owned());
    let config: Value = serde_json::from_slice(&read("config.json")?)?;
    let weights = read("model.safetensors")?;
    let header_bytes = u64::from_le_bytes(weights.get(..8).context("a short file")?.try_into()?);
    let header = weights.get(8..8 + usize::try_from(header_bytes)?).context("a short header")?;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header)?;
    let elements = |tensor: &Value| {
        tensor["shape"].as_array().map(|shape| shape.iter().filter_map(Value::as_u64).product::<u64>())
    };
    let parameters: u64 =
        header.iter().filter(|(name, _)| *name != "__metadata__").filter_map(|(_, t)| elements(t)).sum();
    let sha256 =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // Of a folder: the digest of the list that `sha256sum *.safetensors` prints.
    let digest = sha256(format!("{}  model.safetensors\n", sha256(&weights)).as_bytes());
    let expected = json!({
        "servedName": "chat",
        "digest": format!("sha256:{digest}"),
        "architecture": config["architectures"][0],
        "parameters": parameters,
        "sizeBytes": weights.len(),
        "quantization": "F16",
        "contextLength": config["max_position_embeddings"],
    });
    let found = &models[0];
    println!("model facts: {found}");
    for (name, value) in expected.as_object().into_iter().flatten() {
        ensure!(found[name] == *value, "models[0].{name} is {}, the files say {value}", found[name]);
    }
    // Weights in f32 at least, as the CPU computes with them; and far less than the pod's 512 MiB.
    let memory = found["estimatedMemory"].as_u64().unwrap_or_default();
    ensure!(memory >= parameters * 4 && memory < 512 << 20, "estimatedMemory: {memory}");
    ensure!(models.as_array().is_some_and(|all| all.len() == 1), "{models}");
    Ok(())
}

/// Each phase took some time, and all of them together no more than the clock on the wall.
fn startup_is_plausible(startup: &Value, wall: Duration) -> Result<()> {
    println!("start-up: {startup}");
    let seconds = |phase: &str| startup[phase].as_f64().with_context(|| format!("no `{phase}` in {startup}"));
    let (load, warmup, first_token) = (seconds("load")?, seconds("warmup")?, seconds("firstToken")?);
    // Kubernetes writes these two with whole seconds: each may be one too many.
    let of_pod = seconds("schedule")? + seconds("imagePull")? - 2.0;
    ensure!(load > 0.0 && warmup > 0.0 && seconds("schedule")? >= 0.0, "{startup}");
    ensure!(startup.get("fetch").is_none(), "nothing is fetched for builtin://demo: {startup}");
    ensure!(first_token >= load + warmup, "the first token comes after load and warm-up: {startup}");
    let sum = of_pod + first_token;
    ensure!(sum <= wall.as_secs_f64(), "{startup} is {sum} s, but Ready came after {wall:?}");
    Ok(())
}
