//! A real API server without a node: the in-memory server is compared with it, the operator's process is killed at
//! each write that it sends there, and what people and Argo CD see of resources is read back from it. Needs root,
//! `make cluster-bin` and `make images`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and print their figures"
)]

mod admission;
mod argocd;
mod conformance;
mod crash;
mod drift;
mod installation;

use std::sync::OnceLock;

use candela_tests::cluster::{Cluster, Options};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// The comparison pauses the controller manager, which the crash test needs: one test at a time.
pub(crate) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// One control plane for all tests of this program; it ends with the process.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options { control_plane_only: true, ..Options::named("t-control") };
        let cluster = Cluster::up(&options).unwrap();
        let crd = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crd/llmdeployments.candela.dev.yaml");
        cluster.kubectl(["apply", "--server-side", "-f", crd]).unwrap();
        cluster.wait_for_crds().unwrap();
        cluster
    })
}

/// A client without retries: each answer is to be seen.
pub(crate) async fn client() -> kube::Client {
    let config = Kubeconfig::read_from(cluster().kubeconfig()).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    kube::Client::try_from(config).unwrap()
}
