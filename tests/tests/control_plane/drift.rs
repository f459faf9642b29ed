//! GitOps on the real API server: what the operator does to a resource never shows in `kubectl diff`, whoever applied
//! it and however: not after scaling by hand, not after a rollout, not after a change of labels.

use anyhow::{Context, Result, ensure};
use candela_planner::FIELD_MANAGER;
use serde_json::{Value, json};

use crate::installation::Installation;

/// How a person or a pipeline applies.
#[derive(Clone, Copy, Debug)]
enum Apply {
    ClientSide,
    ServerSide,
}

struct Repository<'a> {
    at: &'a Installation,
    apply: Apply,
    folder: tempfile::TempDir,
}

/// What a repository may hold.
#[derive(Clone, Copy)]
struct Manifest {
    replicas: u32,
    image: &'static str,
    team: &'static str,
}

impl Repository<'_> {
    fn kubectl(&self, verb: &str, manifest: Manifest) -> Result<String> {
        let object = json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment",
            "metadata": {"name": "a", "labels": {"team": manifest.team}},
            // With what the API server leaves out or writes otherwise in the children: `false`, empty texts and lists, amounts
            // below a thousandth.
            "spec": {"replicas": manifest.replicas, "model": {},
                "engine": {"name": "Custom", "image": manifest.image, "env": [{"name": "DEBUG", "value": ""}]},
                "resources": {"requests": {"cpu": "100u", "memory": "0.5Gi"}},
                "placement": {
                    "tolerations": [{"key": "a", "operator": "Equal", "value": "", "effect": ""}],
                    "affinity": {"podAntiAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": [{
                            "topologyKey": "kubernetes.io/hostname", "namespaces": [],
                            "labelSelector": {"matchLabels": {"app": ""}, "matchExpressions": [
                                {"key": "x", "operator": "Exists", "values": []}]}}]}}},
                "podTemplate": {
                    "volumes": [{"name": "d", "emptyDir": {}}],
                    "volumeMounts": [{"name": "d", "mountPath": "/data", "readOnly": false}]}}});
        let path = self.folder.path().join("a.json");
        std::fs::write(&path, object.to_string())?;
        let path = path.display().to_string();
        let mut arguments = vec![verb, "--namespace", &self.at.namespace, "--filename", &path];
        if let Apply::ServerSide = self.apply {
            // As Argo CD does: the repository wins over whoever scaled.
            arguments.extend(["--server-side", "--force-conflicts"]);
        }
        crate::cluster().kubectl(arguments)
    }

    async fn apply(&self, manifest: Manifest) -> Result<()> {
        self.kubectl("apply", manifest)?;
        self.at.settle("a").await
    }

    /// `diff` ends with 1 where something would change, and that makes an error of what it printed.
    fn unchanged(&self, manifest: Manifest, after: &str) -> Result<()> {
        self.kubectl("diff", manifest)
            .map(drop)
            .with_context(|| format!("{:?}: diff after {after}", self.apply))
    }

    async fn deployment(&self) -> Result<Value> {
        Ok(serde_json::to_value(self.at.api("Deployment").get("a").await?)?)
    }

    async fn story(&self) -> Result<()> {
        let first = Manifest { replicas: 2, image: "nowhere.invalid/engine:1", team: "blue" };
        self.apply(first).await?;
        self.unchanged(first, "the first apply")?;
        let before = self.deployment().await?;

        let namespace = &self.at.namespace;
        crate::cluster().kubectl(["scale", "--namespace", namespace, "llm/a", "--replicas=3"])?;
        self.at.settle("a").await?;
        ensure!(
            self.deployment().await?["spec"]["replicas"] == 3,
            "the scale subresource does not reach the Deployment"
        );
        // What differs from the repository is what was scaled, and nothing else.
        self.unchanged(Manifest { replicas: 3, ..first }, "scaling by hand, in a repository that follows")?;
        ensure!(self.kubectl("diff", first).is_err(), "a diff that sees nothing at all proves nothing");
        self.apply(first).await?;
        self.unchanged(first, "scaling by hand and the next apply")?;

        let second = Manifest { image: "nowhere.invalid/engine:2", ..first };
        self.apply(second).await?;
        self.unchanged(second, "a rollout")?;
        let after = self.deployment().await?;
        let revision = |d: &Value| d["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone();
        ensure!(
            (revision(&before), revision(&after)) == (json!("1"), json!("2")),
            "one change, one rollout: {after:#}"
        );

        let third = Manifest { team: "red", ..second };
        self.apply(third).await?;
        self.unchanged(third, "a change of the resource's own labels")?;
        let relabelled = self.deployment().await?;
        ensure!(
            relabelled["metadata"]["generation"] == after["metadata"]["generation"],
            "a label of the resource changed its Deployment: {relabelled:#}"
        );
        self.only_the_status_is_ours().await
    }

    async fn only_the_status_is_ours(&self) -> Result<()> {
        let llm = self.at.api("LlmDeployment").get("a").await?;
        let managers = llm.metadata.managed_fields.unwrap_or_default();
        let candela: Vec<_> = managers
            .iter()
            .filter(|entry| !entry.manager.as_deref().is_some_and(|name| name.starts_with("kubectl")))
            .map(|entry| (entry.manager.as_deref(), entry.subresource.as_deref()))
            .collect();
        ensure!(
            candela == [(Some(FIELD_MANAGER), Some("status"))],
            "the operator owns more than the status, or less: {candela:?}"
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diff_stays_empty_after_scaling_by_hand_and_after_rollouts() {
    let _turn = crate::TURN.lock().await;
    for apply in [Apply::ClientSide, Apply::ServerSide] {
        let at = Installation::new(format!("drift-{apply:?}").to_lowercase()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository { at: &at, apply, folder };
        at.run(repository.story()).await.unwrap();
        println!("{apply:?}: kubectl diff is empty after apply, scale, rollout, relabelling");
    }
}
