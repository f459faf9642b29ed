//! What a failed attempt is: whose fault, and when to try again.

use std::fmt;

use kube::core::Status;
use tokio::time::Duration;

use crate::backoff::Retry;

/// An attempt failed; a condition that cannot be met is not an error but a finding of the planner.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {verb} {object}")]
    Call {
        verb: &'static str,
        object: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the stored object is not one that this version can read")]
    Malformed {
        #[source]
        source: serde_path_to_error::Error<serde_json::Error>,
    },
    #[error("failed to write {object} as JSON")]
    Encode {
        object: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("a pass panicked: {0}")]
    Panicked(String),
    #[error("{object} changed while it was worked on")]
    Stale { object: String },
    #[error("deleting children of {owners} resources within a minute looks like a mistake; waiting")]
    Brake { owners: usize },
}

impl Error {
    pub(crate) fn call(verb: &'static str, object: impl Into<String>, source: kube::Error) -> Self {
        Self::Call { verb, object: object.into(), source: Box::new(source) }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Stale { .. } => Retry::Soon,
            Self::Malformed { .. } => Retry::OnChange,
            Self::Encode { .. } | Self::Panicked(_) | Self::Brake { .. } => Retry::Backoff,
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 409 => Retry::Soon,
                kube::Error::Api(status) if status.code == 404 => Retry::Soon,
                kube::Error::Api(status) if status.code == 429 || status.code >= 500 => Retry::Outage,
                kube::Error::Api(_) => Retry::Backoff,
                _ => Retry::Outage,
            },
        }
    }

    /// What the server asked for, by `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        let details = self.status()?.details.as_ref()?;
        (details.retry_after_seconds > 0).then(|| Duration::from_secs(details.retry_after_seconds.into()))
    }

    /// The API server's answer, where there was one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Call { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// Label of metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Panicked(_) => "panic",
            Self::Brake { .. } => "brake",
            Self::Encode { .. } => "internal",
            Self::Stale { .. } => "conflict",
            Self::Call { .. } => match self.retry() {
                Retry::Soon => "conflict",
                Retry::Outage => "unavailable",
                Retry::Backoff | Retry::OnChange => "refused",
            },
        }
    }
}

/// Prints an error and its sources, without the ones whose text their parent already ends with: kube's own errors
/// embed theirs.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        f.write_str(&printed)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !printed.contains(&text) {
                write!(f, ": {text}")?;
                printed = text;
            }
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16) -> Error {
        let status = Status::failure("no", "Reason").with_code(code).boxed();
        Error::call("apply", "Service a/b", kube::Error::Api(status))
    }

    #[test]
    fn answers_sort_into_classes() {
        assert_eq!(api(409).retry(), Retry::Soon);
        assert_eq!(api(422).retry(), Retry::Backoff);
        assert_eq!(api(403).retry(), Retry::Backoff);
        for code in [429, 500, 503, 504] {
            assert_eq!(api(code).retry(), Retry::Outage);
        }
        let broken = Error::call("apply", "x", kube::Error::Service("connection refused".into()));
        assert_eq!(broken.retry(), Retry::Outage);
    }

    #[test]
    fn chain_does_not_repeat_embedded_sources() {
        let text = Chain(&api(422)).to_string();
        assert_eq!(text.matches("Reason").count(), 2, "{text}"); // kube prints Display and Debug of the status
        assert!(text.starts_with("failed to apply Service a/b: "), "{text}");
    }
}
