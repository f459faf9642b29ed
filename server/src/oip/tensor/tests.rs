use serde_json::json;

use super::*;

fn raw(datatype: &str, shape: &[i64], data: &[u8]) -> Tensor {
    let data = Data::Raw(Bytes::copy_from_slice(data));
    Tensor { name: "x".into(), datatype: datatype.into(), shape: shape.into(), data }
}

fn spelled(datatype: &str, shape: &[i64], json: Value) -> Tensor {
    Tensor { name: "x".into(), datatype: datatype.into(), shape: shape.into(), data: Data::Json(json) }
}

fn listed(datatype: &str, shape: &[i64], contents: InferTensorContents) -> Tensor {
    Tensor {
        name: "x".into(),
        datatype: datatype.into(),
        shape: shape.into(),
        data: Data::Contents(contents),
    }
}

#[test]
fn texts_come_in_three_ways() {
    let bytes = b"\x01\0\0\0a\0\0\0\0\x03\0\0\0\xe2\x82\xac";
    assert_eq!(raw("BYTES", &[3], bytes).texts(3).unwrap(), ["a", "", "€"]);
    assert_eq!(spelled("BYTES", &[2, 1], json!([["a"], ["b"]])).texts(9).unwrap(), ["a", "b"]);
    let contents = InferTensorContents { bytes_contents: vec![b"a"[..].into()], ..Default::default() };
    assert_eq!(listed("BYTES", &[1], contents).texts(1).unwrap(), ["a"]);
}

#[test]
fn data_that_does_not_fit_its_shape_is_refused() {
    let huge = i64::MAX;
    for tensor in [
        raw("BYTES", &[2], b"\x01\0\0\0a"),
        raw("BYTES", &[1], b"\x01\0\0\0a\x01\0\0\0b"),
        raw("BYTES", &[1], b"\x02\0\0\0a"),
        raw("BYTES", &[1], b"\xff\xff\xff\xffa"),
        raw("BYTES", &[1], b"\x01\0\0"),
        raw("BYTES", &[1], b"\x01\0\0\0\xff"),
        raw("BYTES", &[-1], b""),
        raw("BYTES", &[huge, huge], b""),
        raw("BYTES", &[huge, huge, 0], b"\x01\0\0\0a"),
        raw("BYTES", &[huge], b""),
        raw("BYTES", &[1; 9], b"\x01\0\0\0a"),
        raw("FP32", &[1], b"\x01\0\0\0"),
        spelled("BYTES", &[1], json!(["a", "b"])),
        spelled("BYTES", &[1], json!([1])),
        listed("BYTES", &[1], InferTensorContents::default()),
    ] {
        let err = tensor.texts(100).unwrap_err();
        assert!(err.to_string().contains("`x`"), "{err}");
    }
    assert_eq!(raw("BYTES", &[0], b"").texts(100).unwrap(), Vec::<String>::new());
}

#[test]
fn integers_keep_their_sign() {
    assert_eq!(raw("INT8", &[2], &[0xff, 0x7f]).integers(2).unwrap(), [-1, 127]);
    assert_eq!(raw("UINT8", &[1], &[0xff]).integers(2).unwrap(), [255]);
    assert_eq!(raw("INT32", &[1], &(-7i32).to_le_bytes()).integers(2).unwrap(), [-7]);
    assert_eq!(raw("INT64", &[1], &i64::MIN.to_le_bytes()).integers(2).unwrap(), [i64::MIN]);
    assert!(raw("UINT64", &[1], &u64::MAX.to_le_bytes()).integers(2).is_err());
    assert!(raw("INT64", &[1], &[0; 7]).integers(2).is_err());
    assert!(raw("INT64", &[3], &[0; 24]).integers(2).is_err());
    assert!(raw("INT128", &[1], &[0; 16]).integers(2).is_err());
    assert!(spelled("INT64", &[1], json!([1.5])).integers(2).is_err());
    let contents = InferTensorContents { int_contents: vec![-3], ..Default::default() };
    assert_eq!(listed("INT16", &[1], contents).integers(1).unwrap(), [-3]);
}

#[test]
fn wishes_have_one_value() {
    assert_eq!(raw("FP32", &[1], &0.5f32.to_le_bytes()).scalar().unwrap(), json!(0.5));
    assert_eq!(raw("FP64", &[1, 1], &0.25f64.to_le_bytes()).scalar().unwrap(), json!(0.25));
    assert_eq!(raw("BOOL", &[1], &[1]).scalar().unwrap(), json!(true));
    assert_eq!(raw("INT32", &[], &9i32.to_le_bytes()).scalar().unwrap(), json!(9));
    assert_eq!(raw("BYTES", &[1], b"\x01\0\0\0a").scalar().unwrap(), json!("a"));
    for tensor in [
        raw("FP32", &[1], &f32::NAN.to_le_bytes()),
        raw("FP32", &[1], &[0; 3]),
        raw("FP16", &[1], &[0; 2]),
        raw("BOOL", &[2], &[0; 2]),
        raw("BOOL", &[0], &[]),
        raw("", &[1], &[0; 2]),
    ] {
        assert!(tensor.scalar().is_err(), "{tensor:?}");
    }
}
