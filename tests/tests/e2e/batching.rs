//! What `spec.batching` asks for holds in the server that runs, and a change of it is a rollout.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    client::{self, Connections, Once},
    node::{self, READY, Story},
};

/// How many of so many requests at once are answered, and how many are told to come again; anything else is an error.
async fn answered_and_refused(story: &Story, n_requests: usize) -> Result<(usize, usize)> {
    let (cluster, service) = (story.cluster.clone(), format!("{}/narrow:http", story.namespace));
    let url = tokio::task::spawn_blocking(move || cluster.forward(&service)).await??;
    let once = Once::new(&url, Connections::NewEach);
    once.until_reachable().await?;
    let mut body = chat::body(false);
    body["model"] = json!("narrow");
    let answers = futures::future::join_all((0..n_requests).map(|_| once.chat(&body))).await;
    let (mut answered, mut refused) = (0, 0);
    for answer in answers {
        match answer {
            Ok(text) => {
                ensure!(client::whole_text(&text)?.contains("Paris"), "{text}");
                answered += 1;
            }
            Err(error) if error.to_string().starts_with("429") => refused += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((answered, refused))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_runs_one_waits_and_the_others_are_told_to_come_again() -> Result<()> {
    let story = Story::beside_others("batching").await?;
    let mut model = chat::demo("narrow");
    model["spec"]["replicas"] = json!(1);
    model["spec"]["batching"] = json!({"maxSequences": 1, "maxQueue": 1});
    story.apply(&model).await?;
    let narrow = story.model_until(0, "narrow", "Ready", READY, with_facts).await?;
    let (answered, refused) = answered_and_refused(&story, 24).await?;
    println!("of 24 at once, {answered} answered and {refused} refused");
    ensure!(answered > 0 && refused > 0, "{answered} answered, {refused} refused");

    let revision = narrow.object["status"]["currentRevision"].clone();
    model["spec"]["batching"] = json!({"maxSequences": 4, "maxQueue": 64});
    story.apply(&model).await?;
    let rolled = |o: &Value| with_facts(o) && o["status"]["currentRevision"] != revision;
    story.model_until(0, "narrow", "Ready with more room", READY, rolled).await?;
    // Until the replaced pod has gone, requests may still come to it, and it keeps to what it was made with.
    story.pods.until(0, "the replaced pod gone", READY, |pod| pod.gone).await?;
    let (answered, refused) = answered_and_refused(&story, 24).await?;
    ensure!((answered, refused) == (24, 0), "{answered} answered, {refused} refused");
    Ok(())
}

fn with_facts(object: &Value) -> bool {
    node::settled(object) && object["status"]["models"][0].is_object()
}
