//! Where a model's files are, and whether they are the ones that were asked for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candela_engine::{ModelSource, SamplingParams};
use candela_wire::{config::ModelConfig, termination::ExitReason};

use super::{
    DEMO,
    sampling::{GENERATION_CONFIG, sampling_defaults},
};
use crate::{
    Fatal,
    exit::Chain,
    fetch::{
        facts::FetchFacts,
        source::{Location, Source, redacted},
    },
};

/// What the engine reads, and what lies beside it.
pub(super) struct Files {
    pub(super) source: ModelSource,
    pub(super) defaults: SamplingParams,
    /// Left by the init step, if there was one.
    pub(super) facts: Option<FetchFacts>,
}

impl Files {
    pub(super) fn find(source: &Source, config: &ModelConfig, models_dir: &Path) -> Result<Self, Fatal> {
        let path = match &source.location {
            Location::Builtin => {
                let settings = DEMO.iter().find(|file| file.name == GENERATION_CONFIG);
                let defaults = sampling_defaults(settings.map(|file| file.bytes))?;
                return Ok(Self { source: ModelSource::Embedded(DEMO), defaults, facts: None });
            }
            Location::Path(path) => path.clone(),
            Location::Hub { .. } | Location::HttpFile(_) | Location::HttpFolder(_) => {
                models_dir.join(source.folder_name())
            }
        };
        let missing = |what: &str| {
            let message = format!("{what} `{}` not found: is `{}` right?", path.display(), config.uri);
            Fatal::new(ExitReason::WeightsNotFound, message)
        };
        let facts = match &source.location {
            // What lies on somebody's volume is not a fetch of ours, whatever it says.
            Location::Path(_) => None,
            _ => Some(finished_fetch(&path, config)?),
        };
        if path.is_file() {
            let defaults = SamplingParams::default();
            return Ok(Self { source: ModelSource::GgufFile(path), defaults, facts });
        }
        if !path.is_dir() {
            return Err(missing("the model's folder"));
        }
        let settings = match read_settings(&path.join(GENERATION_CONFIG)) {
            Ok(bytes) => Some(bytes),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => None,
            Err(err) => {
                let message = format!("cannot read `{}/{GENERATION_CONFIG}`: {err}", path.display());
                return Err(Fatal::new(ExitReason::WeightsNotFound, message));
            }
        };
        let defaults = sampling_defaults(settings.as_deref())?;
        let source = match only_gguf(&path, config, facts.as_ref())? {
            Some(file) => ModelSource::GgufFile(file),
            None => ModelSource::Folder(path),
        };
        Ok(Self { source, defaults, facts })
    }
}

/// What the init step left, if it is what this configuration asks for. A container that restarts finds the files of
/// its pod, and they must be those of its own configuration.
fn finished_fetch(folder: &Path, config: &ModelConfig) -> Result<FetchFacts, Fatal> {
    let facts = FetchFacts::read(folder)
        .map_err(|err| Fatal::new(ExitReason::WeightsFetchFailed, format!("{}", Chain(&err))))?;
    let facts = facts.ok_or_else(|| {
        Fatal::new(
            ExitReason::WeightsNotFound,
            format!("`{}` holds no finished fetch: run `candela-server fetch` first", folder.display()),
        )
    })?;
    if facts.uri != config.uri || facts.revision != config.revision {
        let of = |uri: &str, revision: &Option<String>| match revision {
            Some(revision) => format!("`{}` at `{revision}`", redacted(uri)),
            None => format!("`{}`", redacted(uri)),
        };
        return Err(Fatal::new(
            ExitReason::InvalidConfiguration,
            format!(
                "`{}` holds {}, the configuration asks for {}: fetch again, or delete the pod",
                folder.display(),
                of(&facts.uri, &facts.revision),
                of(&config.uri, &config.revision)
            ),
        ));
    }
    if !facts.answers(&ModelConfig { sha256: None, ..config.clone() }, folder) {
        return Err(Fatal::new(
            ExitReason::WeightsNotFound,
            format!(
                "`{}` lacks files of its fetch, or has others: fetch again, or delete the pod",
                folder.display()
            ),
        ));
    }
    Ok(facts)
}

/// A small file of plain text beside the weights, perhaps on somebody's volume.
fn read_settings(path: &Path) -> std::io::Result<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > LIMIT {
        let what = format!("it is not a plain file of at most {LIMIT} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    }
    fs::read(path)
}

/// The GGUF file of a folder, if that is what the folder is for. A fetch may have left it in a folder below, as the hub
/// has it.
fn only_gguf(
    folder: &Path,
    config: &ModelConfig,
    facts: Option<&FetchFacts>,
) -> Result<Option<PathBuf>, Fatal> {
    use candela_wire::config::Format;
    if config.format == Some(Format::Safetensors) {
        return Ok(None);
    }
    let unreadable = |err| {
        let message = format!("cannot list `{}`: {err}", folder.display());
        Fatal::new(ExitReason::WeightsNotFound, message)
    };
    let is_gguf =
        |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let mut found = Vec::new();
    if let Some(facts) = facts {
        found.extend(facts.files.iter().map(|file| folder.join(&file.name)).filter(|path| is_gguf(path)));
    } else {
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if is_gguf(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    if config.format.is_none() && folder.join("config.json").is_file() {
        return Ok(None);
    }
    match (found.pop(), found.len()) {
        (Some(file), 0) => Ok(Some(file)),
        (Some(_), others) => Err(Fatal::new(
            ExitReason::ModelUnsupported,
            format!("`{}` holds {} GGUF files: name one in `model.uri`", folder.display(), others + 1),
        )),
        (None, _) if config.format == Some(Format::Gguf) => Err(Fatal::new(
            ExitReason::WeightsNotFound,
            format!("`{}` holds no GGUF file, but `format` is Gguf", folder.display()),
        )),
        (None, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetched_gguf_is_found_where_the_hub_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "servedName": "m", "uri": "hf://org/name/q/m.gguf"
        }))
        .unwrap();
        let file = crate::fetch::facts::FileFacts {
            name: "q/m.gguf".to_owned(),
            size_bytes: 1,
            sha256: "0".repeat(64),
        };
        let facts = FetchFacts {
            uri: config.uri.clone(),
            revision: None,
            resolved_revision: None,
            digest: "0".repeat(64),
            seconds: 0.0,
            fetched_bytes: 1,
            files: vec![file],
        };
        let found = only_gguf(folder.path(), &config, Some(&facts)).unwrap();
        assert_eq!(found, Some(folder.path().join("q/m.gguf")));
        assert_eq!(only_gguf(folder.path(), &config, None).unwrap(), None);
    }
}
