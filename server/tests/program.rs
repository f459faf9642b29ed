//! The program itself, as a container runs it, with its panic hook and its signals.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use candela_engine::testing::TinyModel;
use candela_server::fetch;
use candela_wire::openai::{ErrorBody, ErrorKind};
use serde_json::{Value, json};
use support::{
    binary, chat_body, config, fetch_options,
    hub::{Hub, Repo},
    model_files,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// A running `candela-server serve` that is ready.
struct Program {
    child: Child,
    address: SocketAddr,
    log: tokio::task::JoinHandle<String>,
    _models: TempDir,
}

impl Program {
    async fn serving(files: Repo) -> Self {
        let hub = Hub::start(BTreeMap::from([("org/tiny".into(), files)])).await.unwrap();
        let models = TempDir::new().unwrap();
        let config = config("hf://org/tiny");
        fetch::run(fetch_options(config.clone(), models.path(), &hub.endpoint), None).await.unwrap();
        let path = |name: &str| models.path().join(name);
        std::fs::write(path("server.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let arguments = ["--config".into(), path("server.json")];
        Self::started(models, &arguments).await
    }

    /// With these arguments beside those that every test wants; `models` is kept as long as it runs.
    async fn started(models: TempDir, arguments: &[PathBuf]) -> Self {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]);
        command.args(arguments).arg("--termination-log").arg(models.path().join("why"));
        command.arg("--models-dir").arg(models.path());
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let mut address = None;
        while !log.contains("\"ready\"") {
            let line = timeout(Duration::from_secs(60), lines.next_line()).await.expect("ready in time");
            let line = line.unwrap().unwrap_or_else(|| panic!("it ended early:\n{log}"));
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            address = address.or_else(|| event["address"].as_str().map(|text| text.parse().unwrap()));
            log.push_str(&(line + "\n"));
        }
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push_str(&(line + "\n"));
            }
            log
        });
        Self { child, address: address.unwrap(), log, _models: models }
    }
}

/// The tokenizer of `files` first splits by `pattern`.
fn with_split(mut files: Repo, pattern: &str) -> Repo {
    let tokenizer = files.files.get_mut("tokenizer.json").unwrap();
    let mut json: Value = serde_json::from_slice(tokenizer).unwrap();
    let byte_level = json["pre_tokenizer"].take();
    let split =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, byte_level]});
    *tokenizer = json.to_string().into();
    files
}

#[tokio::test]
async fn a_prompt_that_makes_the_tokenizer_panic_is_500_and_the_next_one_is_answered() {
    let files = with_split(model_files(&TinyModel::default()), "(?:a|a)+$");
    let mut program = Program::serving(files).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/chat/completions", program.address);
    let ask = async |content: String| {
        let body = chat_body(json!({"messages": [{"role": "user", "content": content}]}));
        http.post(&url).json(&body).send().await.expect("it answers")
    };
    // Each `a` doubles the ways to fail: past the retry limit of the regular expression library, which panics.
    let refused = ask(format!("{}b", "a".repeat(60))).await;
    assert_eq!(refused.status(), 500);
    let error: ErrorBody = refused.json().await.unwrap();
    assert_eq!(
        (error.error.kind, error.error.code.as_deref()),
        (ErrorKind::ServerError, Some("engine_error"))
    );
    assert_eq!(ask("hi".to_owned()).await.status(), 200);
    assert!(program.child.try_wait().unwrap().is_none(), "it lives");
    program.child.kill().await.unwrap();
    let log = program.log.await.unwrap();
    assert!(log.contains("is contained"), "{log}");
}

#[tokio::test]
async fn a_file_is_served_without_a_configuration() {
    let models = TempDir::new().unwrap();
    let file = models.path().join("tiny.q8.gguf");
    TinyModel::default().write_gguf(&file).unwrap();
    let program = Program::started(models, &["--model".into(), file]).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/completions", program.address);
    let body = json!({"model": "tiny.q8", "prompt": "hi", "max_tokens": 2});
    assert_eq!(http.post(&url).json(&body).send().await.unwrap().status(), 200);
    let missing = Command::new(binary())
        .args(["serve", "--model", "nowhere.gguf", "--termination-log", "/dev/null"])
        .output()
        .await
        .unwrap();
    let log = String::from_utf8_lossy(&missing.stderr);
    assert!(!missing.status.success() && log.contains("`--model nowhere.gguf`: No such file"), "{log}");
}
