//! The turns of a conversation, in the form that chat templates read.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    fields::{Fields, InvalidField, is_empty, list_at, string_at, wrong},
    request::RequestLimits,
};

/// One turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Message {
    pub role: &'static str,
    /// Empty where an assistant only called tools.
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of an assistant's turn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<PastCall>,
    /// Of a tool's turn: the call that it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A call that an assistant made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastCall {
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: PastFunction,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastFunction {
    pub name: String,
    /// As an object, which is what templates write; clients send it as text.
    pub arguments: Map<String, Value>,
}

const MAX_CALLS: usize = 128;

pub(crate) fn messages_at(
    path: &str,
    value: Value,
    limits: &RequestLimits,
) -> Result<Vec<Message>, InvalidField> {
    let list = list_at(path, value, limits.max_messages)?;
    if list.is_empty() {
        return Err(InvalidField::value(path, format!("`{path}` must hold at least one message")));
    }
    list.into_iter().enumerate().map(|(at, value)| message(&format!("{path}[{at}]"), value)).collect()
}

fn message(path: &str, value: Value) -> Result<Message, InvalidField> {
    let mut fields = Fields::of(path, value)?;
    let role_path = fields.path("role");
    let role = fields.required("role")?;
    let role = match string_at(&role_path, role)?.as_str() {
        // OpenAI's newer name for the same turn; templates know the older one.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        "function" => {
            let message = format!("`{role_path}`: `function` turns are not supported: send `tool` turns");
            return Err(InvalidField::unsupported(role_path, message));
        }
        _ => {
            let message =
                format!("`{role_path}` must be `system`, `developer`, `user`, `assistant` or `tool`");
            return Err(InvalidField::value(role_path, message));
        }
    };
    let mut tool_calls = Vec::new();
    if role == "assistant"
        && let Some(calls) = fields.take("tool_calls")
    {
        tool_calls = calls_at(&fields.path("tool_calls"), calls)?;
    }
    let content_path = fields.path("content");
    let content = match fields.take("content") {
        Some(content) => content_at(&content_path, content)?,
        // What an answer that only calls tools looks like.
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(fields.missing("content")),
    };
    let tool_call_id = if role == "tool" { fields.string("tool_call_id")? } else { None };
    let name = fields.string("name")?;
    // What clients send back of an answer they were given.
    for empty in ["refusal", "tool_calls", "function_call", "audio", "annotations"] {
        fields.only(empty, is_empty, "only text and tool calls of an assistant are")?;
    }
    fields.finish()?;
    Ok(Message { role, content, name, tool_calls, tool_call_id })
}

fn calls_at(path: &str, value: Value) -> Result<Vec<PastCall>, InvalidField> {
    let one = |(at, value): (usize, Value)| {
        let mut fields = Fields::of(&format!("{path}[{at}]"), value)?;
        let id = fields.required_string("id")?;
        fields.function_kind()?;
        let function_path = fields.path("function");
        let mut function = Fields::of(&function_path, fields.required("function")?)?;
        let name = function.required_string("name")?;
        let arguments_path = function.path("arguments");
        let arguments = arguments_at(&arguments_path, function.required("arguments")?)?;
        function.finish()?;
        // Streams number the calls of an answer.
        fields.integer("index", 0, i64::MAX)?;
        fields.finish()?;
        Ok(PastCall { id, kind: "function", function: PastFunction { name, arguments } })
    };
    list_at(path, value, MAX_CALLS)?.into_iter().enumerate().map(one).collect()
}

pub(super) fn arguments_at(path: &str, value: Value) -> Result<Map<String, Value>, InvalidField> {
    let parsed = match value {
        Value::Object(map) => return Ok(map),
        // Some clients send nothing for a function without parameters.
        Value::String(text) if text.trim().is_empty() => return Ok(Map::new()),
        Value::String(text) => serde_json::from_str(&text).ok(),
        other => return Err(wrong(path, "a JSON object as a string", &other)),
    };
    let message = || format!("`{path}` must be a JSON object as a string, such as \"{{\\\"a\\\": 1}}\"");
    parsed.ok_or_else(|| InvalidField::value(path, message()))
}

pub(super) fn content_at(path: &str, value: Value) -> Result<String, InvalidField> {
    text_parts_at(path, value, &["text"])
}

/// A string, or parts of the kinds `kinds`, each with a `text`.
pub(super) fn text_parts_at(path: &str, value: Value, kinds: &[&str]) -> Result<String, InvalidField> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        list @ Value::Array(_) => list_at(path, list, 4096)?,
        other => return Err(wrong(path, "a string or a list of text parts", &other)),
    };
    let mut text = String::new();
    for (at, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{at}]");
        let mut fields = Fields::of(&path, part)?;
        let kind_path = fields.path("type");
        let kind = fields.required("type")?;
        if !kinds.contains(&string_at(&kind_path, kind)?.as_str()) {
            let message =
                format!("`{kind_path}` must be `{}`: this server reads text only", kinds.join("` or `"));
            return Err(InvalidField::unsupported(kind_path, message));
        }
        let text_path = fields.path("text");
        let part = fields.required("text")?;
        text.push_str(&string_at(&text_path, part)?);
        // What clients send back of an answer they were given.
        for empty in ["annotations", "logprobs"] {
            fields.only(empty, is_empty, "leave it out")?;
        }
        fields.finish()?;
    }
    Ok(text)
}
