//! The one `Duration` type: a sum of whole units, such as `90s` or `1h30m`, kept as the user wrote it.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time such as `30s`, `15m` or `1d12h`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    text: String,
    value: std::time::Duration,
}

/// A text that is not a [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: write whole numbers with the units d, h, m, s or ms, such as `90s` or `1h30m`"
)]
pub struct InvalidDuration(String);

impl Duration {
    /// What the API server checks.
    pub const PATTERN: &str = "^([0-9]+(d|h|m|s|ms))+$";
    /// Longest text.
    pub const MAX_LENGTH: u32 = 32;

    pub fn parse(text: &str) -> Result<Self, InvalidDuration> {
        let millis = parse_millis(text).ok_or_else(|| InvalidDuration(text.to_owned()))?;
        Ok(Self { text: text.to_owned(), value: std::time::Duration::from_millis(millis) })
    }

    pub fn value(&self) -> std::time::Duration {
        self.value
    }

    pub fn as_millis(&self) -> u64 {
        u64::try_from(self.value.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whole seconds, rounded up, as the Kubernetes fields in seconds want them.
    pub fn as_secs_ceil(&self) -> i32 {
        i32::try_from(self.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
    }
}

fn parse_millis(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > Duration::MAX_LENGTH as usize {
        return None;
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let unit = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(number.checked_mul(unit)?)?;
    }
    Some(total)
}

impl TryFrom<String> for Duration {
    type Error = InvalidDuration;

    fn try_from(text: String) -> Result<Self, InvalidDuration> {
        Self::parse(&text)
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.text
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "duration",
            "pattern": Self::PATTERN,
            "maxLength": Self::MAX_LENGTH,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        for (text, millis) in [("90s", 90_000), ("1h30m", 5_400_000), ("1d", 86_400_000), ("1m500ms", 60_500)]
        {
            assert_eq!(Duration::parse(text).unwrap().as_millis(), millis, "{text}");
        }
        assert_eq!(Duration::parse("1ms").unwrap().as_secs_ceil(), 1);
    }

    #[test]
    fn nonsense_is_refused_with_the_way_out() {
        for text in ["", "5", "5 m", "m", "1.5h", "-1s", "1w", "99999999999999999999s", "9999999999999999d"] {
            let err = Duration::parse(text).unwrap_err().to_string();
            assert!(err.contains("such as `90s`"), "{text}: {err}");
        }
    }

    #[test]
    fn the_text_survives_a_round_trip() {
        let json = serde_json::json!("1h30m");
        let parsed: Duration = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), json);
    }
}
