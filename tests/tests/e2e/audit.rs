//! The API server's audit log, read as it grows.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use candela_tests::cluster::Cluster;
use serde_json::Value;

const OPERATOR: &str = "system:serviceaccount:candela-system:candela-operator";

/// One request of the operator that was answered, or a watch of it that was opened or ended.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) uri: String,
}

impl Asked {
    pub(crate) fn of_lease(&self) -> bool {
        self.resource == "leases"
    }

    pub(crate) fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// What was written from a moment on.
pub(crate) struct Audit {
    path: PathBuf,
    offset: u64,
    /// The part of a line whose end was not written yet.
    rest: Vec<u8>,
}

impl Audit {
    pub(crate) fn from_now(cluster: &Cluster) -> Result<Self> {
        let path = cluster.audit_log();
        let offset = path.metadata().with_context(|| format!("{}", path.display()))?.len();
        Ok(Self { path, offset, rest: Vec::new() })
    }

    /// What the operator asked since the last call.
    pub(crate) fn fresh(&mut self) -> Result<Vec<Asked>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        self.offset += file.read_to_end(&mut self.rest)? as u64;
        let whole = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let mut asked = Vec::new();
        for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let event: Value = serde_json::from_slice(line)?;
            if event["user"]["username"] != OPERATOR {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            asked.push(Asked {
                verb: text(&event["verb"]),
                resource: text(&event["objectRef"]["resource"]),
                uri: text(&event["requestURI"]),
            });
        }
        Ok(asked)
    }
}
