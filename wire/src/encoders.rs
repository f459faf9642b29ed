//! Requests for vectors and scores of texts: OpenAI's embeddings, rerank in the shape that Cohere and Jina share, and
//! `/embed` of our own.

use serde::Serialize;
use serde_json::Value;

use crate::openai::{InvalidField, RequestLimits};

use crate::openai::fields::{Fields, list_at, string_at, wrong};

/// Texts of one request at most.
pub const MAX_INPUTS: usize = 2048;

/// One text of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum EncoderInput {
    Text(String),
    /// Ids that the client's own tokenizer gave.
    Tokens(Vec<u32>),
}

/// `POST /v1/embeddings` and `POST /embed`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingsRequest {
    pub model: Option<String>,
    pub inputs: Vec<EncoderInput>,
    /// Vectors as base64 of little-endian f32 instead of numbers.
    pub base64: bool,
    /// Shorter vectors: the first so many, to length 1 again.
    pub dimensions: Option<usize>,
    /// Cut what is too long instead of refusing it.
    pub truncate: bool,
}

/// `POST /rerank`, `POST /v1/rerank` (Jina) and `POST /v2/rerank` (Cohere).
#[derive(Clone, Debug, PartialEq)]
pub struct RerankRequest {
    pub model: Option<String>,
    pub query: String,
    pub documents: Vec<String>,
    pub top_n: Option<usize>,
    pub return_documents: bool,
    /// The model's own scores instead of their logistic function.
    pub raw_scores: bool,
    pub truncate: bool,
    /// Of each document, the first so many tokens are read.
    pub max_tokens_per_doc: Option<usize>,
}

impl EmbeddingsRequest {
    /// Field names as OpenAI's, `model` required there.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let inputs = inputs(fields.required("input")?, limits)?;
        let base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => {
                let message = format!("`encoding_format` must be `float` or `base64`, but is `{other}`");
                return Err(InvalidField::value("encoding_format", message));
            }
        };
        let dimensions = positive(&mut fields, "dimensions")?;
        let truncate = fields.boolean("truncate")?.unwrap_or(false);
        // Of no use here, and sent by clients of OpenAI's.
        fields.string("user")?;
        fields.finish()?;
        Ok(Self { model, inputs, base64, dimensions, truncate })
    }
}

impl RerankRequest {
    pub fn parse(body: &[u8]) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let query = fields.required_string("query")?;
        let list = list_at("documents", fields.required("documents")?, MAX_INPUTS)?;
        let document = |(at, value): (usize, Value)| {
            let path = format!("documents[{at}]");
            match value {
                Value::Object(mut object) if object.len() == 1 && object.contains_key("text") => {
                    string_at(&format!("{path}.text"), object.remove("text").unwrap_or_default())
                }
                value => string_at(&path, value),
            }
        };
        let documents = list.into_iter().enumerate().map(document).collect::<Result<Vec<_>, _>>()?;
        if documents.is_empty() {
            return Err(InvalidField::value("documents", "`documents` is empty: there is nothing to rank"));
        }
        let top_n = positive(&mut fields, "top_n")?;
        let return_documents = fields.boolean("return_documents")?.unwrap_or(false);
        let raw_scores = fields.boolean("raw_scores")?.unwrap_or(false);
        let truncate = fields.boolean("truncate")?.unwrap_or(true);
        let max_tokens_per_doc = positive(&mut fields, "max_tokens_per_doc")?;
        fields.finish()?;
        Ok(Self {
            model,
            query,
            documents,
            top_n,
            return_documents,
            raw_scores,
            truncate,
            max_tokens_per_doc,
        })
    }
}

fn positive(fields: &mut Fields, name: &str) -> Result<Option<usize>, InvalidField> {
    match fields.take(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(name, "a positive integer", &value)),
        },
    }
}

