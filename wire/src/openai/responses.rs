//! `POST /v1/responses`, as far as it keeps nothing between requests.

use serde_json::{Map, Value, json};

use super::{
    fields::{Fields, InvalidField, is_empty, is_false, list_at, wrong},
    format::{Format, text_format},
    message::{Message, PastCall, PastFunction, arguments_at, text_parts_at},
    request::{RequestLimits, Sampling, model, refuse_shared, sampling},
    tools::{Tools, tools},
};

/// A request, with the instructions and input as the turns of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponsesRequest {
    pub model: String,
    pub messages: Vec<Message>,
    pub sampling: Sampling,
    pub tools: Option<Tools>,
    pub format: Option<Format>,
    pub stream: bool,
    /// What the answer repeats of the request, by OpenAI's names.
    pub repeated: Map<String, Value>,
}

impl ResponsesRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let repeated = repeated(&fields);
        refuse_state(&mut fields)?;
        let model = model(&mut fields)?;
        let mut messages = Vec::new();
        if let Some(content) = fields.string("instructions")? {
            messages.push(Message { role: "system", content, ..Message::default() });
        }
        match fields.required("input")? {
            Value::String(content) => messages.push(Message { role: "user", content, ..Message::default() }),
            value => items(value, limits, &mut messages)?,
        }
        let sampling = sampling(&mut fields, "max_output_tokens", limits)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        if let Some(options) = fields.take("stream_options") {
            let mut options = Fields::of("stream_options", options)?;
            options.only("include_obfuscation", is_false, "answers are never padded here")?;
            options.finish()?;
        }
        let tools = tools(&mut fields, true)?;
        let format = text_format(&mut fields)?;
        refuse_shared(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, messages, sampling, tools, format, stream, repeated })
    }
}

fn repeated(fields: &Fields) -> Map<String, Value> {
    let defaults = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("parallel_tool_calls", json!(true)),
        ("temperature", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", Value::Null),
    ];
    let one = |(name, default): (&str, Value)| {
        (name.to_owned(), fields.peek(name).filter(|value| !value.is_null()).cloned().unwrap_or(default))
    };
    defaults.into_iter().map(one).collect()
}

/// Everything that would need memory between requests, or does not exist here.
fn refuse_state(fields: &mut Fields) -> Result<(), InvalidField> {
    let send_all = "nothing is stored here: send the whole conversation as `input`";
    fields.only("previous_response_id", |_| false, send_all)?;
    fields.only("conversation", |_| false, send_all)?;
    fields.only("prompt", |_| false, "nothing is stored here: send `instructions` and `input`")?;
    fields.only("background", is_false, "an answer comes on the connection that asked for it")?;
    fields.only("include", is_empty, "there is nothing further to include")?;
    fields.only("truncation", |value| value == "disabled", "a conversation that is too long is refused")?;
    fields.only("reasoning", is_empty, "leave it out")?;
    fields.only("max_tool_calls", |_| false, "this server has no tools of its own")?;
    fields.only("top_logprobs", |value| value.as_u64() == Some(0), "use `/v1/chat/completions`")
}

fn items(value: Value, limits: &RequestLimits, messages: &mut Vec<Message>) -> Result<(), InvalidField> {
    let list = list_at("input", value, limits.max_messages)?;
    if list.is_empty() {
        return Err(InvalidField::value("input", "`input` must hold at least one item"));
    }
    for (at, value) in list.into_iter().enumerate() {
        let path = format!("input[{at}]");
        let mut fields = Fields::of(&path, value)?;
        let kind_path = fields.path("type");
        let kind = fields.string("type")?.unwrap_or_else(|| "message".to_owned());
        match kind.as_str() {
            "message" => messages.push(message(&mut fields)?),
            "function_call" => {
                let call = call(&mut fields)?;
                match messages.last_mut() {
                    // Calls of one answer are one turn, with the text before them.
                    Some(last) if last.role == "assistant" => last.tool_calls.push(call),
                    _ => messages.push(Message {
                        role: "assistant",
                        tool_calls: vec![call],
                        ..Message::default()
                    }),
                }
            }
            "function_call_output" => {
                let tool_call_id = Some(fields.required_string("call_id")?);
                let output_path = fields.path("output");
                let output = fields.required("output")?;
                let content = text_parts_at(&output_path, output, &["input_text"])?;
                messages.push(Message { role: "tool", content, tool_call_id, ..Message::default() });
            }
            _ => {
                let message =
                    format!("`{kind_path}` must be `message`, `function_call` or `function_call_output`");
                return Err(InvalidField::unsupported(kind_path, message));
            }
        }
        // Of what clients were given and send back.
        fields.string("id")?;
        fields.string("status")?;
        fields.finish()?;
    }
    Ok(())
}

