//! What an answer must look like: `response_format`, and vLLM's `structured_outputs`.

use serde_json::Value;

use super::fields::{Fields, InvalidField, list_at, string_at, wrong};

/// A form that an answer is held to, with the field that asked for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    /// Such as `response_format.json_schema.schema`.
    pub param: &'static str,
    pub kind: FormatKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FormatKind {
    /// Any JSON object.
    JsonObject,
    JsonSchema(Value),
    /// The whole answer matches.
    Regex(String),
    /// The answer is one of these.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Grammar(String),
}

const MAX_CHOICES: usize = 1024;

/// `response_format` of a chat; `None` = text.
pub(super) fn response_format(fields: &mut Fields) -> Result<Option<Format>, InvalidField> {
    let Some(value) = fields.take("response_format") else { return Ok(None) };
    let mut fields = Fields::of("response_format", value)?;
    let kind_path = fields.path("type");
    let kind = string_at(&kind_path, fields.required("type")?)?;
    let format = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Format { param: "response_format", kind: FormatKind::JsonObject }),
        "json_schema" => {
            let inner = fields.required("json_schema")?;
            let mut inner = Fields::of("response_format.json_schema", inner)?;
            let schema = named_schema(&mut inner)?;
            inner.finish()?;
            let param = "response_format.json_schema.schema";
            Some(Format { param, kind: FormatKind::JsonSchema(schema) })
        }
        _ => {
            let message = format!("`{kind_path}` must be `text`, `json_object` or `json_schema`");
            return Err(InvalidField::value(kind_path, message));
        }
    };
    fields.finish()?;
    Ok(format)
}

/// `text.format` of the Responses API, where a schema's fields lie beside `type`.
pub(super) fn text_format(fields: &mut Fields) -> Result<Option<Format>, InvalidField> {
    let Some(value) = fields.take("text") else { return Ok(None) };
    let mut text = Fields::of("text", value)?;
    let mut found = None;
    if let Some(value) = text.take("format") {
        let mut fields = Fields::of("text.format", value)?;
        let kind = string_at("text.format.type", fields.required("type")?)?;
        found = match kind.as_str() {
            "text" => None,
            "json_object" => Some(Format { param: "text.format", kind: FormatKind::JsonObject }),
            "json_schema" => {
                let schema = named_schema(&mut fields)?;
                Some(Format { param: "text.format.schema", kind: FormatKind::JsonSchema(schema) })
            }
            _ => {
                let message = "`text.format.type` must be `text`, `json_object` or `json_schema`";
                return Err(InvalidField::value("text.format.type", message));
            }
        };
        fields.finish()?;
    }
    text.only("verbosity", |value| value == "medium", "leave it out")?;
    text.finish()?;
    Ok(found)
}

/// `name`, `description`, `strict` and `schema`. Answers are held to the schema whether `strict` or not.
fn named_schema(fields: &mut Fields) -> Result<Value, InvalidField> {
    let name_path = fields.path("name");
    let name = fields.required_string("name")?;
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if name.is_empty() || name.len() > 64 || !plain(&name) {
        let message = format!("`{name_path}` must have 1 to 64 letters, digits, `_` or `-`");
        return Err(InvalidField::value(name_path, message));
    }
    fields.string("description")?;
    fields.boolean("strict")?;
    let path = fields.path("schema");
    match fields.required("schema")? {
        schema @ Value::Object(_) => Ok(schema),
        other => Err(wrong(&path, "a JSON schema", &other)),
    }
}

/// vLLM's `structured_outputs`.
pub(crate) fn structured_outputs(fields: &mut Fields) -> Result<Option<Format>, InvalidField> {
    let Some(value) = fields.take("structured_outputs") else { return Ok(None) };
    let mut fields = Fields::of("structured_outputs", value)?;
    let mut found = Vec::new();
    match fields.take("json") {
        None => {}
        Some(Value::String(text)) => {
            let schema = serde_json::from_str(&text).map_err(|err| {
                let message = format!("`structured_outputs.json` is no JSON: {err}");
                InvalidField::value("structured_outputs.json", message)
            })?;
            found.push(("structured_outputs.json", FormatKind::JsonSchema(schema)));
        }
        Some(schema) => found.push(("structured_outputs.json", FormatKind::JsonSchema(schema))),
    }
    if fields.boolean("json_object")? == Some(true) {
        found.push(("structured_outputs.json_object", FormatKind::JsonObject));
    }
    if let Some(regex) = fields.string("regex")? {
        found.push(("structured_outputs.regex", FormatKind::Regex(regex)));
    }
    if let Some(value) = fields.take("choice") {
        let path = "structured_outputs.choice";
        let list = list_at(path, value, MAX_CHOICES)?;
        let text = |(at, value): (usize, Value)| string_at(&format!("{path}[{at}]"), value);
        let texts = list.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
        found.push((path, FormatKind::Choice(texts)));
    }
    if let Some(grammar) = fields.string("grammar")? {
        found.push(("structured_outputs.grammar", FormatKind::Grammar(grammar)));
    }
    fields.finish()?;
    match (found.pop(), found.len()) {
        (Some((param, kind)), 0) => Ok(Some(Format { param, kind })),
        _ => {
            let message = "`structured_outputs` must have exactly one of `json`, `json_object`, `regex`, `choice` and \
                           `grammar`";
            Err(InvalidField::value("structured_outputs", message))
        }
    }
}
