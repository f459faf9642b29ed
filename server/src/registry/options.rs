//! What the process is told about its repository.

use std::{collections::BTreeSet, path::PathBuf, str::FromStr, time::Duration};

use candela_engine::EngineConfig;
use candela_wire::config::ServerConfig;

use crate::Fatal;

/// Where models come from beside the configuration, and how long things may take.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// A folder `<model>/<version>/<files>`.
    pub repository: Option<PathBuf>,
    pub control: Control,
    /// What the repository's models may take together; `None` = what those of the configuration leave of the limit.
    pub memory_bytes: Option<u64>,
    /// That a request may wait for a model to be loaded.
    pub wait: Duration,
    /// That requests have to end when their model is unloaded.
    pub drain: Duration,
    pub aliases: Vec<Alias>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            repository: None,
            control: Control::Explicit,
            memory_bytes: None,
            wait: Duration::from_secs(60),
            drain: Duration::from_secs(30),
            aliases: Vec::new(),
        }
    }
}

/// Who says what is loaded. The first two are Triton's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Control {
    /// All of it, at the start.
    None,
    /// Whoever asks for `load` and `unload`.
    Explicit,
    /// Those, and any request that names a model.
    OnDemand,
}

/// `NAME=MODEL[:VERSION]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub name: String,
    pub of: String,
}

impl FromStr for Alias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, of)) if !name.is_empty() && !of.is_empty() => {
                if http::HeaderValue::from_str(name).is_err() {
                    return Err("the alias must be plain text".to_owned());
                }
                Ok(Self { name: name.to_owned(), of: of.to_owned() })
            }
            _ => Err("must be NAME=MODEL or NAME=MODEL:VERSION".to_owned()),
        }
    }
}

impl RegistryOptions {
    pub(super) fn check(&self, config: &ServerConfig, engine: &EngineConfig) -> Result<(), Fatal> {
        if let (Some(memory), Some(limit)) = (self.memory_bytes, engine.memory_limit_bytes)
            && memory > limit
        {
            return Err(Fatal::config(format!(
                "`--model-memory-bytes {memory}` is more than the {limit} bytes that this container leaves for models"
            )));
        }
        let mut names = BTreeSet::new();
        for Alias { name, .. } in &self.aliases {
            let refuse = |what: &str| Err(Fatal::config(format!("`--model-alias {name}=…`: {what}")));
            if config.models.iter().any(|model| model.served_name == *name) {
                return refuse("a model of the configuration has this name");
            }
            if !names.insert(name) {
                return refuse("it is there twice");
            }
        }
        Ok(())
    }
}
