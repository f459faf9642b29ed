//! Decoders of families other than Llama, and blocks of every GGUF type, as `golden/families.py` recorded them.

use serde::Deserialize;

use super::{ModelCase, check_model, folder, load_folder, load_gguf};
use crate::{
    KvType,
    kernels::{RawTensor, StoredType},
};

#[derive(Deserialize)]
struct Families {
    folders: Vec<ModelCase>,
    ggufs: Vec<ModelCase>,
    blocks: Vec<BlockCase>,
}

#[derive(Deserialize)]
struct BlockCase {
    /// As llama.cpp names the type.
    name: String,
    /// One row, in hex.
    bytes: String,
    values: Vec<f32>,
}

fn families() -> Families {
    serde_json::from_slice(&std::fs::read(folder().join("families.json")).unwrap()).unwrap()
}

#[test]
fn logits_of_the_folders_of_all_families_agree_with_transformers() {
    let cases = families().folders;
    assert_eq!(cases.len(), 10);
    for case in cases {
        check_model(&case, &mut load_folder(&case.name, KvType::F32));
    }
}

#[test]
fn logits_of_the_gguf_files_of_all_families_agree_with_transformers() {
    let cases = families().ggufs;
    assert_eq!(cases.len(), 6);
    for case in cases {
        check_model(&case, &mut load_gguf(&case.name));
    }
}

#[test]
fn blocks_of_every_type_have_the_values_that_the_gguf_package_reads() {
    use StoredType::{F16, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let types = [F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
    let cases = families().blocks;
    assert_eq!(cases.len(), types.len());
    for (case, dtype) in cases.iter().zip(types) {
        assert_eq!(case.name, dtype.label());
        let bytes = hex::decode(&case.bytes).unwrap();
        let columns = case.values.len();
        let mut values = vec![0.0; columns];
        RawTensor { dtype, rows: 1, columns, bytes: &bytes }.widen_row(0, &mut values);
        let largest = case.values.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (i, (ours, theirs)) in values.iter().zip(&case.values).enumerate() {
            // The recording has seven digits.
            assert!((ours - theirs).abs() <= 1e-6 * largest, "{} element {i}: {ours}, {theirs}", case.name);
        }
    }
}
