//! Messages of gRPC from and to what both encodings share.

use std::{collections::HashMap, time::Duration};

use candela_oip::inference::{
    DataType, InferParameter, ModelConfig, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
    ModelInput, ModelMetadataResponse, ModelOutput, ModelTransactionPolicy, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor, model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use http::HeaderMap;
use serde_json::{Map, Number, Value};

use super::{
    super::{
        contract::{InferRequest, Port, WantedOutput},
        http::{PLATFORM, config_datatype},
        run::Answer,
        tensor::{Data, Tensor},
    },
    Kind, Terms,
};
use crate::{api::ApiError, app::App, model::Served};

/// The time that a message gives itself, read before it is understood.
pub(super) fn own_timeout(message: &ModelInferRequest) -> Option<Duration> {
    let micros = match message.parameters.get("timeout")?.parameter_choice.as_ref()? {
        ParameterChoice::Int64Param(micros) => u64::try_from(*micros).ok()?,
        ParameterChoice::Uint64Param(micros) => *micros,
        _ => return None,
    };
    (micros > 0).then(|| Duration::from_micros(micros))
}

/// What a message asks for.
pub(super) fn request(message: ModelInferRequest) -> Result<(InferRequest, Terms), ApiError> {
    let mut parameters = parameters(message.parameters)?;
    let terms = Terms::take(&mut parameters)?;
    let raw = message.raw_input_contents;
    if !raw.is_empty() && raw.len() != message.inputs.len() {
        let what = format!(
            "`raw_input_contents` has {} tensors, but `inputs` {}: send raw contents for all of them or for none",
            raw.len(),
            message.inputs.len()
        );
        return Err(ApiError::invalid("raw_input_contents", what));
    }
    let mut raw = raw.into_iter();
    let input = |input: InferInputTensor| {
        let InferInputTensor { name, datatype, shape, parameters, contents } = input;
        let short: String = name.chars().take(100).collect();
        let refused = |what: String| ApiError::invalid(&short, format!("input `{short}`: {what}"));
        if let Some(other) = parameters.keys().next() {
            let other: String = other.chars().take(100).collect();
            return Err(refused(format!(
                "parameter `{other}` is not supported; there is no shared memory here"
            )));
        }
        let data = match (raw.next(), contents) {
            (Some(raw), None) => Data::Raw(raw),
            (None, Some(contents)) => Data::Contents(contents),
            (Some(_), Some(_)) => {
                return Err(refused(
                    "has both `contents` and `raw_input_contents`: send one of them".to_owned(),
                ));
            }
            (None, None) => {
                return Err(refused("has no data: neither `contents` nor `raw_input_contents`".to_owned()));
            }
        };
        Ok(Tensor { name, datatype, shape, data })
    };
    let inputs = message.inputs.into_iter().map(input).collect::<Result<_, _>>()?;
    let outputs = message.outputs.into_iter().map(|output| {
        Ok(WantedOutput { name: output.name, parameters: self::parameters(output.parameters)? })
    });
    let outputs = outputs.collect::<Result<_, ApiError>>()?;
    Ok((InferRequest { id: message.id, parameters, inputs, outputs }, terms))
}

fn parameters(parameters: HashMap<String, InferParameter>) -> Result<Map<String, Value>, ApiError> {
    let value = |(name, parameter): (String, InferParameter)| {
        let value = match parameter.parameter_choice {
            None => Value::Null,
            Some(ParameterChoice::BoolParam(value)) => value.into(),
            Some(ParameterChoice::Int64Param(value)) => value.into(),
            Some(ParameterChoice::Uint64Param(value)) => value.into(),
            Some(ParameterChoice::StringParam(value)) => value.into(),
            Some(ParameterChoice::DoubleParam(value)) => match Number::from_f64(value) {
                Some(number) => Value::Number(number),
                None => {
                    let name: String = name.chars().take(100).collect();
                    let what = format!("parameter `{name}` is {value}, which is no number that can be used");
                    return Err(ApiError::invalid(&name, what));
                }
            },
        };
        Ok((name, value))
    };
    parameters.into_iter().map(value).collect()
}

pub(super) fn response(model: String, version: String, id: String, answer: Answer) -> ModelInferResponse {
    let output = answer.output;
    let tensor = InferOutputTensor {
        name: output.name.to_owned(),
        datatype: output.datatype().to_owned(),
        shape: output.shape.clone(),
        ..InferOutputTensor::default()
    };
    ModelInferResponse {
        model_name: model,
        model_version: version,
        id,
        parameters: answer
            .parameters
            .into_iter()
            .filter_map(|(name, value)| Some((name, choice(value)?)))
            .collect(),
        outputs: vec![tensor],
        raw_output_contents: vec![output.raw().into()],
    }
}

/// A parameter of a response.
pub(super) fn choice(value: Value) -> Option<InferParameter> {
    let choice = match value {
        Value::Bool(value) => ParameterChoice::BoolParam(value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => ParameterChoice::Int64Param(number),
            None => ParameterChoice::DoubleParam(number.as_f64()?),
        },
        Value::String(text) => ParameterChoice::StringParam(text),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    Some(InferParameter { parameter_choice: Some(choice) })
}

pub(super) fn metadata(app: &App, served: &Served) -> Result<ModelMetadataResponse, ApiError> {
    let kind = Kind::of(served)?;
    let tensor = |port: Port| TensorMetadata {
        name: port.name.to_owned(),
        datatype: port.datatype.to_owned(),
        shape: port.shape,
    };
    Ok(ModelMetadataResponse {
        name: served.name.clone(),
        versions: app.models.versions(served),
        platform: PLATFORM.to_owned(),
        inputs: kind.inputs().into_iter().map(tensor).collect(),
        outputs: vec![tensor(kind.output())],
    })
}

pub(super) fn config(served: &Served) -> Result<ModelConfigResponse, ApiError> {
    use candela_oip::inference::model_config::SchedulingChoice;

    let kind = Kind::of(served)?;
    let datatype = |port: &Port| {
        DataType::from_str_name(&config_datatype(port.datatype)).unwrap_or(DataType::TypeInvalid).into()
    };
    let input = |port: Port| ModelInput {
        data_type: datatype(&port),
        name: port.name.to_owned(),
        dims: port.shape,
        optional: port.optional,
        ..ModelInput::default()
    };
    let output = kind.output();
    let output = ModelOutput {
        data_type: datatype(&output),
        name: output.name.to_owned(),
        dims: output.shape,
        ..ModelOutput::default()
    };
    let config = ModelConfig {
        name: served.name.clone(),
        platform: PLATFORM.to_owned(),
        backend: PLATFORM.to_owned(),
        input: kind.inputs().into_iter().map(input).collect(),
        output: vec![output],
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: kind == Kind::Generate }),
        scheduling_choice: None::<SchedulingChoice>,
        ..ModelConfig::default()
    };
    Ok(ModelConfigResponse { config: Some(config) })
}

