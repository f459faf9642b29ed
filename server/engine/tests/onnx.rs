//! Graphs of the golden BERT models beside our own graph over the same weights, and files that are not to be trusted.
//! `golden/onnx_models.py` made them.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path, sync::mpsc, time::Duration};

use candela_engine::{
    Encoded, EncoderEngine, EncoderTask, EngineConfig, Input, LoadError, ModelSource, Output, Quantization,
    is_encoder,
};

#[path = "support/words.rs"]
mod words;

const PATIENCE: Duration = Duration::from_secs(60);
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");

fn config() -> EngineConfig {
    EngineConfig { threads: Some(2), ..EngineConfig::default() }
}

/// A golden model with a tokenizer.
fn folder(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(GOLDEN).join(name).join(file), dir.path().join(file)).unwrap();
    }
    fs::write(dir.path().join("tokenizer.json"), words::tokenizer().to_string()).unwrap();
    dir
}

fn run(engine: &EncoderEngine, inputs: Vec<Input>) -> Vec<Output> {
    let (sender, receiver) = mpsc::channel();
    engine.submit(inputs, None, Box::new(move |how| drop(sender.send(how)))).unwrap();
    match receiver.recv_timeout(PATIENCE).unwrap() {
        Encoded::Done(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(GOLDEN).join("onnx").join(name)).unwrap()
}

/// The folder of a golden model with a graph in the place of its weights.
fn with_graph(model: &str, place: &str, graph: &[u8]) -> tempfile::TempDir {
    let dir = folder(model);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let path = dir.path().join(place);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, graph).unwrap();
    dir
}

fn load(dir: &Path, config: &EngineConfig) -> Result<EncoderEngine, LoadError> {
    EncoderEngine::load(&ModelSource::Folder(dir.to_owned()), config, &mut |_| ())
}

fn refusal(dir: &Path, config: &EngineConfig) -> String {
    load(dir, config).err().unwrap().to_string()
}

fn vectors(engine: &EncoderEngine, inputs: Vec<Input>) -> Vec<Vec<f32>> {
    let vector = |output| match output {
        Output::Embedding(vector) => vector,
        other => panic!("{other:?}"),
    };
    run(engine, inputs).into_iter().map(vector).collect()
}

/// Both have length 1.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

const TEXTS: [&str; 5] = ["w5 w6 w7", "w9", "w5 w6 w7 w8 w10 w11 w12 w13", "w20 w21 w22 w23", "w5 w6 w8"];

fn texts(engine: &EncoderEngine) -> Vec<Input> {
    TEXTS.iter().map(|text| engine.encode(text, false).unwrap()).collect()
}

#[test]
fn a_graph_has_the_vectors_of_our_own_graph_alone_and_among_others() {
    let native = load(folder("bert").path(), &config()).unwrap();
    let expected = vectors(&native, texts(&native));
    for place in ["model.onnx", "onnx/model.onnx"] {
        let dir = with_graph("bert", place, &golden("bert.onnx"));
        assert!(is_encoder(&ModelSource::Folder(dir.path().to_owned())).unwrap());
        let engine = load(dir.path(), &config()).unwrap();
        assert_eq!(engine.limits(), native.limits());
        let together = vectors(&engine, texts(&engine));
        for ((input, together), expected) in texts(&engine).into_iter().zip(&together).zip(&expected) {
            let alone = vectors(&engine, vec![input]).remove(0);
            let close = alone.iter().zip(together).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "alone {alone:?}, among others {together:?}");
            assert!(cosine(together, expected) > 0.9999, "{}", cosine(together, expected));
        }
        let facts = engine.facts();
        assert_eq!((facts.quantization.as_str(), facts.architecture.as_str()), ("F32", "BertModel"));
        assert!(facts.parameters.abs_diff(native.facts().parameters) < 2000, "{facts:?}");
    }
}

