//! Requests for text. Parsing refuses what the server would have to ignore: see [`Fields::finish`].

use serde_json::Value;

use super::{
    fields::{Fields, InvalidField, is_empty, is_false, is_one, list_at, string_at, wrong},
    format::{Format, response_format, structured_outputs},
    message::{Message, messages_at},
    tools::{Tools, tools},
};

/// Bounds on the shape of a request; those on tokens come after tokenising.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    pub max_messages: usize,
    pub max_stop_sequences: usize,
    pub max_stop_bytes: usize,
    /// Prompts given as token ids.
    pub max_prompt_tokens: usize,
    /// Answers to one prompt.
    pub max_choices: u32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_messages: 4096,
            max_stop_sequences: 4,
            max_stop_bytes: 256,
            max_prompt_tokens: 1 << 20,
            max_choices: 8,
        }
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
    pub tools: Option<Tools>,
    pub format: Option<Format>,
    /// Answers wanted.
    pub n: u32,
    pub delivery: Delivery,
}

/// `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    pub prompt: Prompt,
    pub sampling: Sampling,
    pub logprobs: Logprobs,
    pub format: Option<Format>,
    /// Answers wanted.
    pub n: u32,
    pub delivery: Delivery,
}

/// How an answer is to arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    pub stream: bool,
    /// A last chunk with the usage of the whole.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
}

/// `None`: not wanted. `Some(n)`: of the chosen token and of the `n` likeliest.
pub type Logprobs = Option<u8>;

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
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub stop: Vec<String>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Neither the model nor a stop string ends the answer before.
    pub min_tokens: u32,
    /// The model does not end the answer at all.
    pub ignore_eos: bool,
    /// Ours: guess tokens ahead, which changes the speed and not the answer.
    pub speculation: Option<Speculation>,
}

/// Guessing by prompt lookup: that what followed the last tokens earlier follows them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Tokens that must have occurred before.
    pub ngram: u32,
    /// Tokens to guess at most.
    pub max_draft: u32,
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
        let delivery = delivery(&mut fields)?;
        let n = choices(&mut fields, limits)?;
        let tools = tools(&mut fields, false)?;
        let format = format(response_format(&mut fields)?, structured_outputs(&mut fields)?)?;
        refuse_chat_only(&mut fields)?;
        refuse_shared(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, messages, sampling, logprobs, tools, format, n, delivery })
    }
}

impl CompletionRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let prompt = prompt(fields.required("prompt")?, limits)?;
        let sampling = sampling(&mut fields, "max_tokens", limits)?;
        let logprobs = fields.integer("logprobs", 0, 5)?.map(|n| n as u8);
        let delivery = delivery(&mut fields)?;
        let n = choices(&mut fields, limits)?;
        let format = structured_outputs(&mut fields)?;
        fields.only("best_of", is_one, "set `n`, and choose among the answers")?;
        fields.only("echo", is_false, "put the prompt before the answer on your side")?;
        fields.only("suffix", is_empty, "models here complete from the left only")?;
        refuse_shared(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, prompt, sampling, logprobs, format, n, delivery })
    }
}

fn choices(fields: &mut Fields, limits: &RequestLimits) -> Result<u32, InvalidField> {
    Ok(fields.integer("n", 1, limits.max_choices.into())?.map_or(1, |n| n as u32))
}

fn format(response: Option<Format>, structured: Option<Format>) -> Result<Option<Format>, InvalidField> {
    match (response, structured) {
        (Some(_), Some(structured)) => {
            let message = format!("`{}` cannot be kept together with `response_format`", structured.param);
            Err(InvalidField::value("structured_outputs", message))
        }
        (response, structured) => Ok(response.or(structured)),
    }
}

pub(super) fn model(fields: &mut Fields) -> Result<String, InvalidField> {
    let model = fields.required("model")?;
    string_at("model", model)
}

