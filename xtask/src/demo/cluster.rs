//! The test cluster's binary, called as a person would call it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// One named cluster.
pub(super) struct Cluster {
    binary: PathBuf,
    folder: PathBuf,
    name: String,
}

impl Cluster {
    /// `folder` holds the binary and, by name, the state of each cluster.
    pub(super) fn new(folder: &Path, name: &str) -> Result<Self> {
        let binary = folder.join("candela-cluster");
        if !binary.is_file() {
            bail!("{} is not there; first run: make cluster-bin", binary.display());
        }
        Ok(Self { binary, folder: folder.to_owned(), name: name.to_owned() })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join(&self.name).join("admin.kubeconfig")
    }

    /// A command of the binary as a person would type it.
    pub(super) fn hint(&self, command: &str) -> String {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let tail = if rest.is_empty() { String::new() } else { format!(" -- {rest}") };
        format!("{} {verb} --name {}{tail}", self.binary.display(), self.name)
    }

    pub(super) fn up(&self, options: &[&str]) -> Result<()> {
        // Its own lines are the progress that a person sees.
        let status =
            self.command("up").args(options).stdin(Stdio::null()).status().context("failed to run up")?;
        if !status.success() {
            bail!("the cluster did not start; the lines above say why");
        }
        Ok(())
    }

    pub(super) fn down(&self) -> Result<()> {
        let status = self.command("down").stdin(Stdio::null()).status().context("failed to run down")?;
        if !status.success() {
            bail!("the cluster was not removed; the lines above say why");
        }
        Ok(())
    }

    pub(super) fn load(&self, image: &Path) -> Result<()> {
        self.output(self.command("load").arg(image)).map(drop)
    }

    /// The URL on the loopback address at which a Service answers.
    pub(super) fn forward(&self, service: &str) -> Result<String> {
        let printed = self.output(self.command("forward").arg(service))?;
        let url = printed.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.with_context(|| format!("no address in what `forward` printed: {printed}"))?;
        Ok(url.trim_end_matches('/').to_owned())
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.output(self.command("kubectl").arg("--").args(args))
    }

    /// An object as JSON.
    pub(super) fn get(&self, namespace: &str, object: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "--namespace", namespace, object, "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("`kubectl get {object}` printed no JSON"))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args([verb, "--name", &self.name]);
        command
    }

    fn output(&self, command: &mut Command) -> Result<String> {
        let output = command.stdin(Stdio::null()).output().context("failed to run candela-cluster")?;
        if !output.status.success() {
            let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`candela-cluster {}` failed: {}", args.join(" "), said.trim());
        }
        String::from_utf8(output.stdout).context("candela-cluster printed something that is not UTF-8")
    }
}
