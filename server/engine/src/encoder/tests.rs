//! The engine over tiny encoders with random weights.

use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::*;
use crate::{CancelToken, EngineConfig, LoadError, ModelSource, Quantization, TextError};

#[path = "../../tests/support/words.rs"]
mod words;

const PATIENCE: Duration = Duration::from_secs(60);

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A golden model with a tokenizer whose words are `w0`, `w1`, … of the same ids.
fn folder(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(name).join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join("tokenizer.json"), words::tokenizer().to_string()).unwrap();
    dir
}

fn config() -> EngineConfig {
    EngineConfig { max_queue: 4, threads: Some(2), ..EngineConfig::default() }
}

fn engine_of(name: &str, config: &EngineConfig) -> EncoderEngine {
    let dir = folder(name);
    assert!(is_encoder(&ModelSource::Folder(dir.path().to_owned())).unwrap());
    EncoderEngine::load(&ModelSource::Folder(dir.path().to_owned()), config, &mut |_| ()).unwrap()
}

fn run(engine: &EncoderEngine, inputs: Vec<Input>) -> Vec<Output> {
    let (sender, receiver) = mpsc::channel();
    engine.submit(inputs, None, Box::new(move |how| drop(sender.send(how)))).unwrap();
    match receiver.recv_timeout(PATIENCE).unwrap() {
        Encoded::Done(outputs) => outputs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_text_has_the_same_vector_alone_and_among_others() {
    let engine = engine_of("bert", &config());
    assert_eq!(engine.limits().task, EncoderTask::Embed);
    let texts = ["w5 w6 w7", "w9", "w5 w6 w7 w8 w10 w11 w12"];
    let inputs: Vec<_> = texts.iter().map(|text| engine.encode(text, false).unwrap()).collect();
    assert_eq!(inputs[0].n_tokens(), 5, "with the tokenizer's own two");
    let together = run(&engine, inputs.clone());
    for (input, expected) in inputs.into_iter().zip(&together) {
        assert_eq!(&run(&engine, vec![input])[0], expected);
    }
    let Output::Embedding(vector) = &together[0] else { panic!("{together:?}") };
    let length: f32 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "without modules.json: a mean of length 1");
    assert!(engine.stats().inputs_total >= 6);
}

#[test]
fn a_batch_that_fails_ends_its_requests_and_the_next_one_works() {
    use crate::tests::faults;
    let engine = engine_of("bert", &config());
    let text = || engine.from_ids(vec![2, 5, 6, 3]);
    let expected = run(&engine, vec![text()]);
    for (fault, words) in [(faults::FAILS, "on purpose"), (faults::PANICS, "panicked")] {
        let (sender, receiver) = mpsc::channel();
        let inputs = vec![text(), engine.from_ids(fault.to_vec())];
        engine.submit(inputs, None, Box::new(move |how| drop(sender.send(how)))).unwrap();
        let how = receiver.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(&how, Encoded::Error(message) if message.contains(words)), "{how:?}");
        assert_eq!(run(&engine, vec![text()]), expected);
    }
    assert!(engine.wait_idle(Instant::now() + PATIENCE));
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.queued_tokens), (0, 0, 0));
}

