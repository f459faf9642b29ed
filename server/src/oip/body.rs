//! Requests and responses of `infer` over HTTP: JSON, with the data of tensors in it or behind it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};

use super::{
    contract::{InferRequest, MAX_IDS, WantedOutput},
    run::Answer,
    tensor::{Data, Tensor},
    terms::{Terms, boolean},
};
use crate::api::{ApiError, check_values};

/// How many bytes of a body are JSON; tensors follow.
pub(crate) const JSON_BYTES: HeaderName = HeaderName::from_static("inference-header-content-length");
const SIZE: &str = "binary_data_size";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<HeadTensor>,
    #[serde(default)]
    outputs: Vec<HeadOutput>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadTensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// How much of a body is JSON, as its headers say; `None` = all.
pub(crate) fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let what = "send the body without `content-encoding`: compressed requests are not read here";
        return Err(ApiError::invalid("content-encoding", what));
    }
    let Some(value) = headers.get(JSON_BYTES) else { return Ok(None) };
    let bytes = value.to_str().ok().and_then(|text| text.parse().ok());
    bytes.map(Some).ok_or_else(|| {
        ApiError::invalid(
            JSON_BYTES.as_str(),
            "the header `Inference-Header-Content-Length` must be a number",
        )
    })
}

/// The time that a body gives its request, read before the body is understood.
pub(crate) fn timeout(body: &[u8]) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Body {
        parameters: Parameters,
    }
    #[derive(Deserialize)]
    struct Parameters {
        timeout: u64,
    }
    // The first value: tensors may follow.
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Body>();
    let micros = values.next()?.ok()?.parameters.timeout;
    (micros > 0).then(|| Duration::from_micros(micros))
}

/// What a body asks for.
pub(crate) fn parse(body: &Bytes, json_bytes: Option<usize>) -> Result<(InferRequest, Terms), ApiError> {
    let n = json_bytes.unwrap_or(body.len());
    if n > body.len() {
        let what = format!(
            "the header `Inference-Header-Content-Length` is {n}, but the body has {} bytes",
            body.len()
        );
        return Err(ApiError::invalid(JSON_BYTES.as_str(), what));
    }
    let mut tail = body.slice(n..);
    // As many as two tensors of ids and their mask may have.
    check_values(&body[..n], 2 * MAX_IDS as u32)?;
    let head: Head = serde_json::from_slice(&body[..n]).map_err(|err| bad_json(&err))?;
    let mut parameters = head.parameters;
    let terms = Terms::take(&mut parameters)?;
    let inputs = head.inputs.into_iter().map(|tensor| input(tensor, &mut tail)).collect::<Result<_, _>>()?;
    if !tail.is_empty() {
        let what =
            format!("{} bytes follow the JSON that are no tensor's: say `{SIZE}` for each", tail.len());
        return Err(ApiError::invalid(SIZE, what));
    }
    let outputs = head
        .outputs
        .into_iter()
        .map(|output| WantedOutput { name: output.name, parameters: output.parameters });
    let mut outputs: Vec<_> = outputs.collect();
    let mut terms = terms;
    for output in &mut outputs {
        if output.parameters.contains_key("binary_data") {
            // There is one output, so that it says so for all.
            terms.binary_output = boolean(&mut output.parameters, "binary_data")?;
        }
    }
    Ok((InferRequest { id: head.id, parameters, inputs, outputs }, terms))
}

pub(crate) fn bad_json(err: &serde_json::Error) -> ApiError {
    ApiError::invalid("body", format!("cannot read the request as JSON of this protocol: {err}"))
}

fn input(tensor: HeadTensor, tail: &mut Bytes) -> Result<Tensor, ApiError> {
    let HeadTensor { name, datatype, shape, mut parameters, data } = tensor;
    let short: String = name.chars().take(100).collect();
    let refused = |what: String| ApiError::invalid(&short, format!("input `{short}`: {what}"));
    let size = parameters.remove(SIZE);
    if let Some(other) = parameters.keys().next() {
        let other: String = other.chars().take(100).collect();
        return Err(refused(format!("parameter `{other}` is not supported; there is no shared memory here")));
    }
    let data = match (data, size) {
        (Some(data), None) => Data::Json(data),
        (None, Some(size)) => {
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
            let Some(size) = size.filter(|size| *size <= tail.len()) else {
                return Err(refused(format!(
                    "`{SIZE}` must be the tensor's bytes behind the JSON: {} are left",
                    tail.len()
                )));
            };
            Data::Raw(tail.split_to(size))
        }
        (Some(_), Some(_)) => return Err(refused(format!("has both `data` and `{SIZE}`: send one of them"))),
        (None, None) => {
            return Err(refused(format!("has no data: neither `data` nor the parameter `{SIZE}`")));
        }
    };
    Ok(Tensor { name, datatype, shape, data })
}

