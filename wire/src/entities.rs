//! `POST /token-classify`: what is named in texts, with the words of transformers' pipeline `token-classification`.

use serde::Serialize;
use serde_json::Value;

use crate::{
    encoders::{EncoderUsage, MAX_INPUTS},
    openai::{
        InvalidField,
        fields::{Fields, list_at, string_at, wrong},
    },
};

/// Labels that a request may leave out.
const MAX_IGNORED: usize = 1024;

/// How tokens become entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AggregationStrategy {
    None,
    Simple,
    First,
    Average,
    Max,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TokenClassifyRequest {
    pub model: Option<String>,
    pub inputs: Vec<String>,
    pub aggregation_strategy: AggregationStrategy,
    /// Labels of which nothing is said; `O` if absent.
    pub ignore_labels: Vec<String>,
    /// Cut what is too long instead of refusing it.
    pub truncate: bool,
}

impl TokenClassifyRequest {
    pub fn parse(body: &[u8]) -> Result<Self, InvalidField> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let inputs = match fields.required("input")? {
            Value::String(text) => vec![text],
            value @ Value::Array(_) => texts("input", value, MAX_INPUTS)?,
            other => return Err(wrong("input", "a text or a list of texts", &other)),
        };
        if inputs.is_empty() {
            return Err(InvalidField::value("input", "`input` is empty: there is nothing to classify"));
        }
        if let Some(at) = inputs.iter().position(String::is_empty) {
            return Err(InvalidField::value("input", format!("`input[{at}]` is empty")));
        }
        let aggregation_strategy = match fields.string("aggregation_strategy")?.as_deref() {
            Some("none") => AggregationStrategy::None,
            None | Some("simple") => AggregationStrategy::Simple,
            Some("first") => AggregationStrategy::First,
            Some("average") => AggregationStrategy::Average,
            Some("max") => AggregationStrategy::Max,
            Some(other) => {
                let other: String = other.chars().take(100).collect();
                let message = format!(
                    "`aggregation_strategy` must be `none`, `simple`, `first`, `average` or `max`, but is `{other}`"
                );
                return Err(InvalidField::value("aggregation_strategy", message));
            }
        };
        let ignore_labels = match fields.take("ignore_labels") {
            None => vec!["O".to_owned()],
            Some(value) => texts("ignore_labels", value, MAX_IGNORED)?,
        };
        let truncate = fields.boolean("truncate")?.unwrap_or(false);
        fields.finish()?;
        Ok(Self { model, inputs, aggregation_strategy, ignore_labels, truncate })
    }
}

fn texts(name: &str, value: Value, most: usize) -> Result<Vec<String>, InvalidField> {
    let list = list_at(name, value, most)?;
    list.into_iter().enumerate().map(|(at, value)| string_at(&format!("{name}[{at}]"), value)).collect()
}

/// Answer of `/token-classify`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenClassifyAnswer {
    pub model: String,
    /// For each text what is named in it, in its order.
    pub entities: Vec<Vec<Entity>>,
    pub usage: EncoderUsage,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entity {
    /// Label of one token, with the strategy `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// Label of several tokens, without `B-` or `I-`, with the other strategies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_group: Option<String>,
    pub score: f32,
    /// Of the token, with the strategy `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    pub word: String,
    /// Characters of the text.
    pub start: usize,
    pub end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_means_entities_without_o() {
        let parsed = TokenClassifyRequest::parse(br#"{"input":"a"}"#).expect("it can be used");
        let expected = TokenClassifyRequest {
            model: None,
            inputs: vec!["a".to_owned()],
            aggregation_strategy: AggregationStrategy::Simple,
            ignore_labels: vec!["O".to_owned()],
            truncate: false,
        };
        assert_eq!(parsed, expected);
        let body = r#"{"input":["a","b"],"aggregation_strategy":"none","ignore_labels":[],"truncate":true}"#;
        let parsed = TokenClassifyRequest::parse(body.as_bytes()).expect("it can be used");
        assert_eq!(parsed.inputs, ["a", "b"]);
        assert_eq!(parsed.aggregation_strategy, AggregationStrategy::None);
        assert!(parsed.ignore_labels.is_empty() && parsed.truncate);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (body, param) in [
            (r#"{}"#, "input"),
            (r#"{"input":[]}"#, "input"),
            (r#"{"input":["a",""]}"#, "input"),
            (r#"{"input":["a",[1]]}"#, "input[1]"),
            (r#"{"input":7}"#, "input"),
            (r#"{"input":"a","aggregation_strategy":"best"}"#, "aggregation_strategy"),
            (r#"{"input":"a","ignore_labels":"O"}"#, "ignore_labels"),
            (r#"{"input":"a","ignore_labels":["O",1]}"#, "ignore_labels[1]"),
            (r#"{"input":"a","stride":1}"#, "stride"),
        ] {
            let refused = TokenClassifyRequest::parse(body.as_bytes()).expect_err(body);
            assert_eq!(refused.param.as_deref(), Some(param), "{body}");
        }
    }
}