#[test]
fn a_batch_that_stands_still_shows() {
    let engine = engine_of("bert", &config());
    let (ids, release) = crate::tests::faults::stalling(12);
    let (sender, receiver) = mpsc::channel();
    let stalled = vec![engine.from_ids(ids)];
    engine.submit(stalled, None, Box::new(move |how| drop(sender.send(how)))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while engine.stats().heartbeat_age < Duration::from_millis(300) {
        assert!(Instant::now() < deadline, "a wedge does not show: {:?}", engine.stats());
        std::thread::yield_now();
    }
    assert_eq!(engine.stats().running, 1);
    drop(release);
    assert!(matches!(receiver.recv_timeout(PATIENCE).unwrap(), Encoded::Done(_)), "it comes round");
    assert!(engine.wait_idle(Instant::now() + PATIENCE));
    assert_eq!(engine.stats().heartbeat_age, Duration::ZERO);
}

#[test]
fn weights_in_8_bits_give_nearly_the_same_vectors() {
    let text = "w5 w6 w7 w8";
    let vector = |quantization| {
        let engine = engine_of("bert", &EngineConfig { quantization, ..config() });
        match run(&engine, vec![engine.encode(text, false).unwrap()]).remove(0) {
            Output::Embedding(vector) => vector,
            other => panic!("{other:?}"),
        }
    };
    let (exact, rounded) = (vector(None), vector(Some(Quantization::Q8)));
    let cosine: f32 = exact.iter().zip(&rounded).map(|(a, b)| a * b).sum();
    assert!(cosine > 0.99 && exact != rounded, "{cosine}");
}

#[test]
fn pairs_have_scores_and_tokens_have_labels() {
    let reranker = engine_of("bert-rerank", &config());
    assert_eq!(reranker.limits().task, EncoderTask::Rerank);
    let pair = |a, b| reranker.pairs(a, false).unwrap().with(b, usize::MAX).unwrap();
    let outputs = run(&reranker, vec![pair("w5", "w6 w7"), pair("w5", "w8"), pair("w5", "w6 w7")]);
    assert_eq!(outputs[0], outputs[2]);
    assert!(matches!((&outputs[0], &outputs[1]), (Output::Score(a), Output::Score(b)) if a != b));

    let tagger = engine_of("bert-ner", &config());
    assert_eq!(tagger.limits().task, EncoderTask::TokenClassify);
    let outputs = run(&tagger, vec![tagger.encode("w5 w6  w7", false).unwrap()]);
    let Output::Labels(labels) = &outputs[0] else { panic!("{outputs:?}") };
    let found = tagger.entities("w5 w6  w7", labels, Aggregation::None, &[]).unwrap();
    let spans: Vec<_> = found.iter().map(|entity| (entity.start, entity.end)).collect();
    assert_eq!(spans, [(0, 2), (3, 5), (7, 9)]);
    assert!(found.iter().all(|entity| entity.score > 0.0 && entity.score <= 1.0));
}

#[test]
fn long_texts_are_refused_or_cut() {
    let engine = engine_of("xlm-roberta", &config());
    let most = engine.limits().max_tokens;
    let long = vec!["w5"; most].join(" ");
    let refused = engine.encode(&long, false);
    assert!(
        matches!(refused, Err(TextError::TooManyTokens { tokens, max_tokens }) if tokens == most + 2 && max_tokens == most),
        "{refused:?}"
    );
    assert!(
        engine.pairs(&long, false).is_err() || engine.pairs(&long, false).unwrap().with("w5", 9).is_err()
    );
    let ids = engine.submit(vec![engine.from_ids(vec![5; most + 1])], None, Box::new(|_| ()));
    assert!(matches!(ids, Err(EncoderSubmitError::TooLong { input: 0, .. })), "{ids:?}");
    let cut = engine.encode(&long, true).unwrap();
    assert_eq!(cut.n_tokens(), most);
    run(&engine, vec![cut]);
    let pair = engine.pairs(&long, true).unwrap().with("w7 w8", usize::MAX).unwrap();
    assert!(pair.n_tokens() <= most);
    for (ids, what) in [(vec![], "no tokens"), (vec![1 << 30], "outside")] {
        match engine.submit(vec![engine.from_ids(ids)], None, Box::new(|_| ())) {
            Err(EncoderSubmitError::Invalid(message)) => assert!(message.contains(what), "{message}"),
            other => panic!("{other:?}"),
        }
    }
}

/// As the tokenizer itself puts a pair together.
#[test]
fn a_query_that_is_tokenised_once_gives_the_pairs_of_its_documents() {
    let engine = engine_of("bert-rerank", &config());
    let most = engine.limits().max_tokens;
    let words = |n: usize| vec!["w7"; n].join(" ");
    let tokenizer = |truncate: bool| {
        let dir = folder("bert-rerank");
        let mut tokenizer = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
        let cut = tokenizers::TruncationParams { max_length: most, ..Default::default() };
        tokenizer.with_truncation(truncate.then_some(cut)).unwrap();
        tokenizer
    };
    for (query, document) in
        [(1, 2), (3, most), (most, 3), (most + 9, most + 5), (most / 2, most), (7 * most, 1)]
    {
        let (query, document) = (words(query), words(document));
        let expected = tokenizer(true).encode((query.as_str(), document.as_str()), true).unwrap();
        let pair = engine.pairs(&query, true).unwrap().with(&document, usize::MAX).unwrap();
        assert_eq!((&pair.ids[..], &pair.types[..]), (expected.get_ids(), expected.get_type_ids()));
    }
    let whole = tokenizer(false).encode(("w5 w6", "w7"), true).unwrap();
    let pairs = engine.pairs("w5 w6", false).unwrap();
    assert_eq!(pairs.with("w7", usize::MAX).unwrap().ids, whole.get_ids());
    assert!(matches!(pairs.with(&words(most), usize::MAX), Err(TextError::TooManyTokens { .. })));
    assert_eq!(pairs.with(&words(9), 1).unwrap().ids, whole.get_ids(), "documents cut to one token");
}

/// A long request and short ones take turns.
#[test]
fn a_short_request_does_not_wait_for_a_long_one() {
    let engine = engine_of("bert", &config());
    let text = engine.encode("w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16", false).unwrap();
    let (sender, receiver) = mpsc::channel();
    let submit = |name: &'static str, n: usize| {
        let sender = sender.clone();
        let tell = move |how| sender.send((name, matches!(how, Encoded::Done(_)))).unwrap();
        engine.submit(vec![text.clone(); n], None, Box::new(tell)).unwrap()
    };
    submit("long", MAX_REQUEST_TOKENS / text.n_tokens());
    submit("short", 1);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), ("short", true));
    let more =
        engine.submit(vec![text.clone(); MAX_REQUEST_TOKENS / text.n_tokens() + 1], None, Box::new(|_| ()));
    assert!(matches!(more, Err(EncoderSubmitError::TooMany { .. })), "{more:?}");
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), ("long", true));
}

