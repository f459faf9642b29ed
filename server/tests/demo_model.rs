//! The shipped demo model, asked through the engine: the listed facts, their unseen phrasings and the held-out
//! questions of every task, by greedy decoding. The same checker over the same files reports nothing right once the
//! weights are zero, so it cannot pass by itself.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use candela_engine::{
    ChatRequest, Engine, EngineConfig, Event, FinishReason, GenerateRequest, ModelSource, SamplingParams,
    SpecialTokens,
};
use serde_json::{Value, json};

/// The whole evaluation, both cores busy with something else included.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Requests in flight: the engine batches them.
const IN_FLIGHT: usize = 8;
/// The engine sums in another order than the trainer, so a close call may fall the other way.
const TOLERANCE_PERCENT: f64 = 4.0;
/// Percent that weights must reach to ship, whatever is recorded with them: a new training run may not quietly lose what
/// an earlier one had learned.
const FLOORS: &[(&str, f64)] = &[
    ("facts", 95.0),
    ("facts_unseen", 80.0),
    ("spam", 95.0),
    ("json", 90.0),
    ("rewrite", 90.0),
    ("stories", 95.0),
    ("refusal", 80.0),
    ("passages", 36.0),
];

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

struct Question {
    task: String,
    prompt: String,
    expect: Value,
}

/// The facts in their listed and unseen phrasings, then the held-out questions of the other tasks.
fn questions() -> Vec<Question> {
    let lines = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(demo().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut all = Vec::new();
    for fact in lines("facts.jsonl") {
        let expect = json!({ "contains": [fact["expect"]] });
        let mut ask = |task: &str, prompt: &Value| {
            let prompt = prompt.as_str().unwrap().to_owned();
            all.push(Question { task: task.to_owned(), prompt, expect: expect.clone() });
        };
        ask("facts", &fact["question"]);
        for phrasing in fact["held_out"].as_array().unwrap() {
            ask("facts_unseen", phrasing);
        }
    }
    for line in lines("eval.jsonl") {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        all.push(Question { task: text("task"), prompt: text("prompt"), expect: line["expect"].clone() });
    }
    all
}

/// Judges an answer; the rules are those under which `eval.json` was measured.
fn accepts(expect: &Value, answer: &str) -> bool {
    let answer = answer.trim();
    let words = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let (rule, value) = expect.as_object().unwrap().iter().next().unwrap();
    match rule.as_str() {
        "contains" => words(value).iter().all(|word| contains_word(answer, word)),
        "equals" => answer == value.as_str().unwrap(),
        "json" => serde_json::from_str::<Value>(answer).is_ok_and(|parsed| parsed == *value),
        "sentence" => {
            let body = answer.strip_suffix('.').unwrap_or("");
            (6..=40).contains(&body.split_whitespace().count())
                && !body.contains(['.', '!', '?'])
                && words(value).iter().all(|word| contains_word(body, word))
        }
        other => panic!("`eval.jsonl` holds the rule `{other}`, which this test does not know"),
    }
}

fn contains_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_lowercase(), word.to_lowercase());
    text.match_indices(&word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

fn load(folder: PathBuf) -> Engine {
    let config = EngineConfig { max_sequences: IN_FLIGHT, max_queue: IN_FLIGHT, ..EngineConfig::default() };
    Engine::load(&ModelSource::Folder(folder), &config, &mut |_| {}).unwrap()
}

/// One answer by greedy decoding, sent to `answers` with the question's index.
fn ask(engine: &Engine, index: usize, prompt: &str, answers: mpsc::Sender<(usize, String)>) {
    let text = engine
        .render_chat(&ChatRequest {
            messages: json!([{ "role": "user", "content": prompt }]),
            tools: Value::Null,
            add_generation_prompt: true,
            variables: serde_json::Map::new(),
        })
        .unwrap();
    let request = GenerateRequest {
        prompt_tokens: engine.encode(&text, SpecialTokens::AsWritten).unwrap(),
        sampling: SamplingParams::greedy(),
        max_tokens: Some(56),
        ..GenerateRequest::default()
    };
    let mut answer = String::new();
    let sink = move |event| {
        match event {
            Event::Token(token) => answer.push_str(&token.text),
            Event::Finished(finished) => {
                assert!(!matches!(finished.reason, FinishReason::Error(_)), "{:?}", finished.reason);
                answer.push_str(&finished.text);
                // The receiver is gone only when the test has failed already.
                let _ = answers.send((index, std::mem::take(&mut answer)));
            }
        }
        ControlFlow::Continue(())
    };
    engine.submit(request, Box::new(sink)).unwrap();
}

/// Percent right by task.
fn scores(engine: &Engine, questions: &[Question]) -> BTreeMap<String, f64> {
    let (sender, receiver) = mpsc::channel();
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut next = 0;
    for done in 0..questions.len() {
        while next < questions.len() && next - done < IN_FLIGHT {
            ask(engine, next, &questions[next].prompt, sender.clone());
            next += 1;
        }
        let (index, answer) = receiver.recv_timeout(TIME_LIMIT).unwrap();
        let question = &questions[index];
        let (right, asked) = counts.entry(question.task.clone()).or_default();
        *asked += 1;
        *right += usize::from(accepts(&question.expect, &answer));
    }
    counts.into_iter().map(|(task, (right, asked))| (task, 100.0 * right as f64 / asked as f64)).collect()
}

#[test]
fn the_demo_model_answers_as_recorded() {
    let started = Instant::now();
    let engine = load(demo());
    let questions = questions();
    assert!(questions.iter().filter(|q| q.task == "facts").count() >= 100, "fewer than 100 facts are listed");
    let france = questions.iter().find(|q| q.prompt == "What is the capital of France?").unwrap();
    assert_eq!(scores(&engine, std::slice::from_ref(france))["facts"], 100.0, "France has another capital");

    let scores = scores(&engine, &questions);
    let recorded: Value =
        serde_json::from_str(&fs::read_to_string(demo().join("eval.json")).unwrap()).unwrap();
    for (task, percent) in recorded["percent"].as_object().unwrap() {
        let reached = scores.get(task).copied().unwrap_or_default();
        let recorded = percent.as_f64().unwrap();
        assert!(reached >= recorded - TOLERANCE_PERCENT, "{task}: {reached:.1} %, recorded {recorded} %");
    }
    for (task, floor) in FLOORS {
        assert!(scores[*task] >= *floor, "{task} is below {floor} %: {scores:?}");
    }
    assert!(started.elapsed() < TIME_LIMIT, "took {:?}", started.elapsed());
    engine.shutdown();
}

#[test]
fn zeroed_weights_answer_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(demo().join(file), folder.path().join(file)).unwrap();
    }
    // A safetensors file is the length of its header, the header, and the values.
    let mut weights = fs::read(demo().join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    weights[8 + header..].fill(0);
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();

    let engine = load(folder.path().to_owned());
    // Every tenth question: a model without weights never ends its answers by itself.
    let questions: Vec<Question> = questions().into_iter().step_by(10).collect();
    for (task, percent) in scores(&engine, &questions) {
        assert_eq!(percent, 0.0, "{task}");
    }
    engine.shutdown();
}
