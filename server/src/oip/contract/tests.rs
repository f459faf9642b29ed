use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::oip::{tensor::Data, terms::Terms};

fn tensor(name: &str, datatype: &str, shape: &[i64], json: Value) -> Tensor {
    Tensor { name: name.into(), datatype: datatype.into(), shape: shape.into(), data: Data::Json(json) }
}

fn refused<T>(result: Result<T, ApiError>) -> String {
    result.err().expect("must be refused").to_string()
}

#[test]
fn parameters_of_the_protocol_are_taken_and_what_cannot_be_kept_is_refused() {
    let take = |json: Value| Terms::take(&mut json.as_object().unwrap().clone());
    assert_eq!(take(json!({})).unwrap(), Terms::default());
    let given = take(json!({"timeout": 1500, "priority": 0, "sequence_id": 0, "binary_data_output": true}));
    let wanted =
        Terms { timeout: Some(Duration::from_micros(1500)), empty_final: false, binary_output: true };
    assert_eq!(given.unwrap(), wanted);
    for (json, names) in [
        (json!({"sequence_id": 7}), "sequence_id"),
        (json!({"sequence_start": true}), "sequence_start"),
        (json!({"priority": 1}), "priority"),
        (json!({"timeout": -1}), "timeout"),
        (json!({"binary_data_output": 1}), "binary_data_output"),
    ] {
        assert!(refused(take(json)).contains(names));
    }
}

#[test]
fn tensors_become_fields_once_each() {
    let kind = Kind::Generate;
    let of = |inputs, parameters: Value| {
        let parameters = parameters.as_object().unwrap().clone();
        tensors(kind, InferRequest { inputs, parameters, ..InferRequest::default() })
    };
    let text = || tensor("text_input", "BYTES", &[1, 1], json!([["hi"]]));
    let both = of(vec![text(), tensor("max_tokens", "INT32", &[1], json!([3]))], json!({"seed": 1})).unwrap();
    assert_eq!(both.main["text_input"], json!(["hi"]));
    assert_eq!(Value::Object(both.wishes), json!({"seed": 1, "max_tokens": 3}));
    assert!(refused(of(vec![text(), text()], json!({}))).contains("twice"));
    let seed = tensor("seed", "INT64", &[1], json!([3]));
    assert!(refused(of(vec![seed], json!({"seed": 1}))).contains("`seed` is there twice"));
    assert!(
        refused(of(vec![tensor("text", "BYTES", &[1], json!(["a"]))], json!({}))).contains("`text_input`")
    );
}

#[test]
fn ids_lose_their_padding() {
    let ids = tensor("input_ids", "INT64", &[2, 3], json!([[1, 2, 3], [4, 0, 0]]));
    let mask = tensor("attention_mask", "INT64", &[2, 3], json!([1, 1, 1, 1, 0, 0]));
    assert_eq!(rows(&ids, Some(&mask)).unwrap(), json!([[1, 2, 3], [4]]));
    assert_eq!(rows(&ids, None).unwrap(), json!([[1, 2, 3], [4, 0, 0]]));
    let other = tensor("attention_mask", "INT64", &[3, 2], json!([1, 1, 1, 1, 0, 0]));
    assert!(refused(rows(&ids, Some(&other))).contains("attention_mask"));
    for shape in [&[6][..], &[0, 3], &[3, 0], &[-1, -6], &[i64::MAX, i64::MAX]] {
        let data = Data::Raw(Bytes::from(vec![0; 48]));
        let ids = Tensor { name: "input_ids".into(), datatype: "INT64".into(), shape: shape.into(), data };
        assert!(refused(rows(&ids, None)).contains("input_ids"), "{shape:?}");
    }
    // However many dimensions are sent, few come back.
    let long = tensor("input_ids", "INT64", &[1; 10_000], json!([1]));
    assert!(refused(rows(&long, None)).len() < 200);
    assert!(refused(rows(&ids, Some(&long))).len() < 300);
}

#[test]
fn packed_wishes_are_unpacked() {
    let unpacked = |json: Value| {
        let mut wishes = json.as_object().unwrap().clone();
        unpack(&mut wishes).map(|()| Value::Object(wishes))
    };
    let packed = json!({"sampling_parameters": "{\"temperature\": 0, \"top_k\": 4}", "seed": 1});
    assert_eq!(unpacked(packed).unwrap(), json!({"seed": 1, "temperature": 0, "top_k": 4}));
    for json in [
        json!({"sampling_parameters": "{"}),
        json!({"sampling_parameters": "[]"}),
        json!({"sampling_parameters": "{\"seed\": 2}", "seed": 1}),
        json!({"exclude_input_in_output": false}),
    ] {
        assert!(unpacked(json.clone()).is_err(), "{json}");
    }
}
