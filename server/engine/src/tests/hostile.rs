//! Files that lie. Each must give an error that names a file, without a panic in any library and without asking
//! for memory that the file does not justify.

use std::{fs, path::Path};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::LoadError;

fn load(source: ModelSource) -> Result<Engine, LoadError> {
    let outcome = Engine::load(&source, &config(), &mut |_| ());
    if let Err(LoadError::Corrupt { what, .. }) = &outcome {
        assert!(!what.contains("panic"), "{what}");
    }
    outcome
}

#[track_caller]
fn assert_corrupt(what: &str, outcome: Result<Engine, LoadError>) {
    assert!(matches!(outcome, Err(LoadError::Corrupt { .. })), "{what}: {outcome:?}");
}

/// Writes `bytes` over one file of a good folder and loads it.
fn folder_with(dir: &Path, file: &str, bytes: &[u8]) -> Result<Engine, LoadError> {
    fs::write(dir.join(file), bytes).unwrap();
    load(ModelSource::Folder(dir.to_owned()))
}

fn gguf_with(dir: &Path, bytes: &[u8]) -> Result<Engine, LoadError> {
    let path = dir.join("hostile.gguf");
    fs::write(&path, bytes).unwrap();
    load(ModelSource::GgufFile(path))
}

#[test]
fn damaged_safetensors_are_corrupt() {
    let dir = folder(&TinyModel::default());
    let good = TinyModel::default().safetensors().unwrap();
    for cut in [0, 4, 8, 9, 100, 1000, good.len() / 2, good.len() - 1] {
        assert_corrupt(&format!("cut at {cut}"), folder_with(dir.path(), "model.safetensors", &good[..cut]));
    }
    for length in [0, 1 << 20, 99_000_000, 1 << 40, u64::MAX - 7, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], &good[8..]].concat();
        assert_corrupt(&format!("header of {length}"), folder_with(dir.path(), "model.safetensors", &bytes));
    }
    for header in [
        r#"{"x":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        "[]",
        "{",
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        assert_corrupt(header, folder_with(dir.path(), "model.safetensors", &bytes));
    }
    let other_shape = TinyModel { hidden: 16, ..TinyModel::default() }.safetensors().unwrap();
    assert_corrupt("other shape", folder_with(dir.path(), "model.safetensors", &other_shape));
}

#[test]
fn indexes_that_lie_are_corrupt() {
    let dir = folder(&TinyModel::default());
    for index in [
        r#"{}"#,
        r#"{"weight_map": {}}"#,
        r#"{"weight_map": {"a": "../../../etc/passwd"}}"#,
        r#"{"weight_map": {"a": "/etc/x.safetensors"}}"#,
        r#"{"weight_map": {"a": "model.safetensors"}}"#,
        r#"{"weight_map": {"a": 7}}"#,
        "nonsense",
    ] {
        assert_corrupt(index, folder_with(dir.path(), "model.safetensors.index.json", index.as_bytes()));
    }
    let missing = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    let outcome = folder_with(dir.path(), "model.safetensors.index.json", missing.as_bytes());
    assert!(
        matches!(&outcome, Err(LoadError::NotFound { file, .. }) if file == "model-00001-of-00002.safetensors"),
        "{outcome:?}"
    );
}

