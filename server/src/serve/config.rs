//! What a process is to serve: from `server.json`, or from the command line alone.

use std::{collections::BTreeSet, path::Path};

use candela_wire::config::{Batching, ModelConfig, ServerConfig, Timeouts};

use crate::Fatal;

/// Reads and checks `server.json`.
pub fn read_config(path: &Path) -> Result<ServerConfig, Fatal> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|err| {
        let what = "without it, `--model PATH` serves a model of this machine and `--model-repository` a folder of them";
        Fatal::config(format!("cannot read the configuration `{name}`: {err}; {what}"))
    })?;
    let config: ServerConfig =
        serde_json::from_slice(&text).map_err(|err| Fatal::config(format!("cannot use `{name}`: {err}")))?;
    if config.version != 1 {
        let message = format!("`{name}`: `version` is {}, this build reads 1", config.version);
        return Err(Fatal::config(message));
    }
    if config.models.is_empty() {
        return Err(Fatal::config(format!("`{name}`: `models` must hold at least one model")));
    }
    check_config(&config).map_err(|what| Fatal::config(format!("`{name}`: {what}")))?;
    Ok(config)
}

/// The configuration of a server that was told of no more than a file or folder of this machine.
pub fn local_config(model: &Path, served_name: Option<String>) -> Result<ServerConfig, Fatal> {
    let refuse = |what: String| Fatal::config(format!("`--model {}`: {what}", model.display()));
    if model.to_str().is_some_and(|text| text.contains("://")) {
        let what = "it takes a file or folder of this machine; a `uri` belongs into the configuration, whose models \
                    `candela-server fetch` brings";
        return Err(refuse(what.to_owned()));
    }
    let path = model.canonicalize().map_err(|err| refuse(err.to_string()))?;
    let text = path.to_str().ok_or_else(|| refuse("the path must be UTF-8".to_owned()))?;
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    let stem = stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let models = vec![ModelConfig::new(served_name.unwrap_or(stem), format!("file://{text}"))];
    let config = ServerConfig { models, ..empty_config() };
    check_config(&config).map_err(refuse)?;
    Ok(config)
}

/// Of a server that was told of no more than a repository.
pub fn empty_config() -> ServerConfig {
    ServerConfig {
        version: 1,
        models: Vec::new(),
        batching: Batching::default(),
        accelerator: None,
        timeouts: Timeouts::default(),
        termination_grace_seconds: 30,
        startup_stall_seconds: 600,
    }
}

/// What the types of [`ServerConfig`] cannot say.
pub(super) fn check_config(config: &ServerConfig) -> Result<(), String> {
    let is_digest =
        |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut names = BTreeSet::new();
    for model in &config.models {
        let name = model.served_name.as_str();
        if name.is_empty() || http::HeaderValue::from_str(name).is_err() {
            return Err("`servedName` must be plain text, and not empty".to_owned());
        }
        if !names.insert(name) {
            return Err(format!("two models have the `servedName` `{name}`: give one of them another"));
        }
        if model.sha256.as_deref().is_some_and(|sha256| !is_digest(sha256)) {
            return Err("`sha256` must be 64 lower-case hex digits".to_owned());
        }
    }
    let Batching { max_batch_tokens, max_sequences, max_queue, max_wait_ms } = config.batching;
    let fields = [
        ("maxBatchTokens", max_batch_tokens.map(u64::from)),
        ("maxSequences", max_sequences.map(u64::from)),
        ("maxQueue", max_queue.map(u64::from)),
        ("maxWaitMs", max_wait_ms),
    ];
    match fields.into_iter().find(|(_, value)| *value == Some(0)) {
        Some((field, _)) => Err(format!("`batching.{field}` must be a number above 0")),
        None => Ok(()),
    }
}