/// Those who left make room at once, whatever is being computed.
#[test]
fn clients_that_left_do_not_keep_their_places_in_the_queue() {
    let engine = engine_of("bert", &config());
    let text = engine.encode("w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16", false).unwrap();
    let long = || engine.submit(vec![text.clone(); 4000], None, Box::new(|_| ()));
    let mut cancels = Vec::new();
    let refused = loop {
        match long() {
            Ok(cancel) => cancels.push(cancel),
            Err(refused) => break refused,
        }
        assert!(cancels.len() < 2000, "nothing is ever refused");
    };
    assert!(matches!(refused, EncoderSubmitError::QueueFull { .. }), "{refused}");
    // Without a look at what is under way: only the queue is swept here.
    cancels.iter().for_each(CancelToken::cancel);
    let until = Instant::now() + PATIENCE;
    while let Err(refused) = long() {
        assert!(
            matches!(refused, EncoderSubmitError::QueueFull { .. }) && Instant::now() < until,
            "{refused}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_wait_that_would_be_too_long_is_refused() {
    let engine = engine_of("bert", &EngineConfig { max_wait: Some(Duration::from_millis(1)), ..config() });
    let text = engine.encode("w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16", false).unwrap();
    let submit = || engine.submit(vec![text.clone(); 4000], None, Box::new(|_| ()));
    assert!(submit().is_ok(), "one alone is admitted whatever it takes");
    let refused = submit();
    assert!(matches!(refused, Err(EncoderSubmitError::QueueFull { .. })), "{refused:?}");
}

#[test]
fn a_full_queue_is_an_answer_and_the_end_is_told_to_all() {
    let engine = engine_of("bert", &config());
    let input = || vec![engine.encode("w5 w6 w7 w8 w9 w10 w11 w12", false).unwrap(); 64];
    let (sender, receiver) = mpsc::channel();
    let mut admitted = 0;
    let mut refused = false;
    for _ in 0..2000 {
        let sender = sender.clone();
        match engine.submit(input(), None, Box::new(move |how| drop(sender.send(how)))) {
            Ok(_) => admitted += 1,
            Err(EncoderSubmitError::QueueFull { retry_after, .. }) => {
                assert!(retry_after >= Duration::from_secs(1));
                refused = true;
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused, "{admitted} requests were admitted at once");
    let late = engine.submit(input(), Some(Instant::now()), Box::new(|_| ()));
    drop(late);
    engine.shutdown();
    for _ in 0..admitted {
        let how = receiver.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(how, Encoded::Done(_) | Encoded::Cancelled), "{how:?}");
    }
    let after = engine.submit(input(), None, Box::new(|_| ()));
    assert_eq!(after.err(), Some(EncoderSubmitError::ShuttingDown));
}

#[test]
fn deadlines_and_cancellations_end_a_request() {
    let engine = engine_of("bert", &config());
    let (sender, receiver) = mpsc::channel();
    let input = engine.encode("w5", false).unwrap();
    let tell = sender.clone();
    let past = Instant::now();
    engine.submit(vec![input.clone()], Some(past), Box::new(move |how| drop(tell.send(how)))).unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), Encoded::Deadline);
    // It may be done before it is cancelled; what must not be is silence.
    let cancel = engine.submit(vec![input; 500], None, Box::new(move |how| drop(sender.send(how)))).unwrap();
    cancel.cancel();
    assert!(matches!(receiver.recv_timeout(PATIENCE).unwrap(), Encoded::Cancelled | Encoded::Done(_)));
    assert!(engine.wait_idle(Instant::now() + PATIENCE));
}

#[test]
fn a_memory_limit_and_a_context_are_kept() {
    let dir = folder("bert");
    let load =
        |config| EncoderEngine::load(&ModelSource::Folder(dir.path().to_owned()), &config, &mut |_| ());
    let limited = load(EngineConfig { memory_limit_bytes: Some(1000), ..config() });
    assert!(matches!(limited, Err(LoadError::OutOfMemory { .. })));
    let wide = load(EngineConfig { context_length: Some(1 << 20), ..config() });
    assert!(matches!(wide, Err(LoadError::InvalidConfig { field: "context_length", .. })));
    assert_eq!(load(EngineConfig { context_length: Some(9), ..config() }).unwrap().limits().max_tokens, 9);
}

/// Makes 32-bit numbers of the 16-bit ones of a folder's weights; not the same numbers.
fn widen(dir: &Path) {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (len, rest) = bytes.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let mut tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    for tensor in tensors.values_mut().filter(|tensor| tensor["dtype"] == "F16") {
        tensor["dtype"] = "F32".into();
        for end in tensor["data_offsets"].as_array_mut().unwrap() {
            *end = (end.as_u64().unwrap() * 2).into();
        }
    }
    let header = serde_json::to_vec(&tensors).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data.chunks_exact(2).flat_map(|number| [0, 0, number[0], number[1]]));
    std::fs::write(path, out).unwrap();
}

