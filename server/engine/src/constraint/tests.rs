//! Constraints over tiny models, whose random weights have no idea of JSON: what comes out is right by the mask alone.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::{
    Engine, EngineConfig, FinishReason, Finished, GenerateRequest, ModelSource, SamplingParams, Token,
    testing::{END_OF_TEXT, TinyModel},
};

fn model() -> TinyModel {
    TinyModel { context_length: 4096, ..TinyModel::default() }
}

fn engine() -> Engine {
    let dir = tempfile::tempdir().unwrap();
    model().write_folder(dir.path()).unwrap();
    Engine::load(&ModelSource::Folder(dir.path().to_owned()), &EngineConfig::default(), &mut |_| ()).unwrap()
}

fn from_gguf() -> Engine {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    model().write_gguf(&path).unwrap();
    Engine::load(&ModelSource::GgufFile(path), &EngineConfig::default(), &mut |_| ()).unwrap()
}

fn sampled(seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt_tokens: vec![1, 2, 3],
        sampling: SamplingParams { seed: Some(seed), ..SamplingParams::default() },
        max_tokens: Some(1500),
        ..GenerateRequest::default()
    }
}

fn run(engine: &Engine, request: GenerateRequest) -> (Vec<Token>, Finished) {
    let (sender, events) = std::sync::mpsc::channel();
    let sink = Box::new(move |event| {
        // The receiver outlives the request.
        let _ = sender.send(event);
        std::ops::ControlFlow::Continue(())
    });
    engine.submit(request, sink).unwrap();
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(std::time::Duration::from_secs(60)).unwrap() {
            crate::Event::Token(token) => tokens.push(token),
            crate::Event::Finished(finished) => return (tokens, finished),
        }
    }
}

/// The text, and why it ended.
fn write(engine: &Engine, grammar: &Grammar, request: GenerateRequest) -> (String, FinishReason) {
    let constraint = Some(engine.constraint(grammar).unwrap_or_else(|err| panic!("{grammar:?}: {err}")));
    let (tokens, finished) = run(engine, GenerateRequest { constraint, ..request });
    let text = tokens.iter().map(|token| token.text.as_str()).chain([finished.text.as_str()]).collect();
    (text, finished.reason)
}