/// A text, texts, ids or lists of ids.
fn inputs(value: Value, limits: &RequestLimits) -> Result<Vec<EncoderInput>, InvalidField> {
    let all = match value {
        Value::String(text) => vec![EncoderInput::Text(text)],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            vec![EncoderInput::Tokens(ids("input", list, limits)?)]
        }
        value => {
            let one = |(at, value): (usize, Value)| {
                let path = format!("input[{at}]");
                match value {
                    Value::String(text) => Ok(EncoderInput::Text(text)),
                    Value::Array(list) => Ok(EncoderInput::Tokens(ids(&path, list, limits)?)),
                    other => Err(wrong(&path, "a text or a list of token ids", &other)),
                }
            };
            list_at("input", value, MAX_INPUTS)?.into_iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
    };
    let empty = |input: &EncoderInput| match input {
        EncoderInput::Text(text) => text.is_empty(),
        EncoderInput::Tokens(ids) => ids.is_empty(),
    };
    match all.iter().position(empty) {
        _ if all.is_empty() => {
            Err(InvalidField::value("input", "`input` is empty: there is nothing to embed"))
        }
        Some(at) => Err(InvalidField::value("input", format!("`input[{at}]` is empty"))),
        None => Ok(all),
    }
}

fn ids(path: &str, list: Vec<Value>, limits: &RequestLimits) -> Result<Vec<u32>, InvalidField> {
    let list = list_at(path, Value::Array(list), limits.max_prompt_tokens)?;
    let id = |(at, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| wrong(&format!("{path}[{at}]"), "a token id", value))
    };
    list.iter().enumerate().map(id).collect()
}

/// Tokens that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EncoderUsage {
    pub prompt_tokens: u64,
    pub total_tokens: u64,
}

impl EncoderUsage {
    pub fn of(tokens: u64) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Embeddings {
    /// `list`
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EncoderUsage,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Embedding {
    /// `embedding`
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// Answer of `/embed`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbedAnswer {
    pub model: String,
    pub embeddings: Vec<Vec<f32>>,
    pub usage: EncoderUsage,
}

/// Answer of `/rerank`: best first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    pub id: String,
    pub model: String,
    pub results: Vec<Ranked>,
    pub usage: EncoderUsage,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranked {
    /// Of the document in the request.
    pub index: usize,
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<RankedText>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankedText {
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(body: &str) -> Result<EmbeddingsRequest, InvalidField> {
        EmbeddingsRequest::parse(body.as_bytes(), &RequestLimits::default())
    }

    #[test]
    fn inputs_come_as_texts_or_ids() {
        let inputs = |body: &str| embeddings(body).expect("it can be used").inputs;
        let text = |text: &str| EncoderInput::Text(text.to_owned());
        assert_eq!(inputs(r#"{"model":"m","input":"a"}"#), [text("a")]);
        assert_eq!(inputs(r#"{"model":"m","input":["a","b"],"user":"u"}"#), [text("a"), text("b")]);
        assert_eq!(inputs(r#"{"input":[1,2]}"#), [EncoderInput::Tokens(vec![1, 2])]);
        let both = [EncoderInput::Tokens(vec![1]), EncoderInput::Tokens(vec![2, 3])];
        assert_eq!(inputs(r#"{"input":[[1],[2,3]],"encoding_format":"base64"}"#), both);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (body, param) in [
            (r#"{"model":"m"}"#, "input"),
            (r#"{"input":[]}"#, "input"),
            (r#"{"input":["a",""]}"#, "input"),
            (r#"{"input":["a",7]}"#, "input[1]"),
            (r#"{"input":[1,-1]}"#, "input[1]"),
            (r#"{"input":"a","dimensions":0}"#, "dimensions"),
            (r#"{"input":"a","encoding_format":"hex"}"#, "encoding_format"),
            (r#"{"input":"a","what":1}"#, "what"),
        ] {
            assert_eq!(embeddings(body).expect_err(body).param.as_deref(), Some(param), "{body}");
        }
        for (body, param) in [
            (r#"{"documents":["a"]}"#, "query"),
            (r#"{"query":"q","documents":[]}"#, "documents"),
            (r#"{"query":"q","documents":["a",1]}"#, "documents[1]"),
            (r#"{"query":"q","documents":["a"],"top_n":-1}"#, "top_n"),
        ] {
            let refused = RerankRequest::parse(body.as_bytes()).expect_err(body);
            assert_eq!(refused.param.as_deref(), Some(param), "{body}");
        }
        let parsed =
            RerankRequest::parse(br#"{"query":"q","documents":["a",{"text":"b"}]}"#).expect("it can be used");
        assert_eq!(parsed.documents, ["a", "b"]);
    }
}
