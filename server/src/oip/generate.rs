//! Triton's `generate` and `generate_stream`: the inputs as fields of a JSON object, the outputs as fields of the answer or
//! of each event.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use candela_wire::{
    openai::{FinishReason, Usage},
    sse,
};
use serde_json::{Map, Value, json};

use super::{
    body::bad_json,
    contract::{InferRequest, Kind, Port},
    run::{Answer, Values},
    tensor::{Data, Tensor},
    terms::Terms,
};
use crate::api::{ApiError, Choice, Piece, Writer, check_values, event, event_stream};

/// What a body asks of a model of this kind.
pub(crate) fn parse(kind: Kind, body: &Bytes) -> Result<(InferRequest, Terms), ApiError> {
    check_values(body, 0)?;
    let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(|err| bad_json(&err))?;
    let id = match fields.remove("id") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(id)) => id,
        Some(_) => return Err(ApiError::invalid("id", "`id` must be a string")),
    };
    let mut parameters = match fields.remove("parameters") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(_) => return Err(ApiError::invalid("parameters", "`parameters` must be an object")),
    };
    let ports = kind.inputs();
    let mut inputs = Vec::new();
    for (name, value) in fields {
        // Wishes are taken as they are, whatever they would be as tensors.
        let is_tensor = |port: &&Port| port.name == name && (!port.optional || port.shape != [1]);
        match ports.iter().find(is_tensor) {
            Some(port) => {
                let shape = shape(&value, port.shape.len());
                let datatype = port.datatype.to_owned();
                inputs.push(Tensor { name, datatype, shape, data: Data::Json(value) });
            }
            // As Triton does it: what is no tensor is a parameter.
            None if parameters.contains_key(&name) => {
                let name: String = name.chars().take(100).collect();
                let what = format!("`{name}` is there twice: once in `parameters` and once beside it");
                return Err(ApiError::invalid(&name, what));
            }
            None => drop(parameters.insert(name, value)),
        }
    }
    let terms = Terms::take(&mut parameters)?;
    Ok((InferRequest { id, parameters, inputs, outputs: Vec::new() }, terms))
}

/// Of a value that may be nested as deep as the tensor has dimensions.
fn shape(value: &Value, n_dimensions: usize) -> Vec<i64> {
    let size = |value: &Value| value.as_array().map_or(1, Vec::len) as i64;
    match (value, n_dimensions) {
        (Value::Array(rows), 2) => vec![size(value), rows.first().map_or(0, size)],
        (value, _) => vec![size(value)],
    }
}

/// The answer's fields; a tensor of one element is that element.
pub(crate) fn fields(model: &str, version: &str, id: &str, answer: Answer) -> Value {
    let mut fields = json!({ "model_name": model, "model_version": version });
    if !id.is_empty() {
        fields["id"] = id.into();
    }
    fields[answer.output.name] = match answer.output.values {
        Values::Text(text) => text.into(),
        Values::Floats(floats) => json!(floats),
    };
    if let Value::Object(map) = &mut fields {
        map.extend(answer.parameters);
    }
    fields
}

/// A stream of one event.
pub(crate) fn single(fields: &Value) -> Response {
    event_stream(event(fields).into())
}

/// Events of a model that generates.
pub(crate) struct Events {
    pub(crate) model: String,
    pub(crate) version: String,
    pub(crate) id: String,
}

impl Events {
    fn said(&self, text: &str) -> Value {
        let mut fields =
            json!({ "model_name": self.model, "model_version": self.version, "text_output": text });
        if !self.id.is_empty() {
            fields["id"] = self.id.clone().into();
        }
        fields
    }
}

impl Writer for Events {
    /// `stream: false`: one event.
    fn whole(&mut self, choices: Vec<Choice>, usage: Usage) -> Response {
        let text: String = choices.iter().flat_map(|choice| choice.pieces.iter().map(Piece::text)).collect();
        let mut fields = self.said(&text);
        if let Some(choice) = choices.first() {
            fields["finish_reason"] = json!(choice.reason);
        }
        fields["num_input_tokens"] = json!(usage.prompt_tokens);
        fields["num_output_tokens"] = json!(usage.completion_tokens);
        single(&fields).into_response()
    }

    fn opening(&mut self, _out: &mut String) {}

    fn piece(&mut self, _index: u32, piece: Piece, _so_far: Option<Usage>, out: &mut String) {
        out.push_str(&event(&self.said(piece.text())));
    }

    fn closing(&mut self, _index: u32, reason: FinishReason, _so_far: Option<Usage>, out: &mut String) {
        let mut last = self.said("");
        last["finish_reason"] = json!(reason);
        out.push_str(&event(&last));
    }

    fn end(&mut self, _usage: Usage, _out: &mut String) {}

    fn failed(&mut self, err: &ApiError, out: &mut String) {
        out.push_str(&sse::frame(&json!({ "error": err.to_string() }).to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_inputs_or_else_parameters() {
        let parse = |kind, json: Value| parse(kind, &json.to_string().into());
        let ask = json!({"text_input": "hi", "parameters": {"seed": 1}, "max_tokens": 3, "id": "a"});
        let (request, _) = parse(Kind::Generate, ask).unwrap();
        assert_eq!(request.inputs.len(), 1);
        assert_eq!(request.inputs[0].texts(1).unwrap(), ["hi"]);
        assert_eq!(Value::Object(request.parameters), json!({"seed": 1, "max_tokens": 3}));
        let ids = json!({"input_ids": [[1, 2, 3], [4, 5, 6]]});
        let (request, _) = parse(Kind::Embed { dimensions: 8 }, ids).unwrap();
        assert_eq!(request.inputs[0].shape, [2, 3]);
        assert!(parse(Kind::Generate, json!({"parameters": {"seed": 1}, "seed": 1})).is_err());
        assert!(parse(Kind::Generate, json!({"parameters": 1})).is_err());
        assert!(parse(Kind::Generate, json!({"id": 1})).is_err());
        assert!(parse(Kind::Generate, json!([])).is_err());
    }
}