#[test]
fn the_folders_own_pooling_holds_and_a_graph_with_pooling_brings_its_own() {
    let modules = serde_json::json!([
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]);
    let of = |graph: &str| {
        let dir = with_graph("bert", "model.onnx", &golden(graph));
        fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        let pooling = serde_json::json!({"pooling_mode_cls_token": true});
        fs::write(dir.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        let engine = load(dir.path(), &config()).unwrap();
        vectors(&engine, texts(&engine))
    };
    let (by_folder, by_graph) = (of("bert.onnx"), of("bert-pooled.onnx"));
    let far =
        by_folder.iter().flatten().zip(by_graph.iter().flatten()).find(|(a, b)| (**a - **b).abs() > 1e-4);
    assert_eq!(far, None);
    let length: f32 = by_graph[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() > 0.1, "not normalised, as no module asks for it");
}

#[test]
fn eight_bit_graphs_have_the_same_bits_in_any_batch() {
    let native = load(folder("bert").path(), &config()).unwrap();
    let expected = vectors(&native, texts(&native));
    let engine =
        load(with_graph("bert", "onnx/model_quantized.onnx", &golden("bert-int8.onnx")).path(), &config());
    let engine = engine.unwrap();
    assert_eq!(engine.facts().quantization, "I8");
    let together = vectors(&engine, texts(&engine));
    for ((input, together), expected) in texts(&engine).into_iter().zip(&together).zip(&expected) {
        assert_eq!(&vectors(&engine, vec![input])[0], together);
        assert!(cosine(together, expected) > 0.98, "{}", cosine(together, expected));
    }
}

#[test]
fn a_cross_encoders_graph_scores_pairs_as_our_own() {
    let dir = with_graph("bert-rerank", "model.onnx", &golden("bert-rerank.onnx"));
    let engine = load(dir.path(), &config()).unwrap();
    let native = load(folder("bert-rerank").path(), &config()).unwrap();
    assert_eq!(engine.limits().task, EncoderTask::Rerank);
    let scores = |engine: &EncoderEngine| -> Vec<f32> {
        let pairs = [("w5", "w6 w7"), ("w5", "w8"), ("w9 w10", "w6 w7 w11")];
        let inputs =
            pairs.iter().map(|(a, b)| engine.pairs(a, false).unwrap().with(b, usize::MAX).unwrap()).collect();
        let score = |output| match output {
            Output::Score(score) => score,
            other => panic!("{other:?}"),
        };
        run(engine, inputs).into_iter().map(score).collect()
    };
    let (ours, theirs) = (scores(&native), scores(&engine));
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-3), "{ours:?} and {theirs:?}");
}

#[test]
fn limits_are_kept_and_what_a_graph_cannot_do_is_said() {
    let dir = with_graph("bert", "model.onnx", &golden("bert.onnx"));
    let limited = load(dir.path(), &EngineConfig { memory_limit_bytes: Some(200_000), ..config() });
    assert!(matches!(limited, Err(LoadError::OutOfMemory { .. })));
    let wide = load(dir.path(), &EngineConfig { context_length: Some(1 << 20), ..config() });
    assert!(matches!(wide, Err(LoadError::InvalidConfig { field: "context_length", .. })));
    let quantized = load(dir.path(), &EngineConfig { quantization: Some(Quantization::Q8), ..config() });
    assert!(matches!(quantized, Err(LoadError::InvalidConfig { field: "quantization", .. })));

    let dir = with_graph("bert-rerank", "model.onnx", &golden("bert.onnx"));
    let message = refusal(dir.path(), &config());
    assert!(message.contains("last_hidden_state") && message.contains("`logits`"), "{message}");
    let dir = with_graph("bert-ner", "model.onnx", &golden("bert-rerank.onnx"));
    assert!(refusal(dir.path(), &config()).contains("model.onnx"));
    // Weights that our own graph reads come first.
    let both = folder("bert");
    fs::write(both.path().join("model.onnx"), b"no graph").unwrap();
    assert_eq!(load(both.path(), &config()).unwrap().facts().quantization, "F16");
}

/// A message of one field with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        message.push(len as u8 | 0x80);
        len >>= 7;
    }
    message.push(len as u8);
    message.extend_from_slice(bytes);
    message
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|name| field(1, name.as_bytes())).collect();
    node.extend(outputs.iter().flat_map(|name| field(2, name.as_bytes())));
    node.extend(field(4, operator.as_bytes()));
    field(1, &node)
}

