//! `candela.json` in a model's folder: what Triton says in `config.pbtxt`, as far as it means something here.

use candela_wire::config::{Quantization, Task};
use serde::Deserialize;

/// Name of the file.
pub(super) const SETTINGS: &str = "candela.json";
/// Bytes that it may have.
pub(super) const MAX_SETTINGS_BYTES: u64 = 64 << 10;
const MAX_INSTANCES: usize = 16;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) version_policy: Policy,
    /// Engines of this model; each has weights and a queue of its own.
    instances: Option<usize>,
    /// Tokens of prompt and output together.
    pub(super) context_length: Option<u32>,
    pub(super) quantization: Option<Quantization>,
    /// What it is for; nothing = what its architecture is for.
    pub(super) tasks: Vec<Task>,
    pub(super) max_sequences: Option<usize>,
    pub(super) kv_cache_tokens: Option<usize>,
}

/// Which versions are loaded, as in Triton's `version_policy`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Policy {
    /// So many, those with the highest numbers.
    Latest(usize),
    All,
    Specific(Vec<u64>),
}

impl Default for Policy {
    fn default() -> Self {
        Self::Latest(1)
    }
}

impl Policy {
    /// Of all versions that there are, ascending; `Err` = a version that is asked for and is not there.
    pub(super) fn of(&self, versions: &[u64]) -> Result<Vec<u64>, u64> {
        match self {
            Self::Latest(n) => Ok(versions[versions.len().saturating_sub(*n)..].to_vec()),
            Self::All => Ok(versions.to_vec()),
            Self::Specific(wanted) => match wanted.iter().find(|version| !versions.contains(version)) {
                Some(missing) => Err(*missing),
                None => {
                    let mut wanted = wanted.clone();
                    wanted.sort_unstable();
                    wanted.dedup();
                    Ok(wanted)
                }
            },
        }
    }
}

impl Settings {
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let settings: Self = serde_json::from_slice(text).map_err(|err| format!("`{SETTINGS}`: {err}"))?;
        let refuse = |what: &str| Err(format!("`{SETTINGS}`: {what}"));
        match &settings.version_policy {
            Policy::Latest(0) => return refuse("`versionPolicy.latest` must be a number above 0"),
            Policy::Specific(list) if list.is_empty() => {
                return refuse("`versionPolicy.specific` must name at least one version");
            }
            _ => {}
        }
        if settings.instances.is_some_and(|n| !(1..=MAX_INSTANCES).contains(&n)) {
            return refuse(&format!("`instances` must be from 1 to {MAX_INSTANCES}"));
        }
        if settings.max_sequences == Some(0) {
            return refuse("`maxSequences` must be a number above 0");
        }
        Ok(settings)
    }

    pub(super) fn instances(&self) -> usize {
        self.instances.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_choose_versions() {
        let of = |text: &str| {
            let settings = Settings::parse(text.as_bytes()).unwrap();
            settings.version_policy.of(&[1, 3, 20])
        };
        assert_eq!(of("{}"), Ok(vec![20]));
        assert_eq!(of(r#"{"versionPolicy": {"latest": 2}}"#), Ok(vec![3, 20]));
        assert_eq!(of(r#"{"versionPolicy": {"latest": 9}}"#), Ok(vec![1, 3, 20]));
        assert_eq!(of(r#"{"versionPolicy": "all"}"#), Ok(vec![1, 3, 20]));
        assert_eq!(of(r#"{"versionPolicy": {"specific": [3, 1, 3]}}"#), Ok(vec![1, 3]));
        assert_eq!(of(r#"{"versionPolicy": {"specific": [2]}}"#), Err(2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, words) in [
            (r#"{"versionPolicy": {"latest": 0}}"#, "versionPolicy.latest"),
            (r#"{"versionPolicy": {"specific": []}}"#, "versionPolicy.specific"),
            (r#"{"versionPolicy": {"newest": 1}}"#, "newest"),
            (r#"{"instances": 0}"#, "instances"),
            (r#"{"instances": 17}"#, "instances"),
            (r#"{"maxSequences": 0}"#, "maxSequences"),
            (r#"{"instanceGroup": []}"#, "instanceGroup"),
            ("[", "candela.json"),
        ] {
            let err = Settings::parse(text.as_bytes()).unwrap_err();
            assert!(err.contains(words), "{text}: {err}");
        }
    }
}
