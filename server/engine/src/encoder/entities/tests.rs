use std::path::Path;

use serde::Deserialize;

use super::*;
use crate::{EngineConfig, ModelSource, encoder::*};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    text: String,
    strategy: String,
    entities: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    #[serde(alias = "entity_group")]
    entity: String,
    score: f32,
    index: Option<usize>,
    word: String,
    start: usize,
    end: usize,
}

fn engine(tokenizer: &str) -> EncoderEngine {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/ner");
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
        (tokenizer, "tokenizer.json"),
    ] {
        std::fs::copy(golden.join(from), dir.path().join(to)).unwrap();
    }
    let unknown = if tokenizer.contains("word-piece") { "[UNK]" } else { "<unk>" };
    let config = serde_json::json!({ "unk_token": unknown });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let config = EngineConfig { threads: Some(1), ..EngineConfig::default() };
    EncoderEngine::load(&ModelSource::Folder(dir.path().to_owned()), &config, &mut |_| ()).unwrap()
}

fn labels(engine: &EncoderEngine, text: &str) -> TokenLabels {
    let (sender, receiver) = std::sync::mpsc::channel();
    let input = engine.encode(text, false).unwrap();
    engine.submit(vec![input], None, Box::new(move |how| sender.send(how).unwrap())).unwrap();
    match receiver.recv_timeout(std::time::Duration::from_secs(60)).unwrap() {
        Encoded::Done(mut outputs) => match outputs.remove(0) {
            Output::Labels(labels) => labels,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn entities_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/entities.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 3 * 6 * 5);
    for cases in golden.cases.chunk_by(|a, b| a.tokenizer == b.tokenizer) {
        let engine = engine(&cases[0].tokenizer);
        for Case { tokenizer, text, strategy, entities } in cases {
            let how = match strategy.as_str() {
                "none" => Aggregation::None,
                "simple" => Aggregation::Simple,
                "first" => Aggregation::First,
                "average" => Aggregation::Average,
                _ => Aggregation::Max,
            };
            let labels = labels(&engine, text);
            let ours = engine.entities(text, &labels, how, &["O".to_owned()]).unwrap();
            let what = format!("{tokenizer} {strategy} {text:?}");
            let plain: Vec<_> =
                ours.iter().map(|e| (e.label.as_str(), e.index, e.word.as_str(), e.start, e.end)).collect();
            let expected: Vec<_> = entities
                .iter()
                .map(|e| (e.entity.as_str(), e.index, e.word.as_str(), e.start, e.end))
                .collect();
            assert_eq!(plain, expected, "{what}");
            for (our, their) in ours.iter().zip(entities) {
                // The golden logits agree to 1e-3 of the largest; these scores were rounded to six places.
                assert!((our.score - their.score).abs() < 2e-3, "{what}: {our:?} {}", their.score);
            }
        }
    }
}

#[test]
fn labels_may_be_kept_or_left_out() {
    let engine = engine("tokenizer-word-piece.json");
    let text = "Köln\u{1F680} besucht Angela";
    let labels = labels(&engine, text);
    let all = engine.entities(text, &labels, Aggregation::None, &[]).unwrap();
    let names: std::collections::BTreeSet<String> = all.iter().map(|e| e.label.clone()).collect();
    assert_eq!(all.len(), labels.tokens.len());
    let none: Vec<String> = names.into_iter().collect();
    assert_eq!(engine.entities(text, &labels, Aggregation::None, &none).unwrap(), []);
    // The positions are characters, whatever their bytes.
    let characters: Vec<char> = text.chars().collect();
    let last = all.last().unwrap();
    assert_eq!(characters[last.start..last.end].iter().collect::<String>(), "Angela");
}
