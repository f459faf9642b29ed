//! Parameters that are the protocol's own, whatever the model.

use std::time::Duration;

use candela_wire::openai::InvalidField;
use serde_json::{Map, Value};

use crate::api::ApiError;

/// What a request says about itself rather than to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Terms {
    /// Time that the client gives it.
    pub(crate) timeout: Option<Duration>,
    /// A stream's last response is empty and says that it is the last.
    pub(crate) empty_final: bool,
    /// Tensors as bytes behind the JSON, where an output does not say.
    pub(crate) binary_output: bool,
}

impl Terms {
    /// Takes the protocol's own parameters out of `parameters`.
    pub(crate) fn take(parameters: &mut Map<String, Value>) -> Result<Self, ApiError> {
        let unsupported = |name: &str, what: &str| {
            Err(ApiError::Invalid(InvalidField::unsupported(name, format!("parameter `{name}`: {what}"))))
        };
        for name in ["sequence_id", "sequence_start", "sequence_end"] {
            let none = |value: &Value| {
                matches!(value, Value::Null | Value::Bool(false)) || value == 0 || value == ""
            };
            if !parameters.remove(name).is_none_or(|value| none(&value)) {
                return unsupported(name, "models here keep no state between requests: leave it out");
            }
        }
        if parameters.remove("priority").is_some_and(|value| value != 0) {
            return unsupported(
                "priority",
                "requests are answered in the order in which they come: leave it out",
            );
        }
        let timeout = match parameters.remove("timeout") {
            None | Some(Value::Null) => None,
            // Triton's clients send 0 for none.
            Some(value) if value == 0 => None,
            Some(value) => match value.as_u64() {
                Some(micros) => Some(Duration::from_micros(micros)),
                None => {
                    let what = "parameter `timeout` must be a whole number of microseconds";
                    return Err(ApiError::invalid("timeout", what));
                }
            },
        };
        Ok(Self {
            timeout,
            empty_final: boolean(parameters, "triton_enable_empty_final_response")?,
            binary_output: boolean(parameters, "binary_data_output")?,
        })
    }
}

pub(crate) fn boolean(parameters: &mut Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match parameters.remove(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(value),
        Some(_) => Err(ApiError::invalid(name, format!("parameter `{name}` must be true or false"))),
    }
}
