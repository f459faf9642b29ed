//! Takes a JSON object apart field by field, so that each refusal names the field and what would be accepted.

use serde_json::{Map, Value};

/// One field of a request cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidField {
    /// As in `messages[0].role`; `None` when the body as a whole is at fault.
    pub param: Option<String>,
    pub message: String,
    /// Machine-readable kind, such as `unsupported_parameter`.
    pub code: &'static str,
}

impl InvalidField {
    pub fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), message: message.into(), code: "invalid_value" }
    }

    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), message: message.into(), code: "unsupported_parameter" }
    }
}

/// The fields of one object that have not been taken yet. `null` is the same as absent, as with OpenAI.
pub(crate) struct Fields {
    /// Path of the object, with its final dot: `stream_options.`; empty at the top.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The top-level object of a request body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, InvalidField> {
        let invalid = |message| InvalidField { param: None, message, code: "invalid_json" };
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { prefix: String::new(), map }),
            Ok(other) => {
                Err(invalid(format!("the request body must be a JSON object, but is {}", kind(&other))))
            }
            Err(err) => Err(invalid(format!("cannot parse the request body as JSON: {err}"))),
        }
    }

    /// `value`, found at `path`, as an object.
    pub(crate) fn of(path: &str, value: Value) -> Result<Self, InvalidField> {
        match value {
            Value::Object(map) => Ok(Self { prefix: format!("{path}."), map }),
            other => {
                Err(InvalidField::value(path, format!("`{path}` must be an object, but is {}", kind(&other))))
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field as it stands, taken or not.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    pub(crate) fn required(&mut self, name: &str) -> Result<Value, InvalidField> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, InvalidField> {
        let value = self.required(name)?;
        string_at(&self.path(name), value)
    }

    pub(crate) fn missing(&self, name: &str) -> InvalidField {
        let path = self.path(name);
        InvalidField {
            message: format!("`{path}` is required"),
            param: Some(path),
            code: "missing_required_parameter",
        }
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, InvalidField> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => string_at(&self.path(name), value).map(Some),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, InvalidField> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong(name, "true or false", &other)),
        }
    }

    /// An integer in `low..=high`.
    pub(crate) fn integer(&mut self, name: &str, low: i64, high: i64) -> Result<Option<i64>, InvalidField> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wanted = format!("an integer from {low} to {high}");
        match value.as_i64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(name, &wanted, &value)),
        }
    }

    /// A number in `low..=high`.
    pub(crate) fn number(&mut self, name: &str, low: f64, high: f64) -> Result<Option<f64>, InvalidField> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wanted = format!("a number from {low} to {high}");
        match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(name, &wanted, &value)),
        }
    }

    /// Refuses the field unless it says what we do anyway.
    pub(crate) fn only(
        &mut self,
        name: &str,
        harmless: impl Fn(&Value) -> bool,
        instead: &str,
    ) -> Result<(), InvalidField> {
        match self.take(name) {
            Some(value) if !harmless(&value) => {
                let path = self.path(name);
                let message = format!("`{path}` is not supported by this server: {instead}");
                Err(InvalidField::unsupported(path, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left: a field that would do nothing is an error, not a surprise.
    pub(crate) fn finish(self) -> Result<(), InvalidField> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path: String = self.path(name).chars().take(100).collect();
                let message = format!("`{path}` is not a field of this request: remove it");
                Err(InvalidField { param: Some(path), message, code: "unknown_parameter" })
            }
        }
    }

    fn wrong(&self, name: &str, wanted: &str, value: &Value) -> InvalidField {
        wrong(&self.path(name), wanted, value)
    }
}

/// The string at `path`.
pub(crate) fn string_at(path: &str, value: Value) -> Result<String, InvalidField> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong(path, "a string", &other)),
    }
}

/// The elements of the list at `path`, at most `max` of them.
pub(crate) fn list_at(path: &str, value: Value, max: usize) -> Result<Vec<Value>, InvalidField> {
    match value {
        Value::Array(list) if list.len() <= max => Ok(list),
        Value::Array(list) => {
            let message = format!("`{path}` has {} elements: at most {max} are accepted", list.len());
            Err(InvalidField::value(path, message))
        }
        other => Err(wrong(path, "a list", &other)),
    }
}

pub(crate) fn wrong(path: &str, wanted: &str, value: &Value) -> InvalidField {
    InvalidField::value(path, format!("`{path}` must be {wanted}, but is {}", kind(value)))
}

/// A value for a message: numbers and booleans as they are, the rest by kind, since it may be long or private.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

pub(crate) fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

pub(crate) fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
