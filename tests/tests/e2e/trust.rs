//! The gateway's token, as the real API server signs it, against the keys that the operator published and the kubelet
//! mounted.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use candela_wire::trust::{AUDIENCE, AUTHORIZATION, DEADLINE_MS, GATEWAY_SERVICE_ACCOUNT};
use serde_json::json;

use crate::{
    chat,
    node::{self, READY, SYSTEM, Story},
};

/// A token of the real API server.
async fn token(story: &Story, namespace: &str, account: &str, audience: Option<&str>) -> Result<String> {
    let mut arguments = vec!["create", "token", account];
    let audience = audience.map(|audience| format!("--audience={audience}"));
    arguments.extend(audience.as_deref());
    Ok(story.kubectl_in(namespace, &arguments).await?.trim().to_owned())
}

/// Status and code of a request with a deadline that no trusted caller may send.
async fn asked(url: &str, token: &str) -> Result<(u16, String)> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let request = client.post(format!("{url}/v1/chat/completions")).json(&chat::body(false));
    let answer =
        request.header(AUTHORIZATION, format!("Bearer {token}")).header(DEADLINE_MS, "0").send().await?;
    let status = answer.status().as_u16();
    let body: serde_json::Value = answer.json().await?;
    Ok((status, body["error"]["code"].as_str().unwrap_or_default().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_believe_the_gateways_token_and_no_other() -> Result<()> {
    let story = Story::beside_others("trust").await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": GATEWAY_SERVICE_ACCOUNT, "namespace": SYSTEM}});
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    std::fs::write(file.path(), account.to_string())?;
    story.kubectl_in(SYSTEM, &["apply", "-f", &file.path().display().to_string()]).await?;
    let url = chat::serve_sample(&story).await?;

    let gateway = token(&story, SYSTEM, GATEWAY_SERVICE_ACCOUNT, Some(AUDIENCE)).await?;
    let started = Instant::now();
    // Believed, so its deadline of 0 is refused. A pod that was faster than the kubelet's next look serves meanwhile.
    loop {
        let answer = asked(&url, &gateway).await?;
        if answer == (400, "invalid_header".to_owned()) {
            break;
        }
        ensure!(answer.0 == 200, "{answer:?}");
        ensure!(started.elapsed() < READY, "the token is still not believed after {:?}", started.elapsed());
        node::poll_pause().await;
    }
    println!("believed {:.1} s after the pods were ready", started.elapsed().as_secs_f64());

    let others = [
        ("the API server's audience", token(&story, SYSTEM, GATEWAY_SERVICE_ACCOUNT, None).await?),
        ("another account", token(&story, SYSTEM, "default", Some(AUDIENCE)).await?),
        ("another namespace", token(&story, &story.namespace, "default", Some(AUDIENCE)).await?),
        ("a changed signature", {
            let (signed, signature) = gateway.rsplit_once('.').context("a token has parts")?;
            let first = if signature.starts_with('A') { 'B' } else { 'A' };
            format!("{signed}.{first}{}", &signature[1..])
        }),
    ];
    for (what, token) in others {
        let answer = asked(&url, &token).await?;
        ensure!(answer == (401, "invalid_gateway_token".to_owned()), "{what}: {answer:?}");
    }
    Ok(())
}
