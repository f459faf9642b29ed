//! What a model's author advises on sampling.

use candela_engine::SamplingParams;
use candela_wire::termination::ExitReason;
use serde_json::Value;

use crate::Fatal;

pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// The author's advice on sampling. `do_sample: false` means greedy; without the file, the model's own distribution.
pub(super) fn sampling_defaults(settings: Option<&[u8]>) -> Result<SamplingParams, Fatal> {
    let mut params = SamplingParams::default();
    let Some(settings) = settings else { return Ok(params) };
    let invalid =
        |what: String| Fatal::new(ExitReason::ModelUnsupported, format!("`{GENERATION_CONFIG}`: {what}"));
    let settings: Value = serde_json::from_slice(settings).map_err(|err| invalid(err.to_string()))?;
    let number = |name: &str, low: f64, high: f64| match settings.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number as f32)),
            _ => Err(invalid(format!("`{name}` must be a number from {low} to {high}"))),
        },
    };
    params.temperature = number("temperature", 0.0, 2.0)?.unwrap_or(params.temperature);
    params.top_p = number("top_p", 0.001, 1.0)?.unwrap_or(params.top_p);
    params.top_k = number("top_k", 0.0, 1e6)?.map_or(params.top_k, |k| k as u32);
    params.min_p = number("min_p", 0.0, 0.99)?.unwrap_or(params.min_p);
    params.repetition_penalty =
        number("repetition_penalty", 0.01, 10.0)?.unwrap_or(params.repetition_penalty);
    if settings.get("do_sample") == Some(&Value::Bool(false)) {
        params.temperature = 0.0;
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authors_sampling_advice_is_the_default() {
        let defaults = |text: &str| sampling_defaults(Some(text.as_bytes())).unwrap();
        assert_eq!(sampling_defaults(None).unwrap(), SamplingParams::default());
        assert_eq!(defaults("{\"do_sample\": false}").temperature, 0.0);
        let params = defaults(r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 0.8}"#);
        assert_eq!((params.temperature, params.top_k, params.top_p), (0.7, 20, 0.8));
        let err = sampling_defaults(Some(b"{\"top_p\": 7}")).unwrap_err();
        assert_eq!(err.message, "`generation_config.json`: `top_p` must be a number from 0.001 to 1");
    }
}
