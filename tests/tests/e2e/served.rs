//! A web server inside the cluster's network, which pods reach and the host does not: weights that are there, missing,
//! forbidden, or that never come.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
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
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn serve(story: &Story) -> Result<Served> {
    let nodes = story.kubectl(&["get", "nodes", "--output", "json"]).await?;
    let nodes: Value = serde_json::from_str(&nodes)?;
    let addresses =
        nodes["items"][0]["status"]["addresses"].as_array().context("the node has no addresses")?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    let address = internal.and_then(|found| found["address"].as_str()).context("no internal address")?;
    let folder = node::repository().join("server/models").display().to_string();
    let mut command = story.cluster.command(["python3", "-c", PROGRAM, &folder]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run python3")?;
    let output = child.stdout.take().context("no output")?;
    let mut port = String::new();
    BufReader::new(output).read_line(&mut port)?;
    let served = Served { child, url: format!("http://{address}:{}", port.trim()) };
    ensure!(!port.trim().is_empty(), "the web server of this test did not start");
    Ok(served)
}
