//! The gateway's token, as the real API server signs it, against the keys that the operator published and the kubelet
//! mounted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use candela_wire::trust::{
    AUDIENCE, AUTHORIZATION, DEADLINE_MS, GATEWAY_SERVICE_ACCOUNT, TRUST_KEY, TrustFile,
};
use serde_json::json;

use crate::{
    chat,
    node::{self, SYSTEM, Story, prove},
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
    // The rotation stops the operator, which would undo it.
    let story = if prove() { Story::alone("trust").await? } else { Story::beside_others("trust").await? };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": GATEWAY_SERVICE_ACCOUNT, "namespace": SYSTEM}});
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    std::fs::write(file.path(), account.to_string())?;
    story.kubectl_in(SYSTEM, &["apply", "-f", &file.path().display().to_string()]).await?;
    let url = chat::serve_sample(&story).await?;

    let gateway = token(&story, SYSTEM, GATEWAY_SERVICE_ACCOUNT, Some(AUDIENCE)).await?;
    // A pod that was faster than the kubelet's next look serves without trust meanwhile.
    let took = until_believed(&url, &gateway, true).await?;
    println!("believed {:.1} s after the pods were ready", took.as_secs_f64());

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
    if prove() {
        let scaled = |replicas: &'static str| ["scale", "deployment/candela-operator", replicas];
        story.kubectl_in(SYSTEM, &scaled("--replicas=0")).await?;
        let rotated = rotation(&story, &url, &gateway).await;
        story.kubectl_in(SYSTEM, &scaled("--replicas=2")).await?;
        rotated?;
    }
    Ok(())
}

/// The key leaves and comes back, as in the ConfigMap so in running pods, by the real kubelet.
async fn rotation(story: &Story, url: &str, gateway: &str) -> Result<()> {
    let wait = [
        "wait",
        "pod",
        "--selector=app.kubernetes.io/name=candela-operator",
        "--for=delete",
        "--timeout=120s",
    ];
    story.kubectl_in(SYSTEM, &wait).await?;
    let map = story.get(&node::kind("v1", "ConfigMap", "configmaps"), "chat-server-trust").await?;
    let text = map["data"][TRUST_KEY].as_str().context("no trust file")?;
    let uids = [
        "get",
        "pods",
        "--output",
        "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].restartCount}",
    ];
    let before = story.kubectl(&uids).await?;
    let mut file: TrustFile = serde_json::from_str(text)?;
    let key = file.jwks.keys.first_mut().context("no key")?;
    key["kid"] = json!("another");
    for (what, text, believed) in
        [("gone", serde_json::to_string(&file)?, false), ("back", text.to_owned(), true)]
    {
        story.patch("configmap/chat-server-trust", &json!({"data": {TRUST_KEY: text}})).await?;
        let took = until_believed(url, gateway, believed).await?;
        println!("the key is {what} in running pods after {:.1} s", took.as_secs_f64());
    }
    ensure!(story.kubectl(&uids).await? == before, "the pods are others, or were restarted");
    Ok(())
}

/// Several answers in a row, since two pods answer. A trusted deadline of 0 is refused; otherwise it is ignored.
async fn until_believed(url: &str, token: &str, wanted: bool) -> Result<Duration> {
    let started = Instant::now();
    let mut in_a_row = 0;
    while in_a_row < 12 {
        let believed = match asked(url, token).await? {
            (400, code) if code == "invalid_header" => true,
            (200, _) => false,
            answer => bail!("{answer:?}"),
        };
        in_a_row = if believed == wanted { in_a_row + 1 } else { 0 };
        let limit = Duration::from_secs(180);
        ensure!(started.elapsed() < limit, "believed is still not {wanted} after {limit:?}");
        node::poll_pause().await;
    }
    Ok(started.elapsed())
}
