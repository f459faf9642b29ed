//! The program on a tiny model, what it holds, and requests to it.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use candela_engine::testing::{END_OF_TEXT, TinyModel};
use candela_wire::internal::{ProcessStatus, Requests, STATUS_PATH};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::PATIENCE;

pub(crate) const NAME: &str = "tiny";

/// A running `candela-server serve` that is ready; it ends with the value.
pub(crate) struct Program {
    pub(crate) address: SocketAddr,
    pub(crate) http: reqwest::Client,
    internal: SocketAddr,
    child: Child,
    _folder: TempDir,
}

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) resident_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
}

impl Program {
    pub(crate) async fn serving(model: &TinyModel, flags: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let files = folder.path().join(NAME);
        fs::create_dir(&files).unwrap();
        model.write_folder(&files).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_candela-server"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0", "--model"]);
        command.arg(&files).arg("--termination-log").arg(folder.path().join("why")).args(flags);
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut log, mut addresses) = (String::new(), None);
        while !log.contains("\"ready\"") {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("ready in time");
            let line = line.unwrap().unwrap_or_else(|| panic!("it ended early:\n{log}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let address = |name: &str| event[name].as_str().map(|text| text.parse().unwrap());
            addresses = addresses.or_else(|| address("address").zip(address("internal_address")));
            log.push_str(&(line + "\n"));
        }
        // A full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let (address, internal) = addresses.expect("it says where it listens");
        // The client wants one even for plain HTTP; another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, internal, http, child, _folder: folder }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn usage(&self) -> Usage {
        let folder = format!("/proc/{}", self.child.id().expect("it lives"));
        let status = fs::read_to_string(format!("{folder}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        Usage {
            resident_bytes: field("VmRSS:") << 10,
            threads: field("Threads:"),
            descriptors: fs::read_dir(format!("{folder}/fd")).unwrap().count() as u64,
        }
    }

    pub(crate) async fn requests(&self) -> Requests {
        let answer = self.http.get(format!("http://{}{STATUS_PATH}", self.internal)).send().await.unwrap();
        answer.json::<ProcessStatus>().await.unwrap().requests
    }

    /// Polls until what is at hand is as `wanted` says.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(Requests) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.requests().await;
            if wanted(now) {
                return;
            }
            assert!(Instant::now() < deadline, "it did not come to pass that {what}: {now:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn settled(&self) {
        self.until("nothing is in flight", |now| now.in_flight == 0 && now.queued == 0).await;
    }

    /// Sum of the samples of `/metrics` whose line begins with `name` and holds all of `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.http.get(format!("http://{}/metrics", self.internal)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let of = |line: &&str| {
            let rest = line.strip_prefix(name);
            let named = rest.is_some_and(|rest| rest.starts_with(['{', ' ']));
            named && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
        text.lines().filter(of).map(value).sum()
    }
}

/// A request for exactly `tokens` tokens behind a prompt of `prompt` bytes, which are as many tokens.
pub(crate) fn completion(prompt: usize, tokens: usize) -> Value {
    json!({
        "model": NAME, "prompt": "x".repeat(prompt), "max_tokens": tokens, "temperature": 0,
        "logit_bias": { END_OF_TEXT.to_string(): -100 }
    })
}
