//! Two models in the same pods, one of them fetched: both are asked by name, and the one at fault is named.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    client::{self, Connections, Once},
    node::{self, READY, Story},
    served,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_models_are_served_and_one_that_is_missing_is_named() -> Result<()> {
    let story = Story::beside_others("several-models").await?;
    let served = served::serve(&story).await?;
    let mut pair = chat::demo("pair");
    pair["spec"]["replicas"] = json!(1);
    let second = |path: &str| json!([{"servedName": "org/second", "uri": format!("{}{path}", served.url)}]);
    pair["spec"]["additionalModels"] = second("/demo/");
    story.apply(&pair).await?;
    let both = |o: &Value| node::settled(o) && o["status"]["models"][1].is_object();
    let ready = story.model_until(0, "pair", "Ready with two models", READY, both).await?;
    let models = ready.object["status"]["models"].as_array().context("models")?;
    let of = |key: &str| models.iter().map(|model| model[key].clone()).collect::<Vec<_>>();
    ensure!(of("servedName") == ["pair", "org/second"], "{models:?}");
    ensure!(of("digest")[0] == of("digest")[1], "the same weights, by two ways: {models:?}");
    ensure!(of("tasks") == [json!(["Generate"]), json!(["Generate"])], "{models:?}");
    let available = node::condition(&ready.object, "ModelAvailable")["message"].to_string();
    ensure!(available.contains("`pair`, `org/second`"), "{available}");
    println!("start-up of two models: {}", ready.object["status"]["startup"]);

    let (cluster, service) = (story.cluster.clone(), format!("{}/pair:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&service)).await??;
    let once = Once::new(&url, Connections::NewEach);
    once.until_reachable().await?;
    for name in ["pair", "org/second"] {
        let mut body = chat::body(false);
        body["model"] = json!(name);
        let answer = once.chat(&body).await?;
        ensure!(client::whole_text(&answer)?.contains("Paris"), "{name}: {answer}");
        let answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer["model"] == name, "{answer}");
    }
    let unknown = once.chat(&chat::body(false)).await.err().context("`chat` is no model of these pods")?;
    ensure!(unknown.to_string().contains("`pair`, `org/second`"), "{unknown:#}");

    // What cannot be had stalls the change, says which model it is, and leaves what serves alone.
    pair["spec"]["additionalModels"] = second("/nothing/here/");
    story.apply(&pair).await?;
    let stalled = |o: &Value| node::is(o, "Stalled", "True", "WeightsNotFound");
    let told = story.model_until(0, "pair", "Stalled", READY, stalled).await?;
    let message = node::condition(&told.object, "Stalled")["message"].to_string();
    ensure!(message.contains("model `org/second`: "), "{message}");
    ensure!(node::condition(&told.object, "Ready")["status"] == "True", "the old pod serves");
    once.chat(&{
        let mut body = chat::body(false);
        body["model"] = json!("org/second");
        body
    })
    .await?;
    Ok(())
}
