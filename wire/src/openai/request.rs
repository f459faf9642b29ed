//! Requests for text. Parsing refuses what the server would have to ignore: see [`Fields::finish`].

use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, InvalidField, list_at, string_at, wrong};

/// Bounds on the shape of a request; those on tokens come after tokenising.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    pub max_messages: usize,
    pub max_stop_sequences: usize,
    pub max_stop_bytes: usize,
    /// Prompts given as token ids.
    pub max_prompt_tokens: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { max_messages: 4096, max_stop_sequences: 4, max_stop_bytes: 256, max_prompt_tokens: 1 << 20 }
    }
}

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    pub messages: Vec<Message>,
    pub sampling: Sampling,
    /// Alternatives per token, if log probabilities are wanted.
    pub logprobs: Logprobs,
    pub stream: bool,
    pub include_usage: bool,
}

/// `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub logprobs: Logprobs,
    pub stream: bool,
    pub include_usage: bool,
}

/// `None`: not wanted. `Some(n)`: of the chosen token and of the `n` likeliest.
pub type Logprobs = Option<u8>;

/// One turn, in the form that chat templates read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// How to choose tokens and when to stop; absent = the model's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    pub max_tokens: Option<u32>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u32>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub stop: Vec<String>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl ChatRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let messages = fields.required("messages")?;
        let messages = messages_at("messages", messages, limits)?;
        let sampling = sampling(&mut fields, "max_completion_tokens", limits)?;
        let wanted = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0, 20)?;
        if top.is_some() && !wanted {
            return Err(InvalidField::value("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
        }
        let logprobs = wanted.then(|| top.map_or(0, |n| n as u8));
        let (stream, include_usage) = stream(&mut fields)?;
        refuse_chat_only(&mut fields)?;
        refuse_shared(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, messages, sampling, logprobs, stream, include_usage })
    }
}

impl CompletionRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let prompt = prompt(fields.required("prompt")?, limits)?;
        let sampling = sampling(&mut fields, "max_tokens", limits)?;
        let logprobs = fields.integer("logprobs", 0, 5)?.map(|n| n as u8);
        let (stream, include_usage) = stream(&mut fields)?;
        fields.only("best_of", is_one, "send one request for each answer that you want")?;
        fields.only("echo", is_false, "put the prompt before the answer on your side")?;
        fields.only("suffix", is_empty, "models here complete from the left only")?;
        refuse_shared(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, prompt, sampling, logprobs, stream, include_usage })
    }
}

fn model(fields: &mut Fields) -> Result<String, InvalidField> {
    let model = fields.required("model")?;
    string_at("model", model)
}

fn sampling(fields: &mut Fields, max_name: &str, limits: &RequestLimits) -> Result<Sampling, InvalidField> {
    let max = i64::from(u32::MAX);
    let mut max_tokens = fields.integer(max_name, 1, max)?;
    if max_name != "max_tokens" {
        let old_name = fields.integer("max_tokens", 1, max)?;
        if max_tokens.is_some() && old_name.is_some() && max_tokens != old_name {
            let message = format!("`max_tokens` and `{max_name}` differ: send only `{max_name}`");
            return Err(InvalidField::value("max_tokens", message));
        }
        max_tokens = max_tokens.or(old_name);
    }
    let top_p = fields.number("top_p", 0.0, 1.0)?;
    let repetition_penalty = fields.number("repetition_penalty", 0.01, 10.0)?;
    Ok(Sampling {
        max_tokens: max_tokens.map(|n| n as u32),
        temperature: fields.number("temperature", 0.0, 2.0)?,
        top_p,
        top_k: fields.integer("top_k", 0, max)?.map(|n| n as u32),
        seed: fields.integer("seed", i64::MIN, i64::MAX)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?,
        repetition_penalty,
        stop: stop(fields.take("stop"), limits)?,
        logit_bias: logit_bias(fields.take("logit_bias"))?,
    })
}

fn stop(value: Option<Value>, limits: &RequestLimits) -> Result<Vec<String>, InvalidField> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => vec![text],
        Some(list @ Value::Array(_)) => list_at("stop", list, limits.max_stop_sequences)?,
        Some(other) => return Err(wrong("stop", "a string or a list of strings", &other)),
    };
    let one = |(at, value): (usize, Value)| {
        let path = format!("stop[{at}]");
        let text = string_at(&path, value)?;
        if text.is_empty() || text.len() > limits.max_stop_bytes {
            let message = format!("`{path}` must have 1 to {} bytes", limits.max_stop_bytes);
            return Err(InvalidField::value(path, message));
        }
        Ok(text)
    };
    list.into_iter().enumerate().map(one).collect()
}

