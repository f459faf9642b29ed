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
    /// What the API server checks: of what Kubernetes' own parser takes, the amounts that it keeps as they are. It rounds
    /// what is finer than a billionth, and takes huge exponents for the largest number it has.
    pub const PATTERN: &str =
        r"^\+?([0-9]+(\.[0-9]{0,3})?|\.[0-9]{1,3})([umkMGTPE]|[KMGTPE]i|[eE]\+?[0-9]{1,2}|[eE]-[0-6])?$";

    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        match Self::nano(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidQuantity(text.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Value in billionths, so that two spellings of one amount compare equal; `None` if it is no quantity. As
    /// Kubernetes does it: never more than 2^63 - 1 whole units, and what is finer than a billionth counts as one.
    pub fn nano(text: &str) -> Option<i128> {
        /// Billionths in the largest amount.
        const MOST: i128 = i64::MAX as i128 * 1_000_000_000;
        let sign_end = text.len() - text.trim_start_matches(['+', '-']).len();
        let (sign, unsigned) = text.split_at(sign_end);
        let negative = match sign {
            "" | "+" => false,
            "-" => true,
            _ => return None,
        };
        let digits_end = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') {
            return None;
        }
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let (binary, decimal): (u32, i32) = match suffix {
            "n" => (0, -9),
            "u" => (0, -6),
            "m" => (0, -3),
            "" => (0, 0),
            "k" => (0, 3),
            "M" => (0, 6),
            "G" => (0, 9),
            "T" => (0, 12),
            "P" => (0, 15),
            "E" => (0, 18),
            "Ki" => (10, 0),
            "Mi" => (20, 0),
            "Gi" => (30, 0),
            "Ti" => (40, 0),
            "Pi" => (50, 0),
            "Ei" => (60, 0),
            _ => (0, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
        };
        let places = i32::try_from(fraction.len()).ok()?;
        let exponent = decimal.saturating_add(9).saturating_sub(places);
        let power = 10_i128.checked_pow(exponent.unsigned_abs());
        let nano = if digits == 0 {
            0
        } else if exponent >= 0 {
            let whole =
                digits.checked_mul(1 << binary).zip(power).and_then(|(n, power)| n.checked_mul(power));
            whole.map_or(MOST, |nano| nano.min(MOST))
        } else {
            match (digits.checked_mul(1 << binary), power) {
                // Rounded up, in whole numbers.
                (Some(n), Some(power)) => (n / power + i128::from(n % power != 0)).min(MOST),
                (_, None) => 1,
                (None, _) => MOST,
            }
        };
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
    fn what_kubernetes_caps_or_rounds_is_equal_to_what_it_stores() {
        for (written, stored) in [
            ("1e999", "9223372036854775807"),
            ("100E", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("0.0000000001", "1n"),
            ("1.5n", "2n"),
            ("1e-999", "1n"),
            ("-100E", "-9223372036854775807"),
            ("0e999", "0"),
        ] {
            assert_eq!(Quantity::nano(written), Quantity::nano(stored), "{written} {stored}");
        }
    }

    #[test]
    fn nonsense_is_no_quantity() {
        for text in ["", "Gi", "16Gb", "1 Gi", "1.2.3", "--1", "+-1", ".", "1e", "e3", "1e+-3"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_read_as_text() {
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap().as_str(), "2");
    }
}
