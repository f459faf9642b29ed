//! Our own routes: `/tokenize`, `/detokenize`, `/generate` and `/summarize`. Parsed as strictly as OpenAI's; errors are
//! problem+json.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::openai::{
    FinishReason, Format, InvalidField, Message, Prompt, RequestLimits, Sampling, Usage,
    fields::{Fields, list_at, wrong},
    format::structured_outputs,
    message::messages_at,
    request::{prompt, sampling},
};

/// Text or a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Prompt(Prompt),
    Messages(Vec<Message>),
}

/// `POST /tokenize`, in vLLM's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// Absent = the one that is served.
    pub model: Option<String>,
    pub input: Input,
    /// Tokens that the tokenizer puts around a text, such as begin-of-text.
    pub add_special_tokens: bool,
    /// The text of each token as well.
    pub return_token_strs: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeAnswer {
    pub count: usize,
    /// Tokens of prompt and answer that the model can hold.
    pub max_model_len: u32,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

/// `POST /detokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeAnswer {
    pub prompt: String,
}

/// `POST /generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    pub model: Option<String>,
    pub input: Input,
    pub sampling: Sampling,
    pub format: Option<Format>,
    pub stream: bool,
}

/// The answer, and the last event of a stream, whose `text` is then the whole again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateAnswer {
    pub id: String,
    pub model: String,
    pub text: String,
    pub finish_reason: FinishReason,
    pub usage: Usage,
}

/// `POST /summarize`.
#[derive(Clone, Debug, PartialEq)]
pub struct SummarizeRequest {
    pub model: Option<String>,
    pub text: String,
    /// What the summary should be like.
    pub instructions: Option<String>,
    /// `max_tokens` is that of the summary.
    pub sampling: Sampling,
    pub stream: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SummarizeAnswer {
    pub id: String,
    pub model: String,
    pub summary: String,
    pub finish_reason: FinishReason,
    /// Parts that the text was cut into.
    pub chunks: usize,
    /// Rounds of summarising: 1 if the text fits the model's context.
    pub rounds: usize,
    /// Of all that was read and written for it.
    pub usage: Usage,
}

/// An event `progress` of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummarizeProgress {
    /// From 1.
    pub round: usize,
    /// Parts of this round that are summarised.
    pub done: usize,
    pub total: usize,
}

impl TokenizeRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let input = input(&mut fields, limits)?;
        let of_text = matches!(input, Input::Prompt(_));
        if let Input::Prompt(Prompt::Tokens(_)) = input {
            return Err(InvalidField::value(
                "prompt",
                "`prompt` must be a string: tokens are tokens already",
            ));
        }
        let special = fields.boolean("add_special_tokens")?;
        if special == Some(true) && !of_text {
            let message =
                "`add_special_tokens` is for `prompt`: a chat template writes what a conversation needs";
            return Err(InvalidField::value("add_special_tokens", message));
        }
        let return_token_strs = fields.boolean("return_token_strs")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { model, input, add_special_tokens: special.unwrap_or(of_text), return_token_strs })
    }
}

impl DetokenizeRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let list = list_at("tokens", fields.required("tokens")?, limits.max_prompt_tokens)?;
        let token = |(at, value): (usize, &Value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(&format!("tokens[{at}]"), "a token id", value))
        };
        let tokens = list.iter().enumerate().map(token).collect::<Result<_, _>>()?;
        fields.finish()?;
        Ok(Self { model, tokens })
    }
}

impl GenerateRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let input = input(&mut fields, limits)?;
        let sampling = sampling(&mut fields, "max_tokens", limits)?;
        let format = structured_outputs(&mut fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { model, input, sampling, format, stream })
    }
}

impl SummarizeRequest {
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let text = fields.required_string("text")?;
        if text.trim().is_empty() {
            return Err(InvalidField::value("text", "`text` is empty: there is nothing to summarize"));
        }
        let instructions = fields.string("instructions")?;
        if instructions.as_ref().is_some_and(|text| text.len() > MAX_INSTRUCTIONS_BYTES) {
            let message = format!("`instructions` must have at most {MAX_INSTRUCTIONS_BYTES} bytes");
            return Err(InvalidField::value("instructions", message));
        }
        let sampling = sampling(&mut fields, "max_tokens", limits)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { model, text, instructions, sampling, stream })
    }
}

const MAX_INSTRUCTIONS_BYTES: usize = 2000;

fn input(fields: &mut Fields, limits: &RequestLimits) -> Result<Input, InvalidField> {
    match (fields.take("prompt"), fields.take("messages")) {
        (Some(value), None) => prompt(value, limits).map(Input::Prompt),
        (None, Some(value)) => messages_at("messages", value, limits).map(Input::Messages),
        (Some(_), Some(_)) => {
            Err(InvalidField::value("messages", "`messages` and `prompt` are both there: send one of them"))
        }
        (None, None) => Err(fields.missing("prompt")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(result: Result<T, InvalidField>) -> String {
        result.expect_err("must be refused").param.unwrap_or_default()
    }

    #[test]
    fn fields_at_fault_are_named() {
        let limits = RequestLimits::default();
        let tokenize = |body: &str| TokenizeRequest::parse(body.as_bytes(), &limits);
        assert!(tokenize(r#"{"prompt": "a"}"#).expect("fine").add_special_tokens);
        let chat = r#""messages": [{"role": "user", "content": "a"}]"#;
        assert!(!tokenize(&format!("{{{chat}}}")).expect("fine").add_special_tokens);
        assert_eq!(refused(tokenize("{}")), "prompt");
        assert_eq!(refused(tokenize(r#"{"prompt": [1]}"#)), "prompt");
        assert_eq!(refused(tokenize(&format!(r#"{{"prompt": "a", {chat}}}"#))), "messages");
        assert_eq!(
            refused(tokenize(&format!(r#"{{{chat}, "add_special_tokens": true}}"#))),
            "add_special_tokens"
        );
        let detokenize = |body: &str| DetokenizeRequest::parse(body.as_bytes(), &limits);
        assert_eq!(refused(detokenize(r#"{"tokens": [1, -1]}"#)), "tokens[1]");
        let generate = |body: &str| GenerateRequest::parse(body.as_bytes(), &limits);
        assert_eq!(refused(generate(r#"{"prompt": "a", "n": 2}"#)), "n");
        let summarize = |body: &str| SummarizeRequest::parse(body.as_bytes(), &limits);
        assert_eq!(refused(summarize(r#"{"text": " \n"}"#)), "text");
        assert_eq!(refused(summarize(r#"{"text": "a", "max_tokens": 0}"#)), "max_tokens");
        assert_eq!(summarize(r#"{"text": "a", "stream": true}"#).map(|request| request.stream), Ok(true));
    }
}