fn logit_bias(value: Option<Value>) -> Result<Vec<(u32, f32)>, InvalidField> {
    let map = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= 1024 => map,
        Some(Value::Object(_)) => {
            return Err(InvalidField::value("logit_bias", "`logit_bias` has more than 1024 entries"));
        }
        Some(other) => return Err(wrong("logit_bias", "an object of token ids and numbers", &other)),
    };
    let one = |(id, bias): (String, Value)| {
        let token = id.parse().map_err(|_| {
            InvalidField::value("logit_bias", "`logit_bias` must have token ids as its keys, such as \"42\"")
        })?;
        match bias.as_f64() {
            Some(number) if (-100.0..=100.0).contains(&number) => Ok((token, number as f32)),
            _ => Err(wrong(&format!("logit_bias.{token}"), "a number from -100 to 100", &bias)),
        }
    };
    map.into_iter().map(one).collect()
}

/// `stream` and `stream_options.include_usage`.
fn stream(fields: &mut Fields) -> Result<(bool, bool), InvalidField> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(InvalidField::value("stream_options", "`stream_options` needs `stream: true`"));
    }
    let mut options = Fields::of("stream_options", options)?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", is_false, "answers are never padded here")?;
    options.finish()?;
    Ok((stream, include_usage))
}

fn messages_at(path: &str, value: Value, limits: &RequestLimits) -> Result<Vec<Message>, InvalidField> {
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
        "tool" | "function" => {
            let message = format!("`{role_path}`: tool turns are not supported by this server");
            return Err(InvalidField::unsupported(role_path, message));
        }
        _ => {
            let message = format!("`{role_path}` must be `system`, `developer`, `user` or `assistant`");
            return Err(InvalidField::value(role_path, message));
        }
    };
    let content_path = fields.path("content");
    let content = fields.required("content")?;
    let content = content_at(&content_path, content)?;
    let name = fields.string("name")?;
    // What clients send back of an answer they were given.
    for empty in ["refusal", "tool_calls", "function_call", "audio", "annotations"] {
        fields.only(empty, is_empty, "only text turns are")?;
    }
    fields.finish()?;
    Ok(Message { role, content, name })
}

fn content_at(path: &str, value: Value) -> Result<String, InvalidField> {
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
        if string_at(&kind_path, kind)? != "text" {
            let message = format!("`{kind_path}` must be `text`: this server reads text only");
            return Err(InvalidField::unsupported(kind_path, message));
        }
        let text_path = fields.path("text");
        let part = fields.required("text")?;
        text.push_str(&string_at(&text_path, part)?);
        fields.finish()?;
    }
    Ok(text)
}

fn prompt(value: Value, limits: &RequestLimits) -> Result<Prompt, InvalidField> {
    let wanted = "a string or a list of token ids";
    let mut list = match value {
        Value::String(text) => return Ok(Prompt::Text(text)),
        list @ Value::Array(_) => list_at("prompt", list, limits.max_prompt_tokens)?,
        other => return Err(wrong("prompt", wanted, &other)),
    };
    if list.iter().any(|item| item.is_string() || item.is_array()) {
        if list.len() != 1 {
            let message = "`prompt` holds several prompts: send one request for each";
            return Err(InvalidField::unsupported("prompt", message));
        }
        match list.remove(0) {
            Value::String(text) => return Ok(Prompt::Text(text)),
            inner => list = list_at("prompt[0]", inner, limits.max_prompt_tokens)?,
        }
    }
    if list.is_empty() {
        return Err(InvalidField::value("prompt", "`prompt` must hold at least one token"));
    }
    let token = |(at, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("prompt[{at}]"), "a token id", value))
    };
    list.iter().enumerate().map(token).collect::<Result<_, _>>().map(Prompt::Tokens)
}

fn refuse_chat_only(fields: &mut Fields) -> Result<(), InvalidField> {
    fields.only("tools", is_empty, "models here do not call tools")?;
    fields.only("tool_choice", |value| value == "none", "models here do not call tools")?;
    fields.only("parallel_tool_calls", |_| false, "models here do not call tools")?;
    fields.only("functions", is_empty, "models here do not call functions")?;
    fields.only("function_call", |value| value == "none", "models here do not call functions")?;
    let is_text = |value: &Value| value.get("type").is_some_and(|kind| kind == "text");
    fields.only("response_format", is_text, "only `{\"type\": \"text\"}` is; ask for JSON in the prompt")?;
    fields.only("modalities", |value| *value == serde_json::json!(["text"]), "only `[\"text\"]` is")?;
    fields.only("audio", is_empty, "this server writes text only")?;
    fields.only("prediction", is_empty, "leave it out")?;
    fields.only("reasoning_effort", |_| false, "leave it out")?;
    fields.only("verbosity", |_| false, "leave it out")?;
    fields.only("web_search_options", |_| false, "this server does not search the web")
}

fn refuse_shared(fields: &mut Fields) -> Result<(), InvalidField> {
    fields.only("n", is_one, "send one request for each answer that you want")?;
    fields.only("store", is_false, "nothing is stored here")?;
    fields.only("metadata", is_empty, "nothing is stored here")?;
    fields.only("service_tier", |value| value == "auto" || value == "default", "there is one tier here")?;
    // Names the end user for abuse reports: it never changes an answer, so taking it is honest.
    fields.string("user")?;
    fields.string("safety_identifier")?;
    Ok(())
}

fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