#[test]
fn weights_are_counted_as_they_are_held() {
    let dir = folder("bert");
    let bytes = |quantization| {
        let config = EngineConfig { quantization, ..config() };
        let engine =
            EncoderEngine::load(&ModelSource::Folder(dir.path().to_owned()), &config, &mut |_| ()).unwrap();
        engine.facts().memory.weights_bytes
    };
    let (f16, q8_of_f16) = (bytes(None), bytes(Some(Quantization::Q8)));
    widen(dir.path());
    let (f32, q8_of_f32) = (bytes(None), bytes(Some(Quantization::Q8)));
    // Biases and norms are f32 in both.
    assert!(f16 * 10 < f32 * 6, "{f16} of {f32}");
    assert!(q8_of_f16 < q8_of_f32, "tables stay as they are stored: {q8_of_f16} and {q8_of_f32}");
    assert!(q8_of_f16 < f16 && q8_of_f32 < f32, "{q8_of_f16} of {f16}, {q8_of_f32} of {f32}");
}

#[cfg(not(feature = "onnx"))]
#[test]
fn a_folder_with_only_a_graph_is_told_what_this_build_lacks() {
    let dir = folder("bert");
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    std::fs::create_dir(dir.path().join("onnx")).unwrap();
    std::fs::write(dir.path().join("onnx/model.onnx"), "").unwrap();
    let source = ModelSource::Folder(dir.path().to_owned());
    let loaded = EncoderEngine::load(&source, &config(), &mut |_| ()).err().map(|err| err.to_string());
    assert_eq!(is_encoder(&source).err().map(|err| err.to_string()), loaded);
    let message = loaded.unwrap();
    assert!(message.contains("`onnx/model.onnx`: ONNX in this build is not supported"), "{message}");
    assert!(message.contains("--features onnx") && message.contains("model.safetensors"), "{message}");
}
