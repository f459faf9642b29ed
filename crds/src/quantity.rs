//! A Kubernetes quantity that may be written as a number (`cpu: 2`) or as text (`memory: 4Gi`).

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// An amount of a resource, such as `500m`, `2` or `16Gi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

/// A text that is not a [`Quantity`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a quantity: write a number with an optional suffix, such as `500m`, `2` or `16Gi`")]
pub struct InvalidQuantity(String);

impl Quantity {
    /// What the API server checks; the same as Kubernetes' own parser, without spaces.
    pub const PATTERN: &str =
        r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$";

    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        match Self::nano(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidQuantity(text.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Value in billionths, so that two spellings of one amount compare equal; `None` if it is no quantity, or
    /// too large to be one.
    pub fn nano(text: &str) -> Option<i128> {
        const NANO: i128 = 1_000_000_000;
        let digits_end = text
            .char_indices()
            .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && (*c == '+' || *c == '-'))))
            .map_or(text.len(), |(at, _)| at);
        let (number, suffix) = text.split_at(digits_end);
        let negative = number.starts_with('-');
        let number = number.trim_start_matches(['+', '-']);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (multiplier, divisor): (i128, i128) = match suffix {
            "n" => (1, NANO),
            "u" => (1, 1_000_000),
            "m" => (1, 1_000),
            "" => (1, 1),
            "k" => (1_000, 1),
            "M" => (1_000_000, 1),
            "G" => (NANO, 1),
            "T" => (1_000 * NANO, 1),
            "P" => (1_000_000 * NANO, 1),
            "E" => (NANO * NANO, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            "Pi" => (1 << 50, 1),
            "Ei" => (1 << 60, 1),
            _ => {
                let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
                let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
                if exponent < 0 { (1, power) } else { (power, 1) }
            }
        };
        let scale = |part: i128| part.checked_mul(multiplier).map(|n| n / divisor);
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut nano = scale(whole.checked_mul(NANO)?)?;
        if !fraction.is_empty() {
            let kept = &fraction[..fraction.len().min(9)];
            let padded: i128 = format!("{kept:0<9}").parse().ok()?;
            nano = nano.checked_add(scale(padded)?)?;
        }
        Some(if negative { -nano } else { nano })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Int(i64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Int(number) => number.to_string(),
            Raw::Text(text) => text,
        };
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": Self::PATTERN,
            "maxLength": 32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_amount_are_equal() {
        for (a, b) in [
            ("1", "1000m"),
            ("0.5", "500m"),
            ("1Gi", "1073741824"),
            ("1e3", "1k"),
            ("1.5Gi", "1536Mi"),
            ("2", "2.0"),
        ] {
            assert_eq!(Quantity::nano(a), Quantity::nano(b), "{a} {b}");
        }
        assert!(Quantity::nano("1Gi") > Quantity::nano("1G"));
    }

    #[test]
    fn nonsense_is_no_quantity() {
        for text in ["", "Gi", "16Gb", "1 Gi", "1.2.3", "--1", ".", "1e", "1e999"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_text() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap().as_str(), "2");
    }
}