/// Of the header `grpc-timeout`: up to eight digits and a unit. What cannot be read counts as absent, as gRPC's own servers
/// have it.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn timeouts_have_units() {
        let of = |value| {
            timeout(&HeaderMap::from_iter([(
                "grpc-timeout".parse().unwrap(),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(of("5n"), Some(Duration::from_nanos(5)));
        for wrong in ["", "S", "1", "-1S", "999999999S", "1x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn raw_contents_are_for_all_inputs_or_none() {
        let input = |name: &str| InferInputTensor { name: name.into(), shape: vec![1], ..Default::default() };
        let message = |inputs, n| ModelInferRequest {
            inputs,
            raw_input_contents: vec![Default::default(); n],
            ..Default::default()
        };
        assert!(request(message(vec![input("a"), input("b")], 2)).is_ok());
        for (inputs, n) in [(vec![input("a")], 0), (vec![input("a"), input("b")], 1), (vec![], 1)] {
            assert!(request(message(inputs, n)).is_err());
        }
        let both = InferInputTensor { contents: Some(Default::default()), ..input("a") };
        assert!(request(message(vec![both], 1)).is_err());
        let choice = Some(ParameterChoice::DoubleParam(f64::NAN));
        let wish = HashMap::from([("a".to_owned(), InferParameter { parameter_choice: choice })]);
        assert!(request(ModelInferRequest { parameters: wish, ..Default::default() }).is_err());
    }
}
