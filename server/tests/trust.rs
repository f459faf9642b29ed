//! The keys of the cluster change while requests are under way.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use candela_engine::testing::TinyModel;
use candela_wire::trust::{AUTHORIZATION, DEADLINE_MS, TENANT, TRUST_KEY};
use serde_json::json;
use support::{
    Server, chat_body,
    tokens::{Signer, claims, now, trust_file},
    until,
};
use tempfile::TempDir;

/// As the kubelet does: a new folder, and a link that is swapped in one step.
fn publish(dir: &Path, version: u32, signers: &[&Signer]) {
    let folder = dir.join(format!("..{version}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(TRUST_KEY), trust_file(signers).to_string()).unwrap();
    symlink(folder.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    if version == 1 {
        symlink(Path::new("..data").join(TRUST_KEY), dir.join(TRUST_KEY)).unwrap();
    }
}

fn bearer(signer: &Signer) -> String {
    format!("Bearer {}", signer.token(&claims(now())))
}

/// A deadline of 0 is refused if it is believed at all.
async fn is_trusted(server: &Server, bearer: &str) -> bool {
    let request =
        server.http.post(server.url("/v1/chat/completions")).json(&chat_body(json!({"max_tokens": 1})));
    let answer = request.header(AUTHORIZATION, bearer).header(DEADLINE_MS, "0").send().await.unwrap();
    match answer.status().as_u16() {
        400 => true,
        200 => false,
        other => panic!("{other}: {}", answer.text().await.unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_load_and_no_request_fails() {
    let (old, new) = (Signer::rsa("old"), Signer::p256("new"));
    let dir = TempDir::new().unwrap();
    let server = Server::with(&TinyModel::default(), |options| {
        options.trust = dir.path().join(TRUST_KEY);
        options.limits.trust = Duration::from_millis(10);
    })
    .await;
    let (of_old, of_new) = (bearer(&old), bearer(&new));
    assert!(!is_trusted(&server, &of_old).await, "the ConfigMap is not there yet");

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = [&of_old, &of_new, &of_old, &of_new]
        .into_iter()
        .map(|bearer| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let request = server.http.post(server.url("/v1/chat/completions"));
            let request =
                request.header(AUTHORIZATION, bearer).header(TENANT, "a").json(&chat_body(json!({})));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = request.try_clone().unwrap().send().await.unwrap();
                    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |what: &str| {
        let seen = answered.load(Ordering::Relaxed);
        until(what, || async { answered.load(Ordering::Relaxed) >= seen + 20 }).await;
    };

    publish(dir.path(), 1, &[&old]);
    until("the old key is known", || is_trusted(&server, &of_old)).await;
    assert!(!is_trusted(&server, &of_new).await);
    more("requests flow with the old key").await;
    publish(dir.path(), 2, &[&old, &new]);
    until("the new key is known", || is_trusted(&server, &of_new)).await;
    assert!(is_trusted(&server, &of_old).await, "both are good");
    more("requests flow with both").await;
    publish(dir.path(), 3, &[&new]);
    until("the old key is gone", || async { !is_trusted(&server, &of_old).await }).await;
    assert!(is_trusted(&server, &of_new).await);
    more("requests flow with the new key").await;

    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let metrics = server.metrics().await;
    for wanted in
        ["outcome=\"trusted\"", "outcome=\"unknown_key\"", "outcome=\"no_keys\"", "outcome=\"taken\"} 3"]
    {
        assert!(metrics.contains(wanted), "no {wanted} in\n{metrics}");
    }
}