/// A model of the given fields of a graph, behind an input `input_ids` and an output `logits`.
fn model(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut graph = parts.concat();
    graph.extend(field(11, &field(1, b"input_ids")));
    graph.extend(field(12, &field(1, b"logits")));
    field(7, &graph)
}

#[test]
fn graphs_that_are_not_to_be_trusted_are_refused_in_words() {
    let external = |location: &str| {
        let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
        field(5, &[field(8, b"w"), field(13, &entry)].concat())
    };
    let huge = field(5, &[field(8, b"w"), vec![0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat());
    let within = field(1, &field(5, &field(6, &[])));
    let chain: Vec<_> = (0..20_000)
        .map(|i| {
            node(
                "Neg",
                &[&if i == 0 { "input_ids".to_owned() } else { i.to_string() }],
                &[&(i + 1).to_string()],
            )
        })
        .collect();
    let cases = [
        (
            model(&[node("Add", &["input_ids", "b"], &["a"]), node("Neg", &["a"], &["b"])]),
            "`b`, which nothing before",
        ),
        (model(&[node("Neg", &["logits"], &["logits"])]), "`logits`, which nothing before"),
        (model(&[]), "nothing computes its output `logits`"),
        (
            model(&[node("Neg", &["input_ids"], &["a"]), node("Neg", &["input_ids"], &["a"])]),
            "there is already",
        ),
        (model(&[external("../../secret.data")]), "outside of the graph's folder"),
        (model(&[external("/secret.data")]), "outside of the graph's folder"),
        (model(&[external("..")]), "outside of the graph's folder"),
        (model(&[huge]), "dimensions that no file holds"),
        (model(&[within]), "a graph within the graph"),
        (model(&chain), "more than 16384 nodes"),
        (b"PK\x03\x04 no graph at all".to_vec(), "no ONNX file"),
        // Groups, a length behind the end, a number without end.
        (vec![0x0b], "no ONNX file"),
        (vec![0x12, 0xff, 0xff, 0xff, 0xff, 0x7f], "no ONNX file"),
        (vec![0xff; 12], "no ONNX file"),
        (Vec::new(), "0 graphs"),
    ];
    for (bytes, what) in cases {
        let dir = with_graph("bert-rerank", "model.onnx", &bytes);
        let message = refusal(dir.path(), &config());
        assert!(message.contains(what) && message.contains("`model.onnx`"), "{message}");
    }
    // What is inside the folder and not there is named.
    let dir = with_graph(
        "bert-rerank",
        "onnx/model.onnx",
        &model(&[external("w.data"), node("Neg", &["w"], &["logits"])]),
    );
    let message = refusal(dir.path(), &config());
    assert!(message.contains("`onnx/w.data` not found"), "{message}");
}

#[test]
fn the_runtime_survives_what_passes_inspection() {
    // As long a chain as there may be; an operator that does not exist; an output that is no float.
    let chain = |operator: &str, n: usize| {
        let name = |i: usize| match i {
            0 => "input_ids".to_owned(),
            i if i == n => "logits".to_owned(),
            i => i.to_string(),
        };
        model(&(0..n).map(|i| node(operator, &[&name(i)], &[&name(i + 1)])).collect::<Vec<_>>())
    };
    for (bytes, what) in [
        (chain("Identity", 16_384), "model.onnx"),
        (chain("Neg", 16_384), "model.onnx"),
        (chain("Nonsense", 1), "Nonsense"),
    ] {
        let dir = with_graph("bert-rerank", "model.onnx", &bytes);
        let message = refusal(dir.path(), &config());
        assert!(message.contains(what), "{message}");
    }
    // Cut and altered files: an error or a model, never the end of the process.
    let whole = golden("bert-rerank.onnx");
    let mut refused = 0;
    for i in 0..60 {
        let mut bytes = whole.clone();
        match i % 2 {
            0 => bytes.truncate(whole.len() * i / 60),
            _ => (0..8).for_each(|k| bytes[(i * 7919 + k * 104_729) % whole.len()] ^= 0x55),
        }
        refused +=
            usize::from(load(with_graph("bert-rerank", "model.onnx", &bytes).path(), &config()).is_err());
    }
    assert!(refused >= 30, "{refused} of 60");
}