/// The answer, as JSON or with its tensor as bytes behind it.
pub(crate) fn response(model: &str, version: &str, id: String, answer: &Answer, binary: bool) -> Response {
    let output = &answer.output;
    let mut tensor = json!({ "name": output.name, "datatype": output.datatype(), "shape": output.shape });
    let mut head = json!({ "model_name": model, "model_version": version });
    if !id.is_empty() {
        head["id"] = id.into();
    }
    if !answer.parameters.is_empty() {
        head["parameters"] = answer.parameters.clone().into();
    }
    if !binary {
        tensor["data"] = output.json();
        head["outputs"] = json!([tensor]);
        return axum::Json(head).into_response();
    }
    let raw = output.raw();
    tensor["parameters"] = json!({ SIZE: raw.len() });
    head["outputs"] = json!([tensor]);
    let head = head.to_string();
    let mut body = BytesMut::with_capacity(head.len() + raw.len());
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(&raw);
    let mut response = Body::from(body.freeze()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(JSON_BYTES, HeaderValue::from(head.len()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: Value, tail: &[u8]) -> Result<(InferRequest, Terms), ApiError> {
        let head = json.to_string();
        let body = [head.as_bytes(), tail].concat();
        parse(&body.into(), Some(head.len()))
    }

    fn binary(size: Value) -> Value {
        json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [2], "parameters": {SIZE: size}}]})
    }

    #[test]
    fn tensors_lie_behind_the_json_in_order() {
        let one = |name, size| json!({"name": name, "datatype": "INT8", "shape": [size], "parameters": {SIZE: size}});
        let (request, terms) = parsed(json!({
            "id": "7", "parameters": {"binary_data_output": true},
            "inputs": [one("a", 2), {"name": "b", "datatype": "INT8", "shape": [1], "data": [5]}, one("c", 1)],
            "outputs": [{"name": "y", "parameters": {"binary_data": false}}]
        }), &[1, 2, 3]).unwrap();
        assert_eq!((request.id.as_str(), terms.binary_output), ("7", false));
        let values: Vec<_> = request.inputs.iter().map(|tensor| tensor.integers(9).unwrap()).collect();
        assert_eq!(values, [vec![1, 2], vec![5], vec![3]]);
        assert!(request.outputs[0].parameters.is_empty());
    }

    #[test]
    fn bodies_that_do_not_add_up_are_refused() {
        assert!(parsed(binary(json!(2)), &[1, 2]).is_ok());
        for (json, tail) in [
            (binary(json!(3)), &[1, 2][..]),
            (binary(json!(1)), &[1, 2]),
            (binary(json!(-1)), &[1, 2]),
            (binary(json!(u64::MAX)), &[1, 2]),
            (binary(json!("2")), &[1, 2]),
            (json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1]}]}), &[]),
            (
                json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1],
                                "parameters": {SIZE: 1}}]}),
                &[1],
            ),
            (
                json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1],
                                "parameters": {"shared_memory_region": "a"}}]}),
                &[],
            ),
            (json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1.5], "data": [1]}]}), &[]),
            (json!({"inputs": [{"name": "x", "datatype": "INT8", "shape": [1e30], "data": [1]}]}), &[]),
            (json!({"inputs": {}}), &[]),
            (json!({}), &[]),
            (json!([]), &[]),
            (json!({"inputs": [], "input": []}), &[]),
        ] {
            assert!(parsed(json.clone(), tail).is_err(), "{json}");
        }
        assert!(parse(&Bytes::from_static(b"{}"), Some(3)).is_err());
        assert!(parse(&Bytes::new(), Some(0)).is_err());
    }

    #[test]
    fn the_headers_say_where_the_json_ends() {
        let headers = |value| HeaderMap::from_iter([(JSON_BYTES, HeaderValue::from_static(value))]);
        assert_eq!(json_bytes(&headers("12")).unwrap(), Some(12));
        assert_eq!(json_bytes(&HeaderMap::new()).unwrap(), None);
        assert!(json_bytes(&headers("-1")).is_err());
        assert!(json_bytes(&headers("99999999999999999999")).is_err());
        let packed = HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        assert!(json_bytes(&packed).is_err());
    }
}