#[test]
fn broken_text_files_are_named() {
    for (file, bytes) in [
        ("config.json", &b"{"[..]),
        ("config.json", b"[]"),
        ("config.json", b"{\"model_type\": \"llama\"}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"{\"chat_template\": \"{% if %}\"}"),
        ("tokenizer_config.json", b"{\"chat_template\": 7}"),
        ("chat_template.jinja", b"{{ \xff"),
        ("generation_config.json", b"{\"eos_token_id\": \"x\"}"),
    ] {
        let dir = folder(&TinyModel::default());
        let named = match folder_with(dir.path(), file, bytes) {
            Err(LoadError::Corrupt { file, .. } | LoadError::Unsupported { file, .. }) => file,
            other => panic!("{file}: {other:?}"),
        };
        assert_eq!(named, file);
    }
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = folder(&TinyModel::default());
        fs::remove_file(dir.path().join(file)).unwrap();
        match load(ModelSource::Folder(dir.path().to_owned())) {
            Err(LoadError::NotFound { file: named, hint }) => assert!(named == file && !hint.is_empty()),
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn damaged_gguf_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("good.gguf");
    TinyModel::default().write_gguf(&path).unwrap();
    let good = fs::read(&path).unwrap();
    gguf_with(dir.path(), &good).unwrap();
    for cut in (0..good.len()).step_by(good.len() / 60) {
        assert_corrupt(&format!("cut at {cut}"), gguf_with(dir.path(), &good[..cut]));
    }
    // Magic, version, number of tensors, number of metadata entries, first key's length.
    for (at, value) in
        [(0, 0), (8, u64::MAX), (8, 1 << 30), (16, u64::MAX), (16, 1 << 30), (24, u64::MAX), (24, 1 << 40)]
    {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        assert_corrupt(&format!("{value} at {at}"), gguf_with(dir.path(), &bytes));
    }
}

#[test]
fn random_damage_never_panics() {
    let dir = folder(&TinyModel { layers: 1, hidden: 8, heads: 2, kv_heads: 1, ..TinyModel::default() });
    let small = TinyModel { layers: 1, hidden: 8, heads: 2, kv_heads: 1, ..TinyModel::default() };
    small.write_gguf(&dir.path().join("good.gguf")).unwrap();
    let gguf = fs::read(dir.path().join("good.gguf")).unwrap();
    let safetensors = small.safetensors().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut damage = |good: &[u8], header: usize| {
        let mut bytes = good.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            bytes[at] = if rng.random() { rng.random() } else { bytes[at] ^ (1 << rng.random_range(0..8)) };
        }
        bytes
    };
    let mut refused = 0;
    for _ in 0..300 {
        let outcome = gguf_with(dir.path(), &damage(&gguf, gguf.len() / 3));
        refused += u32::from(outcome.is_err());
        let outcome = folder_with(dir.path(), "model.safetensors", &damage(&safetensors, 1200));
        refused += u32::from(outcome.is_err());
    }
    assert!(refused > 100, "only {refused} of 600 damaged files were refused");
}

/// Numbers that only look like a small tensor: a product of 0 hides factors that overflow in any other order.
#[test]
fn a_gguf_tensor_without_elements_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    TinyModel::default().write_gguf(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // One dimension becomes none: the count of dimensions, then the first of them.
    assert_eq!(bytes[at..at + 4], 1u32.to_le_bytes());
    bytes[at + 4..at + 12].copy_from_slice(&0u64.to_le_bytes());
    let error = gguf_with(dir.path(), &bytes).err().unwrap().to_string();
    assert!(error.contains("dimension of 0"), "{error}");
}

#[test]
fn a_pytorch_state_dict_is_the_same_model() {
    let model = TinyModel::default();
    let dir = folder(&model);
    let from_safetensors = generate(&engine(), greedy(&[1, 2, 3], 20));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let loaded = folder_with(dir.path(), "pytorch_model.bin", &model.pytorch()).unwrap();
    assert_eq!(ids(&generate(&loaded, greedy(&[1, 2, 3], 20)).0), ids(&from_safetensors.0));
}

#[test]
fn damaged_pytorch_files_are_errors() {
    let dir = folder(&TinyModel::default());
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let good = TinyModel::default().pytorch();
    let with = |bytes: &[u8]| folder_with(dir.path(), "pytorch_model.bin", bytes);
    for cut in [2, 30, 100, 2000, good.len() / 2, good.len() - 23, good.len() - 1] {
        assert_corrupt(&format!("cut at {cut}"), with(&good[..cut]));
    }
    // Executing something is what makes pickles dangerous.
    let at = good.windows(18).position(|w| w == b"_rebuild_tensor_v2").unwrap();
    let mut calls = good.clone();
    calls[at..at + 18].copy_from_slice(b"import_and_run_it!");
    match with(&calls) {
        Err(LoadError::Corrupt { what, .. }) => assert!(what.contains("not executed"), "{what}"),
        other => panic!("{other:?}"),
    }
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let pickle = 30..3000;
    let directory = good.len() - 2500..good.len();
    for _ in 0..300 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let place = if rng.random() { pickle.clone() } else { directory.clone() };
            let at = rng.random_range(place);
            bytes[at] = rng.random();
        }
        // Some flips only rename or move a tensor's elements: no error is wanted then, only an end.
        drop(with(&bytes));
    }
}

#[test]
fn formats_that_cannot_be_served_say_how_to_convert() {
    let dir = folder(&TinyModel::default());
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let refused = |outcome: Result<Engine, LoadError>, named: &str| match outcome {
        Err(LoadError::Unsupported { what, hint, .. }) => {
            assert!(what.contains(named) && hint.contains("save_pretrained"), "{what}; {hint}");
        }
        other => panic!("{named}: {other:?}"),
    };
    refused(folder_with(dir.path(), "saved_model.pb", b"x"), "SavedModel");
    refused(
        folder_with(dir.path(), "pytorch_model.bin", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."),
        "1.6",
    );
    let script = TinyModel::default().pytorch();
    let script: Vec<u8> = replaced(&script, b"model/data/0", b"model/code/0");
    refused(folder_with(dir.path(), "pytorch_model.bin", &script), "TorchScript");
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for at in 0..=bytes.len() - from.len() {
        if &bytes[at..at + from.len()] == from {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}
