//! The in-memory server tells no lies: random operation sequences get the same answers from the real one.

use candela_tests::conformance::{Real, compare, prepare};
use candela_tests::fake::FakeCluster;
use futures::StreamExt;

/// Sequences in flight.
const CONCURRENCY: usize = 4;

#[tokio::test]
async fn random_operations_get_the_same_answers_from_both_servers() {
    let _turn = crate::TURN.lock().await;
    let wanted = std::env::var("CANDELA_CONFORMANCE_SEQUENCES").ok().and_then(|n| n.parse().ok());
    // The slice of `make test`, and all.
    let slice = if std::env::var_os("CANDELA_PROVE").is_some() { 1_000 } else { 300 };
    let n_sequences = wanted.unwrap_or(slice);
    let first: u64 = std::env::var("CANDELA_CONFORMANCE_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let client = crate::client().await;
    prepare(&Real(client.clone())).await.unwrap();
    // Nobody but us may touch the objects.
    let cluster = crate::cluster();
    cluster.pause("kube-controller-manager").unwrap();
    let results: Vec<_> = futures::stream::iter(first..first + n_sequences)
        .map(|seed| {
            let client = client.clone();
            async move {
                let fake = FakeCluster::candela();
                prepare(&fake).await.unwrap();
                compare(&fake, &Real(client), seed).await.unwrap()
            }
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    cluster.resume("kube-controller-manager").unwrap();
    let n_operations: usize = results.iter().filter_map(|r| r.as_ref().ok()).sum();
    let different: Vec<String> =
        results.iter().filter_map(|r| r.as_ref().err()).map(ToString::to_string).collect();
    if let Some(path) = std::env::var_os("CANDELA_CONFORMANCE_REPORT") {
        std::fs::write(path, different.join("\n")).unwrap();
    }
    println!(
        "{n_sequences} sequences, {n_operations} operations alike, {} sequences differ",
        different.len()
    );
    assert!(
        different.is_empty(),
        "{} of {n_sequences} differ; the first:\n{}",
        different.len(),
        different[..different.len().min(8)].join("\n")
    );
}