/// What keeps random weights from writing for ever, and is checked by [`valid`].
fn random_schema(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    match rng.random_range(0..if depth == 0 { 5 } else { 8 }) {
        0 => json!({"type": "boolean"}),
        1 => {
            json!({"type": "integer", "minimum": rng.random_range(-50..0), "maximum": rng.random_range(0..5000)})
        }
        2 => {
            json!({"type": "string", "minLength": rng.random_range(0..3), "maxLength": rng.random_range(3..9)})
        }
        3 => json!({"enum": ["red", 7, null, {"a": [1]}]}),
        4 => json!({"type": "string", "pattern": "^[a-f]{2,5}-[0-9]+$", "maxLength": 12}),
        5 => {
            let most = rng.random_range(1..4);
            json!({"type": "array", "items": random_schema(rng, depth - 1), "minItems": rng.random_range(0..=most),
                   "maxItems": most})
        }
        6 => json!({"anyOf": [random_schema(rng, depth - 1), {"type": "null"}]}),
        _ => {
            let names = ["a", "b c", "\"é\"", "d"];
            let n = rng.random_range(1..=names.len());
            let properties: serde_json::Map<_, _> =
                names[..n].iter().map(|name| ((*name).to_owned(), random_schema(rng, depth - 1))).collect();
            let required = &names[..rng.random_range(0..=n)];
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// Whether `value` is of `schema`, of those that [`random_schema`] makes.
fn valid(schema: &Value, value: &Value) -> bool {
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| valid(option, value));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let length = |key: &str, default: u64| schema[key].as_u64().unwrap_or(default) as usize;
    match (schema["type"].as_str().unwrap(), value) {
        ("boolean", Value::Bool(_)) | ("null", Value::Null) => true,
        ("integer", Value::Number(number)) => number.as_i64().is_some_and(|number| {
            (schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap()).contains(&number)
        }),
        ("string", Value::String(text)) => {
            let n = text.chars().count();
            let form = |text: &str| {
                let (letters, digits) = text.split_once('-')?;
                let fine =
                    (2..=5).contains(&letters.len()) && letters.bytes().all(|b| (b'a'..=b'f').contains(&b));
                Some(fine && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
            };
            let in_form = schema["pattern"].is_null() || form(text) == Some(true);
            in_form && (length("minLength", 0)..=length("maxLength", 0)).contains(&n)
        }
        ("array", Value::Array(list)) => {
            (length("minItems", 0)..=length("maxItems", 0)).contains(&list.len())
                && list.iter().all(|item| valid(&schema["items"], item))
        }
        ("object", Value::Object(map)) => {
            let known = |(name, value): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|schema| valid(schema, value))
            };
            let required = schema["required"].as_array().unwrap();
            map.iter().all(known) && required.iter().all(|name| map.contains_key(name.as_str().unwrap()))
        }
        _ => false,
    }
}

#[test]
fn whatever_the_schema_an_output_that_stops_is_json_of_it() {
    for (engine, seeds) in [(engine(), 0..60), (from_gguf(), 60..75)] {
        let mut whole = 0;
        for seed in seeds.clone() {
            let schema = random_schema(&mut ChaCha8Rng::seed_from_u64(seed), 3);
            let grammar = Grammar::JsonSchema(schema.clone());
            let (text, reason) = write(&engine, &grammar, sampled(seed));
            match reason {
                FinishReason::Stop => {
                    let value: Value = serde_json::from_str(&text)
                        .unwrap_or_else(|err| panic!("{text:?} of {schema} is no JSON: {err}"));
                    assert!(valid(&schema, &value), "{value} is not of {schema}");
                    whole += 1;
                }
                FinishReason::Length => {}
                other => panic!("{other:?} for {schema} after {text:?}"),
            }
        }
        let all = seeds.end - seeds.start;
        assert!(whole * 10 >= all * 9, "only {whole} of {all} came to an end");
    }
}

#[test]
fn without_the_constraint_the_same_model_writes_no_json() {
    let (tokens, finished) = run(&engine(), sampled(1));
    let text: String =
        tokens.iter().map(|token| token.text.as_str()).chain([finished.text.as_str()]).collect();
    assert!(serde_json::from_str::<Value>(&text).is_err());
}

#[test]
fn any_object_choices_and_regular_expressions() {
    let engine = engine();
    let mut stopped = 0;
    for seed in 0..10 {
        let (text, reason) = write(&engine, &Grammar::json_object(), sampled(seed));
        if reason == FinishReason::Stop {
            stopped += 1;
            assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text:?}");
        }
        let choices = Grammar::Choice(vec!["yes".to_owned(), "no, \"never\"".to_owned()]);
        let (text, reason) = write(&engine, &choices, sampled(seed));
        assert!(
            ["yes", "no, \"never\""].contains(&text.as_str()) && reason == FinishReason::Stop,
            "{text:?}"
        );
        let (text, _) = write(&engine, &Grammar::Regex("[0-9]{3}-[a-z]".to_owned()), sampled(seed));
        assert_eq!((text.len(), text.as_bytes()[3]), (5, b'-'), "{text:?}");
    }
    assert!(stopped > 0);
}

#[test]
fn an_output_that_is_cut_says_so() {
    let engine = engine();
    let schema = json!({"type": "array", "minItems": 50, "items": {"type": "integer"}});
    let request = GenerateRequest { max_tokens: Some(20), ..sampled(1) };
    let (text, reason) = write(&engine, &Grammar::JsonSchema(schema), request);
    assert_eq!(reason, FinishReason::Length);
    assert!(text.starts_with('[') && serde_json::from_str::<Value>(&text).is_err());
}

#[test]
fn greedy_clones_are_independent_and_equal() {
    let engine = engine();
    let constraint = engine.constraint(&Grammar::Regex("[a-z]{8}".to_owned())).unwrap();
    let request =
        GenerateRequest { sampling: SamplingParams::greedy(), constraint: Some(constraint), ..sampled(1) };
    let texts: Vec<Vec<u32>> =
        (0..3).map(|_| run(&engine, request.clone()).0.iter().map(|token| token.id).collect()).collect();
    assert_eq!(texts[0].len(), 8);
    assert!(texts.iter().all(|text| *text == texts[0]));
}

#[test]
fn min_tokens_holds_back_the_end_but_not_against_a_constraint() {
    let engine = engine();
    let eager = SamplingParams { logit_bias: vec![(END_OF_TEXT, 100.0)], ..SamplingParams::greedy() };
    let request = |min_tokens| GenerateRequest { sampling: eager.clone(), min_tokens, ..sampled(1) };
    assert_eq!(run(&engine, request(0)).0.len(), 0);
    let (tokens, finished) = run(&engine, request(7));
    assert_eq!((tokens.len(), finished.reason), (7, FinishReason::Stop));
    assert_eq!(finished.usage.completion_tokens, 8);
    let (text, reason) = write(&engine, &Grammar::Regex("[a-z]{2}".to_owned()), request(7));
    assert_eq!((text.len(), reason), (2, FinishReason::Stop));
    // A stop string counts from then on, too: all letters are stops here.
    let stop = GenerateRequest {
        constraint: Some(engine.constraint(&Grammar::Regex("a{20}".to_owned())).unwrap()),
        stop: vec!["a".to_owned()],
        ..request(6)
    };
    assert_eq!(run(&engine, stop).1.usage.completion_tokens, 7);
}