pub(crate) fn sampling(
    fields: &mut Fields,
    max_name: &str,
    limits: &RequestLimits,
) -> Result<Sampling, InvalidField> {
    let max = i64::from(u32::MAX);
    let mut max_tokens = fields.integer(max_name, 1, max)?;
    if max_name == "max_completion_tokens" {
        let old_name = fields.integer("max_tokens", 1, max)?;
        if max_tokens.is_some() && old_name.is_some() && max_tokens != old_name {
            let message = format!("`max_tokens` and `{max_name}` differ: send only `{max_name}`");
            return Err(InvalidField::value("max_tokens", message));
        }
        max_tokens = max_tokens.or(old_name);
    }
    let top_p = fields.number("top_p", 0.0, 1.0)?;
    let repetition_penalty = fields.number("repetition_penalty", 0.01, 10.0)?;
    let min_tokens = fields.integer("min_tokens", 0, max)?.unwrap_or(0);
    if max_tokens.is_some_and(|most| most < min_tokens) {
        let message = format!("`min_tokens` is {min_tokens}, more than `{max_name}`: lower it");
        return Err(InvalidField::value("min_tokens", message));
    }
    let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    Ok(Sampling {
        min_tokens: min_tokens as u32,
        ignore_eos,
        speculation: speculation(fields)?,
        // 1 would leave the likeliest token alone, by way of a division that may leave none.
        min_p: fields.number("min_p", 0.0, 0.999)?,
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

fn speculation(fields: &mut Fields) -> Result<Option<Speculation>, InvalidField> {
    let Some(value) = fields.take("speculation") else { return Ok(None) };
    let mut own = Fields::of("speculation", value)?;
    let path = own.path("type");
    let kind = own.required_string("type")?;
    if kind != "prompt_lookup" {
        return Err(InvalidField::value(&path, format!("`{path}` must be `prompt_lookup`, but is `{kind}`")));
    }
    let ngram = own.integer("ngram", 1, 16)?.unwrap_or(3) as u32;
    let max_draft = own.integer("max_draft", 1, 32)?.unwrap_or(8) as u32;
    own.finish()?;
    Ok(Some(Speculation { ngram, max_draft }))
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

/// `stream` and `stream_options`.
fn delivery(fields: &mut Fields) -> Result<Delivery, InvalidField> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else {
        return Ok(Delivery { stream, ..Delivery::default() });
    };
    if !stream {
        return Err(InvalidField::value("stream_options", "`stream_options` needs `stream: true`"));
    }
    let mut options = Fields::of("stream_options", options)?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    let path = options.path("continuous_usage_stats");
    let continuous_usage = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    if continuous_usage && !include_usage {
        let message = format!("`{path}` needs `stream_options.include_usage: true`");
        return Err(InvalidField::value(path, message));
    }
    options.only("include_obfuscation", is_false, "answers are never padded here")?;
    options.finish()?;
    Ok(Delivery { stream, include_usage, continuous_usage })
}

pub(crate) fn prompt(value: Value, limits: &RequestLimits) -> Result<Prompt, InvalidField> {
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
    fields.only("functions", is_empty, "send them as `tools`")?;
    fields.only("function_call", |value| value == "none", "send `tool_choice`")?;
    fields.only("modalities", |value| *value == serde_json::json!(["text"]), "only `[\"text\"]` is")?;
    fields.only("audio", is_empty, "this server writes text only")?;
    fields.only("prediction", is_empty, "leave it out")?;
    fields.only("reasoning_effort", |_| false, "leave it out")?;
    fields.only("verbosity", |_| false, "leave it out")?;
    fields.only("web_search_options", |_| false, "this server does not search the web")
}

pub(super) fn refuse_shared(fields: &mut Fields) -> Result<(), InvalidField> {
    fields.only("store", is_false, "nothing is stored here")?;
    fields.only("metadata", is_empty, "nothing is stored here")?;
    fields.only("service_tier", |value| value == "auto" || value == "default", "there is one tier here")?;
    // Names the end user for abuse reports: it never changes an answer, so taking it is honest.
    fields.string("user")?;
    fields.string("safety_identifier")?;
    // Prefixes are found by what they say; where one is kept never changes an answer either.
    fields.string("prompt_cache_key")?;
    fields.string("prompt_cache_retention")?;
    Ok(())
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
