//! `candela-fetch.json`: what a finished fetch leaves beside the files, for `serve` and for the next fetch.

use std::{fs, io, path::Path};

use candela_wire::config::ModelConfig;
use serde::{Deserialize, Serialize};

/// Name of the file. It is written last: where it is, everything else is complete and verified.
pub(crate) const FILE: &str = "candela-fetch.json";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FetchFacts {
    pub(crate) uri: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<String>,
    /// Commit, where the source has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resolved_revision: Option<String>,
    /// Of the weights, as `verification.sha256` counts it.
    pub(crate) digest: String,
    pub(crate) seconds: f64,
    /// Bytes that came over the network.
    pub(crate) fetched_bytes: u64,
    pub(crate) files: Vec<FileFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileFacts {
    /// Path below the folder.
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FactsError {
    #[error("cannot read `{FILE}` in `{folder}`")]
    Io {
        folder: String,
        #[source]
        source: io::Error,
    },
    #[error("`{FILE}` in `{folder}` is not ours: delete the folder and fetch again")]
    Parse {
        folder: String,
        #[source]
        source: serde_json::Error,
    },
}

impl FetchFacts {
    /// `None`: no finished fetch here.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, FactsError> {
        let name = || folder.display().to_string();
        match fs::read(folder.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| FactsError::Parse { folder: name(), source }),
            Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(source) => Err(FactsError::Io { folder: name(), source }),
        }
    }

    /// Whether this fetch is the one that `model` asks for, and its files are still whole.
    pub(crate) fn answers(&self, model: &ModelConfig, folder: &Path) -> bool {
        let same_request = self.uri == model.uri && self.revision == model.revision;
        let same_digest = model.sha256.as_ref().is_none_or(|sha256| *sha256 == self.digest);
        let whole = |file: &FileFacts| {
            fs::metadata(folder.join(&file.name))
                .is_ok_and(|meta| meta.is_file() && meta.len() == file.size_bytes)
        };
        same_request && same_digest && self.files.iter().all(whole)
    }
}