fn message(fields: &mut Fields) -> Result<Message, InvalidField> {
    let role_path = fields.path("role");
    let role = match fields.required_string("role")?.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        _ => {
            let message = format!("`{role_path}` must be `system`, `developer`, `user` or `assistant`");
            return Err(InvalidField::value(role_path, message));
        }
    };
    let path = fields.path("content");
    let content = text_parts_at(&path, fields.required("content")?, &["input_text", "output_text"])?;
    Ok(Message { role, content, ..Message::default() })
}

fn call(fields: &mut Fields) -> Result<PastCall, InvalidField> {
    let id = fields.required_string("call_id")?;
    let name = fields.required_string("name")?;
    let path = fields.path("arguments");
    let arguments = match fields.required("arguments")? {
        Value::String(text) => arguments_at(&path, Value::String(text))?,
        other => return Err(wrong(&path, "a JSON object as a string", &other)),
    };
    Ok(PastCall { id, kind: "function", function: PastFunction { name, arguments } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<ResponsesRequest, InvalidField> {
        let body = format!(r#"{{"model": "m", "input": "hi" {extra}}}"#);
        ResponsesRequest::parse(body.as_bytes(), &RequestLimits::default())
    }

    #[test]
    fn what_needs_memory_is_refused_by_name() {
        for (extra, param) in [
            (r#", "store": true"#, "store"),
            (r#", "previous_response_id": "r""#, "previous_response_id"),
            (r#", "conversation": "c""#, "conversation"),
            (r#", "background": true"#, "background"),
            (r#", "truncation": "auto""#, "truncation"),
            (r#", "tools": [{"type": "web_search"}]"#, "tools[0].type"),
            (r#", "text": {"format": {"type": "json_schema", "name": "a"}}"#, "text.format.schema"),
            (r#", "max_tokens": 4"#, "max_tokens"),
            (r#", "n": 2"#, "n"),
        ] {
            assert_eq!(parse(extra).expect_err(extra).param.as_deref(), Some(param), "for {extra}");
        }
        assert!(parse(r#", "store": false, "truncation": "disabled", "metadata": {}"#).is_ok());
    }

    #[test]
    fn items_become_turns() {
        let body = r#"{"model": "m", "instructions": "Be brief.", "max_output_tokens": 3, "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "d"}]}"#;
        let request = ResponsesRequest::parse(body.as_bytes(), &RequestLimits::default()).expect("fine");
        let turns: Vec<_> = request
            .messages
            .iter()
            .map(|turn| (turn.role, turn.content.as_str(), turn.tool_calls.len()))
            .collect();
        assert_eq!(
            turns,
            [("system", "Be brief.", 0), ("user", "a", 0), ("assistant", "b", 1), ("tool", "d", 0)]
        );
        assert_eq!(
            (request.sampling.max_tokens, &request.repeated["max_output_tokens"]),
            (Some(3), &json!(3))
        );
        assert_eq!(request.repeated["tool_choice"], "auto");
        let reasoning = r#"{"model": "m", "input": [{"type": "reasoning", "summary": []}]}"#;
        let refused = ResponsesRequest::parse(reasoning.as_bytes(), &RequestLimits::default());
        assert_eq!(refused.expect_err("no such item").param.as_deref(), Some("input[0].type"));
    }
}
