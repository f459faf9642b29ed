//! `operator.yaml`: everything about this installation that is not a resource. Unknown fields are refused; each
//! error names the field.

use std::{fmt, path::Path, str::FromStr};

use candela_crds::EngineName;
use candela_planner::{ImageRule, NetworkPolicyEnforced, Settings};
use serde::{Deserialize, Serialize};
use tokio::time::Duration;

/// The whole file. An empty one is valid but knows no images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OperatorConfig {
    /// Which image serves which engine on which device.
    pub images: Vec<ImageRule>,
    /// Whether the cluster's CNI enforces NetworkPolicy; shown as a condition where a policy is asked for.
    pub network_policy_enforced: NetworkPolicyEnforced,
    /// Where `hf://` models come from, as `https://HOST`; absent = the public hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_endpoint: Option<String>,
    pub lease: LeaseConfig,
    pub concurrency: Concurrency,
    pub client_timeouts: ClientTimeouts,
}

/// Leader election.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaseConfig {
    pub name: String,
    /// How long a leader that is not heard of is waited for.
    pub duration: Span,
    /// Time between two renewals, and between two looks of a standby.
    pub retry_period: Span,
    /// How long before its end the leader stops writing: more than clocks drift apart within one lease.
    pub margin: Span,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            name: "candela-operator".to_owned(),
            duration: Span::secs(15),
            retry_period: Span::secs(2),
            margin: Span::secs(3),
        }
    }
}

/// Bounds on work at hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Concurrency {
    /// Resources worked on at the same time.
    pub passes: usize,
    /// Calls to the API server at the same time, watches not counted.
    pub calls: usize,
    /// Calls to the API server per second, and how many at once after a pause.
    pub calls_per_second: f64,
    pub call_burst: f64,
    /// Pods asked for their internal status at the same time.
    pub status_pulls: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { passes: 8, calls: 16, calls_per_second: 50.0, call_burst: 100.0, status_pulls: 16 }
    }
}

/// Deadlines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientTimeouts {
    pub connect: Span,
    /// Head and body of one call.
    pub call: Span,
    /// After this time without a byte, a bookmark included, a watch is opened anew.
    pub watch_idle: Span,
    /// One pull of a pod's internal status.
    pub status_pull: Span,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self {
            connect: Span::secs(5),
            call: Span::secs(10),
            watch_idle: Span::secs(120),
            status_pull: Span::secs(2),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read the configuration `{path}`")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration `{path}` cannot be used")]
    Parse {
        path: String,
        #[source]
        source: serde_yaml::Error,
    },
    #[error("`{field}` in the configuration {problem}")]
    Invalid { field: String, problem: String },
}