#[test]
fn what_cannot_be_kept_to_is_refused_with_the_reason() {
    let engine = engine();
    let deep = (0..40).fold(json!({}), |inner, _| json!({"items": inner}));
    let long: Vec<String> = (0..20_000).map(|i| i.to_string()).collect();
    for (grammar, part) in [
        (Grammar::JsonSchema(json!(7)), "object or a boolean"),
        (Grammar::JsonSchema(json!({"type": "sting"})), "sting"),
        (Grammar::JsonSchema(json!({"type": "string", "minLength": 9, "maxLength": 2})), "nsatisfiable"),
        (Grammar::JsonSchema(json!(false)), "nsatisfiable"),
        (Grammar::JsonSchema(json!({"not": {"type": "string"}})), "not"),
        (Grammar::JsonSchema(json!({"$ref": "https://example.com/schema"})), "ref"),
        (Grammar::JsonSchema(json!({"$ref": "#/$defs/nothing"})), "nothing"),
        (Grammar::JsonSchema(deep), "deeper"),
        (Grammar::JsonSchema(json!({"enum": long})), "bytes"),
        (Grammar::Regex("(".to_owned()), "("),
        (Grammar::Lark("start: nothing".to_owned()), "nothing"),
        (Grammar::Choice(Vec::new()), "at least one"),
    ] {
        let err = engine.constraint(&grammar).expect_err("must be refused").to_string();
        assert!(err.contains(part), "{grammar:?}: {err}");
        assert!(!err.contains("backtrace") && err.len() < 600, "{err}");
    }
}

#[test]
fn hostile_grammars_end_within_bounds() {
    let engine = engine();
    let began = std::time::Instant::now();
    let many = |n: usize| {
        (0..n).map(|i| json!({"type": "object", "properties": {format!("p{i}"): {"type": "string"}}}))
    };
    let any_of = json!({"anyOf": many(12).collect::<Vec<_>>()});
    let mut hostile = vec![
        Grammar::JsonSchema(json!({"allOf": vec![any_of; 8]})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "(a|b|ab)*c{1,5000}(d{1,5000}){1,5000}"})),
        Grammar::JsonSchema(
            json!({"type": "array", "minItems": 1_000_000_000u64, "items": {"type": "null"}}),
        ),
        Grammar::JsonSchema(json!({"type": "string", "minLength": 4_000_000_000u64})),
        Grammar::JsonSchema(json!({"$ref": "#"})),
        Grammar::JsonSchema(json!({"allOf": [{"$ref": "#"}]})),
        Grammar::JsonSchema(
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        Grammar::JsonSchema(
            json!({"type": "integer", "multipleOf": 1e-300, "minimum": -1e300, "maximum": 1e300}),
        ),
        Grammar::JsonSchema(json!({"type": "number", "multipleOf": 982_451_653})),
        Grammar::Regex("(.*a){1000}".to_owned()),
        Grammar::Regex("((a{1,100}){1,100}){1,100}".to_owned()),
        Grammar::Lark("start: start start | \"a\" |".to_owned()),
        Grammar::Lark("start: \"\"".to_owned()),
        Grammar::Lark(format!("start: {}", "(".repeat(20_000))),
    ];
    let properties: serde_json::Map<String, Value> =
        (0..1500).map(|i| (format!("p{i}"), json!({}))).collect();
    hostile.push(Grammar::JsonSchema(json!({"type": "object", "properties": properties})));
    let mut kept = 0;
    for grammar in hostile {
        // Refused or not: it ends, and what is accepted does no harm to the engine.
        if let Ok(constraint) = engine.constraint(&grammar) {
            kept += 1;
            let request =
                GenerateRequest { constraint: Some(constraint), max_tokens: Some(30), ..sampled(3) };
            run(&engine, request);
        }
    }
    assert!(kept > 0, "none was accepted");
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    assert_eq!(write(&engine, &Grammar::Regex("ok".to_owned()), sampled(1)).0, "ok");
}
