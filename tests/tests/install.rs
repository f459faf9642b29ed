//! `kubectl apply -k` against a real API server: the manifests install, their pods are admitted, the samples are taken,
//! and the version of Kubernetes that the README claims is the one that this ran on.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candela_tests::cluster::{Cluster, Options};
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifests(path: &str) -> String {
    repository().join("manifests").join(path).display().to_string()
}

fn get(cluster: &Cluster, arguments: &[&str]) -> Result<Value> {
    let text = cluster.kubectl([&["get", "--output", "json"], arguments].concat())?;
    serde_json::from_str(&text).context("kubectl printed no JSON")
}

#[test]
fn manifests_install_and_samples_are_taken_by_a_real_api_server() -> Result<()> {
    let cluster = Cluster::up(&Options { control_plane_only: true, ..Options::named("install") })?;
    the_readme_claims_this_version(&cluster)?;
    the_overlay_of_the_documentation_builds(&cluster)?;

    for overlay in ["default", "overlays/test"] {
        let path = manifests(overlay);
        cluster
            .kubectl(["apply", "--validate=strict", "-k", &path])
            .with_context(|| format!("apply -k {overlay}"))?;
        cluster.wait_for_crds()?;
        // `diff` ends with 1 where something would change.
        let changed =
            cluster.kubectl(["diff", "-k", &path]).map_or_else(|e| e.to_string(), |_| String::new());
        assert_eq!(changed, "", "a second apply -k {overlay} changes something");
    }

    // What the namespace enforces shows in what the ReplicaSet may create; there is no node to run it.
    pods_are_admitted(&cluster)?;

    for item in fs::read_dir(manifests("samples"))? {
        let path = item?.path();
        if !path.ends_with("kustomization.yaml") {
            let path = path.display().to_string();
            cluster.kubectl(["apply", "--dry-run=server", "--validate=strict", "-f", &path])?;
        }
    }
    cluster.kubectl(["apply", "--validate=strict", "-k", &manifests("samples")])?;
    // Without `observedGeneration` of the present generation nobody may take a new object for current.
    let chat = get(&cluster, &["llm", "chat"])?;
    assert_eq!(chat["status"]["observedGeneration"], -1);
    Ok(())
}

/// The operator may do what its code does and nothing else that a test could think of.
#[test]
fn the_operator_has_the_rights_it_needs_and_no_wider_ones() -> Result<()> {
    let cluster = Cluster::up(&Options { control_plane_only: true, ..Options::named("rights") })?;
    cluster.kubectl(["apply", "-k", &manifests("default")])?;
    let account = "system:serviceaccount:candela-system:candela-operator";
    let may = |arguments: &[&str]| -> bool {
        // `can-i` ends with 1 for no.
        cluster.kubectl([&["auth", "can-i", "--as", account], arguments].concat()).is_ok()
    };
    for kind in ["deployments.apps", "services", "serviceaccounts", "configmaps"] {
        assert!(may(&["patch", kind, "-n", "default"]), "patch {kind}");
        assert!(may(&["delete", kind, "-n", "default"]), "delete {kind}");
    }
    for kind in ["poddisruptionbudgets.policy", "networkpolicies.networking.k8s.io"] {
        assert!(may(&["patch", kind, "-n", "default"]), "patch {kind}");
    }
    assert!(may(&["watch", "llmdeployments.candela.dev", "--all-namespaces"]));
    assert!(may(&["update", "llmdeployments.candela.dev", "--subresource=status", "-n", "default"]));
    assert!(may(&["watch", "pods", "--all-namespaces"]));
    assert!(may(&["update", "leases.coordination.k8s.io/candela-operator", "-n", "candela-system"]));

    for (verb, kind) in
        [("update", "leases.coordination.k8s.io/other"), ("create", "pods"), ("create", "pods/exec")]
    {
        assert!(!may(&[verb, kind, "-n", "candela-system"]), "{verb} {kind}");
    }
    assert!(
        !may(&["patch", "llmdeployments.candela.dev", "-n", "default"]),
        "the operator never writes a spec"
    );
    assert!(!may(&["create", "clusterrolebindings.rbac.authorization.k8s.io"]));
    assert!(!may(&["delete", "nodes"]));
    assert!(may(&["watch", "secrets", "--all-namespaces"]), "whether they exist");
    for verb in ["get", "create", "patch", "update", "delete"] {
        assert!(!may(&[verb, "secrets", "-n", "default"]), "{verb} secrets");
    }
    Ok(())
}

fn the_readme_claims_this_version(cluster: &Cluster) -> Result<()> {
    let version: Value = serde_json::from_str(&cluster.kubectl(["version", "--output", "json"])?)?;
    let server = &version["serverVersion"];
    let part = |key: &str| server[key].as_str().unwrap_or_default().trim_end_matches('+').to_owned();
    let claim = format!("- Kubernetes {}.{}.", part("major"), part("minor"));
    let readme = fs::read_to_string(repository().join("README.md"))?;
    ensure!(readme.contains(&claim), "README.md must claim what this ran on: `{claim}`");
    Ok(())
}

/// The one of `docs/how-to/install.md`, word for word but for the path of the manifests.
fn the_overlay_of_the_documentation_builds(cluster: &Cluster) -> Result<()> {
    let page = fs::read_to_string(repository().join("docs/how-to/install.md"))?;
    let overlay =
        page.split("```yaml\n# kustomization.yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let overlay = overlay.context("the page has no kustomization.yaml")?;
    // Kustomize takes relative paths only.
    let folder = tempfile::Builder::new().prefix("overlay-").tempdir_in(repository().join("target"))?;
    let text = overlay.replace("path/to/manifests", "../../manifests");
    ensure!(text != overlay, "the page names no path/to/manifests");
    fs::write(folder.path().join("kustomization.yaml"), text)?;
    let settings = fs::read_to_string(manifests("operator/operator.yaml"))?;
    let settings = settings.replace("networkPolicyEnforced: Unknown", "networkPolicyEnforced: Yes");
    fs::write(folder.path().join("operator.yaml"), settings)?;
    let built = cluster.kubectl(["kustomize", &folder.path().display().to_string()])?;
    for part in ["image: registry.example.com/candela/operator:0.1.0", "networkPolicyEnforced: Yes"] {
        ensure!(built.contains(part), "no `{part}` in what the overlay of install.md builds:\n{built}");
    }
    ensure!(!built.contains("networkPolicyEnforced: Unknown"), "the overlay keeps the default configuration");
    Ok(())
}

fn pods_are_admitted(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let pods =
            get(cluster, &["pods", "-n", "candela-system", "-l", "app.kubernetes.io/name=candela-operator"])?;
        if pods["items"].as_array().is_some_and(|pods| pods.len() >= 2) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let events = cluster.kubectl(["events", "-n", "candela-system"])?;
            bail!("the operator's pods were not created:\n{events}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}