impl OperatorConfig {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&text, &name)
    }

    /// Parses and checks; `name` is for messages.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let config: Self = if text.trim().is_empty() {
            Self::default()
        } else {
            serde_yaml::from_str(text)
                .map_err(|source| ConfigError::Parse { path: name.to_owned(), source })?
        };
        config.check()?;
        Ok(config)
    }

    /// The planner's part.
    pub fn settings(&self, operator_namespace: &str) -> Settings {
        Settings {
            images: self.images.clone(),
            network_policy_enforced: self.network_policy_enforced,
            operator_namespace: operator_namespace.to_owned(),
            hub_endpoint: self.hub_endpoint.clone(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid =
            |field: String, problem: &str| Err(ConfigError::Invalid { field, problem: problem.to_owned() });
        for (at, image) in self.images.iter().enumerate() {
            if image.image.trim().is_empty() {
                return invalid(
                    format!("images[{at}].image"),
                    "is empty; write an image with its tag or digest",
                );
            }
            if image.engine == EngineName::Custom {
                return invalid(
                    format!("images[{at}].engine"),
                    "is Custom, which brings its image in the resource; write Candle",
                );
            }
            let twice =
                self.images[..at].iter().any(|o| (o.engine, o.device) == (image.engine, image.device));
            if twice {
                return invalid(
                    format!("images[{at}]"),
                    "has the engine and device of an earlier entry; keep one of them",
                );
            }
        }
        let is_url = |text: &String| text.starts_with("https://") || text.starts_with("http://");
        if !self.hub_endpoint.iter().all(is_url) {
            return invalid("hubEndpoint".to_owned(), "is not a URL; write https://HOST");
        }
        let lease = &self.lease;
        if lease.name.is_empty() {
            return invalid("lease.name".to_owned(), "is empty");
        }
        if lease.duration.0 < Duration::from_secs(1) {
            return invalid("lease.duration".to_owned(), "is below 1s, the unit that a Lease counts in");
        }
        if lease.duration.0.subsec_nanos() != 0 {
            return invalid(
                "lease.duration".to_owned(),
                "is not in whole seconds, the unit that a Lease counts in",
            );
        }
        if lease.retry_period.0.is_zero() {
            return invalid("lease.retryPeriod".to_owned(), "is zero; write for example 2s");
        }
        if lease.margin.0 + 2 * lease.retry_period.0 >= lease.duration.0 {
            return invalid(
                "lease.duration".to_owned(),
                "is too short: margin and two retry periods must fit into it, so that one failed renewal is not the end",
            );
        }
        for (field, value) in [
            ("concurrency.passes", self.concurrency.passes),
            ("concurrency.calls", self.concurrency.calls),
            ("concurrency.statusPulls", self.concurrency.status_pulls),
        ] {
            if value == 0 || value > 1024 {
                return invalid(field.to_owned(), "must be between 1 and 1024");
            }
        }
        for (field, value) in [
            ("concurrency.callsPerSecond", self.concurrency.calls_per_second),
            ("concurrency.callBurst", self.concurrency.call_burst),
        ] {
            if !(value.is_finite() && value >= 1.0) {
                return invalid(field.to_owned(), "must be a number of at least 1");
            }
        }
        let timeouts = &self.client_timeouts;
        for (field, value) in [
            ("clientTimeouts.connect", timeouts.connect),
            ("clientTimeouts.call", timeouts.call),
            ("clientTimeouts.watchIdle", timeouts.watch_idle),
            ("clientTimeouts.statusPull", timeouts.status_pull),
        ] {
            if value.0.is_zero() {
                return invalid(field.to_owned(), "is zero; write for example 10s");
            }
        }
        Ok(())
    }
}

/// A time as `15s`, `2m`, `500ms`; the units of the resources' durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a duration; write for example 15s, 2m or 500ms");
        let mut rest = text;
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let value: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let millis: u64 = match &rest[..unit_len] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(bad()),
            };
            rest = &rest[unit_len..];
            total = value
                .checked_mul(millis)
                .and_then(|millis| total.checked_add(Duration::from_millis(millis)))
                .ok_or_else(bad)?;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_millis() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ms", self.0.as_millis())
        }
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Chain;

    fn error(text: &str) -> String {
        let error = OperatorConfig::parse(text, "operator.yaml").expect_err("it is refused");
        Chain(&error).to_string()
    }

    #[test]
    fn a_full_file_is_read() {
        let text = "
images:
- {engine: Candle, device: Cpu, image: 'candela.local/server:dev'}
- {engine: Candle, device: Nvidia, image: 'candela.local/server:dev', args: ['--device', 'cpu']}
networkPolicyEnforced: No
lease: {duration: 10s, retryPeriod: 500ms}
clientTimeouts: {call: 1m30s}
";
        let config = OperatorConfig::parse(text, "operator.yaml").expect("it is valid");
        assert_eq!(config.images.len(), 2);
        assert_eq!(config.network_policy_enforced, NetworkPolicyEnforced::No);
        assert_eq!(config.lease.retry_period, Span::millis(500));
        assert_eq!(config.client_timeouts.call, Span::secs(90));
        let again = serde_yaml::to_string(&config).expect("it can be written");
        assert_eq!(OperatorConfig::parse(&again, "again").expect("its own text is valid"), config);
    }

    #[test]
    fn errors_name_the_field_and_the_way_out() {
        assert!(error("imges: []").contains("unknown field `imges`"));
        assert!(error("lease: {duration: soon}").contains("`soon` is not a duration; write for example 15s"));
        assert!(
            error("lease: {duration: 4s}").contains("`lease.duration` in the configuration is too short")
        );
        assert!(error("concurrency: {passes: 0}").contains("`concurrency.passes`"));
        let twice =
            "images: [{engine: Candle, device: Cpu, image: a}, {engine: Candle, device: Cpu, image: b}]";
        assert!(error(twice).contains("`images[1]`"));
        assert!(error("images: [{engine: Vllm, device: Cpu, image: a}]").contains("images[0].engine"));
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(OperatorConfig::parse("\n", "x").expect("valid"), OperatorConfig::default());
    }

    #[test]
    fn spans_do_not_overflow() {
        assert!("18446744073709551615d".parse::<Span>().is_err());
        assert!("5".parse::<Span>().is_err());
        assert!("-5s".parse::<Span>().is_err());
    }
}
