//! What a client may ask for, in the form that llguidance reads.

use llguidance::{JsonCompileOptions, api::TopLevelGrammar};
use serde_json::{Value, json};

use super::ConstraintError;

/// A language that an output must belong to.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON value of this schema (object or boolean).
    JsonSchema(Value),
    /// A text that the whole regular expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

/// Bytes of a grammar, as JSON where it is JSON.
pub(super) const MAX_BYTES: usize = 64 << 10;
/// Objects and lists around a value of a schema.
pub(super) const MAX_DEPTH: usize = 32;

/// Space between the parts of JSON: bounded, since a model that has nothing to say can write blanks until its tokens
/// are spent. As much as an indented document needs.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// `schema` as it stands in a rule of [`Grammar::Lark`], after `%json`. Its values are written in one line, as
    /// Python and chat templates write JSON.
    pub fn embedded_schema(schema: &Value) -> Result<String, ConstraintError> {
        check_schema(schema)?;
        let options = JsonCompileOptions {
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            whitespace_flexible: false,
            ..JsonCompileOptions::default()
        };
        Ok(with_options(schema, &options).to_string())
    }

    /// A text as it stands in a rule of [`Grammar::Lark`].
    pub fn quoted(text: &str) -> String {
        Value::from(text).to_string()
    }

    pub(super) fn compile(&self) -> Result<TopLevelGrammar, ConstraintError> {
        match self {
            Self::JsonSchema(schema) => {
                check_schema(schema)?;
                let options = JsonCompileOptions {
                    whitespace_pattern: Some(WHITESPACE.to_owned()),
                    ..JsonCompileOptions::default()
                };
                Ok(TopLevelGrammar::from_json_schema(with_options(schema, &options)))
            }
            Self::Regex(regex) => {
                check_bytes(regex.len())?;
                Ok(TopLevelGrammar::from_regex(regex))
            }
            Self::Choice(texts) => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    let what = "there must be at least one text to choose, and none may be empty";
                    return Err(ConstraintError::Refused(what.to_owned()));
                }
                check_bytes(texts.iter().map(String::len).sum())?;
                let all: Vec<String> = texts.iter().map(|text| Self::quoted(text)).collect();
                Ok(TopLevelGrammar::from_lark(format!("start: {}", all.join(" | "))))
            }
            Self::Lark(text) => {
                check_bytes(text.len())?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
        }
    }
}

fn check_bytes(n_bytes: usize) -> Result<(), ConstraintError> {
    if n_bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(ConstraintError::TooLarge(format!("it has {n_bytes} bytes, more than {MAX_BYTES}")))
}

fn check_schema(schema: &Value) -> Result<(), ConstraintError> {
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(ConstraintError::Refused("a schema is an object or a boolean".to_owned()));
    }
    if depth(schema) > MAX_DEPTH {
        let what = format!("it is nested deeper than {MAX_DEPTH} objects and lists");
        return Err(ConstraintError::TooLarge(what));
    }
    check_bytes(schema.to_string().len())
}

/// Ends at one more than is allowed; JSON that was parsed is never deep enough to matter.
fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(list) => list.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

/// The schema with our options for llguidance in the place of any that a client sent.
fn with_options(schema: &Value, options: &JsonCompileOptions) -> Value {
    let mut schema = match schema {
        Value::Object(map) => Value::Object(map.clone()),
        Value::Bool(true) => json!({}),
        // Satisfied by nothing, which llguidance then says.
        other => json!({"allOf": [other]}),
    };
    options.apply_to(&mut schema);
    schema
}
