//! Compares with what `golden/encoders.py` recorded from transformers.

use std::{path::Path, sync::Arc};

use serde::Deserialize;

use super::{
    config::{self, Head},
    graph::{Encoder, Row},
};
use crate::{files::Files, kernels::Pool, weights::folder::FolderWeights};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    types: Vec<u32>,
    /// Hidden states or logits per token, or one row of scores.
    values: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/encoders.json");
    serde_json::from_slice::<Golden>(&std::fs::read(path).unwrap()).unwrap().cases
}

fn load(name: &str) -> Encoder {
    let files = Files::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)).unwrap();
    let shape = config::shape(files.json(config::CONFIG).unwrap().unwrap()).unwrap();
    let weights = FolderWeights::open(&files).unwrap();
    Encoder::load(shape, &weights, None, Arc::new(Pool::new(2).unwrap())).unwrap()
}

fn compute(encoder: &mut Encoder, rows: &[Row<'_>]) -> Vec<f32> {
    match encoder.shape.head {
        Head::Embed => encoder.hidden(rows).unwrap().to_vec(),
        _ => encoder.logits(rows).unwrap(),
    }
}

#[test]
fn encoders_agree_with_transformers_and_have_the_same_bits_in_a_batch() {
    let cases = cases();
    assert_eq!(cases.len(), 7);
    for case in &cases {
        let mut encoder = load(&case.name);
        let rows: Vec<_> =
            case.sequences.iter().map(|s| Row { tokens: &s.tokens, types: &s.types }).collect();
        let together = compute(&mut encoder, &rows);
        let alone: Vec<f32> =
            rows.iter().flat_map(|row| compute(&mut encoder, std::slice::from_ref(row))).collect();
        assert_eq!(together, alone, "{}: the same bits in a batch and alone", case.name);
        let theirs: Vec<f32> = case.sequences.iter().flat_map(|s| s.values.concat()).collect();
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = together.iter().zip(&theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(
            together.len() == theirs.len() && error <= 1e-3,
            "{}: max|a-b|/max|b| = {error:e}",
            case.name
        );
    }
}

#[test]
fn impossible_texts_are_refused_in_words() {
    let mut encoder = load("xlm-roberta");
    assert_eq!(encoder.max_tokens(), 62);
    for tokens in [vec![], vec![3; 63], vec![64]] {
        assert!(encoder.hidden(&[Row { tokens: &tokens, types: &[] }]).is_err(), "{} tokens", tokens.len());
    }
}
