//! What comes out.

use super::*;
use crate::{ChatRequest, FinishReason, SpecialTokens, TextError, testing::END_OF_TEXT};

fn prompts() -> Vec<Vec<u32>> {
    (0..8u32).map(|i| (0..3 + 7 * i).map(|j| (i * 31 + j * 17) % 256).collect()).collect()
}

#[test]
fn sequences_in_flight_together_produce_what_each_produces_alone() {
    let alone = engine_with(&TinyModel::default(), &EngineConfig { max_sequences: 1, ..config() });
    let expected: Vec<_> = prompts().iter().map(|p| ids(&generate(&alone, greedy(p, 40)).0)).collect();
    // Some repeat themselves, but random weights do not make all prompts end alike.
    assert!(expected.windows(2).any(|pair| pair[0] != pair[1]));

    let together = engine_with(&TinyModel::default(), &EngineConfig { max_sequences: 8, ..config() });
    let running: Vec<_> = prompts().iter().map(|p| submit(&together, greedy(p, 40)).unwrap()).collect();
    for (i, running) in running.into_iter().enumerate() {
        let (tokens, finished) = running.rest();
        assert_eq!(ids(&tokens), expected[i], "prompt {i}");
        assert_eq!(finished.reason, FinishReason::Length);
    }
}

#[test]
fn a_gguf_file_generates_what_the_same_folder_does() {
    let model = TinyModel::default();
    let dir = folder(&model);
    let path = dir.path().join("tiny.gguf");
    model.write_gguf(&path).unwrap();
    let from_gguf = Engine::load(&ModelSource::GgufFile(path), &config(), &mut |_| ()).unwrap();
    let from_folder = engine();
    for prompt in prompts() {
        let request = greedy(&prompt, 30);
        assert_eq!(ids(&generate(&from_gguf, request.clone()).0), ids(&generate(&from_folder, request).0));
    }
    let (a, b) = (from_gguf.facts(), from_folder.facts());
    assert_eq!((a.parameters, a.context_length, a.quantization.as_str()), (b.parameters, 256, "F32"));
    assert_eq!((a.architecture.as_str(), b.architecture.as_str()), ("llama", "LlamaForCausalLM"));
    assert!(a.has_chat_template && b.has_chat_template);
    assert_ne!(a.digest, b.digest);
    let text = "Grüße <|user|>!";
    let special = SpecialTokens::AsWritten;
    assert_eq!(from_gguf.encode(text, special).unwrap(), from_folder.encode(text, special).unwrap());
}

#[test]
fn zeroed_weights_change_the_output() {
    let zeroed = engine_with(&TinyModel { zero_weights: true, ..TinyModel::default() }, &config());
    let (tokens, _) = generate(&zeroed, greedy(&[5, 6, 7], 10));
    assert_eq!(ids(&tokens), [0; 10], "all logits are equal, so the first token wins");
    assert_ne!(ids(&generate(&engine(), greedy(&[5, 6, 7], 10)).0), ids(&tokens));
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_runs_beside_it() {
    let engine = engine();
    let sampled = |seed| GenerateRequest {
        sampling: SamplingParams { seed: Some(seed), top_p: 0.95, ..SamplingParams::default() },
        ..greedy(&[10, 20, 30], 30)
    };
    let first = ids(&generate(&engine, sampled(7)).0);
    let noise: Vec<_> = (0..3).map(|i| submit(&engine, sampled(100 + i)).unwrap()).collect();
    assert_eq!(ids(&generate(&engine, sampled(7)).0), first);
    assert_ne!(ids(&generate(&engine, sampled(8)).0), first);
    for running in noise {
        running.rest();
    }
}

#[test]
fn text_adds_up_and_a_stop_string_cuts_it() {
    let engine = engine();
    let request = greedy(&[72, 105], 60);
    let (tokens, finished) = generate(&engine, request.clone());
    let whole = text(&tokens, &finished);
    let plain = whole.replace('\u{FFFD}', "");
    // Any two characters in the middle of what the model says.
    let stop: String = plain.chars().skip(plain.chars().count() / 2).take(2).collect();
    assert!(stop.chars().count() == 2, "{whole:?}");
    let stop = if whole.contains(&stop) { stop } else { stop.chars().take(1).collect() };
    let (tokens, finished) = generate(&engine, GenerateRequest { stop: vec![stop.clone()], ..request });
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(finished.stop_string.as_deref(), Some(stop.as_str()));
    assert_eq!(text(&tokens, &finished), whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn end_of_text_ends_and_is_not_shown() {
    let engine = engine();
    let request = GenerateRequest {
        sampling: SamplingParams { logit_bias: vec![(END_OF_TEXT, 100.0)], ..SamplingParams::greedy() },
        ignore_eos: false,
        ..greedy(&[1], 10)
    };
    let (tokens, finished) = generate(&engine, request.clone());
    assert_eq!((tokens.len(), finished.reason, finished.stop_string), (0, FinishReason::Stop, None));
    assert_eq!(finished.usage.completion_tokens, 1);
    let (tokens, finished) = generate(&engine, GenerateRequest { ignore_eos: true, ..request });
    assert_eq!((tokens.len(), finished.reason), (10, FinishReason::Length));
}

#[test]
fn the_context_bounds_the_output() {
    let engine = engine_with(&TinyModel::default(), &EngineConfig { context_length: Some(32), ..config() });
    let (tokens, finished) = generate(&engine, GenerateRequest { max_tokens: None, ..greedy(&[1; 20], 1) });
    assert_eq!((tokens.len(), finished.reason), (12, FinishReason::Length));
    assert_eq!((finished.usage.prompt_tokens, finished.usage.completion_tokens), (20, 12));
    let too_long = engine.submit(greedy(&[1; 32], 1), Box::new(|_| ControlFlow::Continue(()))).unwrap_err();
    assert_eq!(too_long, SubmitError::PromptTooLong { prompt_tokens: 32, context_length: 32 });
}

#[test]
fn log_probabilities_name_the_likeliest() {
    let (tokens, _) = generate(&engine(), GenerateRequest { logprobs: Some(3), ..greedy(&[65, 66], 5) });
    for token in tokens {
        let logprob = token.logprob.unwrap();
        assert_eq!(logprob.top.len(), 3);
        assert_eq!((logprob.top[0].id, logprob.top[0].logprob), (token.id, logprob.logprob), "greedy");
        assert!(logprob.logprob <= 0.0 && logprob.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
    }
}

#[test]
fn messages_become_a_prompt() {
    let engine = engine();
    let chat = |role: &str| ChatRequest {
        messages: serde_json::json!([{"role": role, "content": "hi"}]),
        add_generation_prompt: true,
        ..ChatRequest::default()
    };
    let prompt = engine.render_chat(&chat("user")).unwrap();
    assert_eq!(prompt, "<|bos|><|user|>hi<|assistant|>");
    assert_eq!(engine.encode(&prompt, SpecialTokens::AsWritten).unwrap(), [256, 258, 104, 105, 259]);
    match engine.render_chat(&chat("robot")) {
        Err(TextError::ChatTemplate(message)) => assert_eq!(message, "unknown role robot"),
        other => panic!("{other:?}"),
    }
    let too_long = engine.encode(&"x".repeat(1 << 16), SpecialTokens::Add);
    assert!(matches!(too_long, Err(TextError::TooLong { bytes: 65536, .. })), "{too_long:?}");
}

#[test]
fn requests_that_cannot_be_computed_are_refused_by_field() {
    let engine = engine();
    let sampling = |change: fn(&mut SamplingParams)| {
        let mut request = greedy(&[1], 1);
        change(&mut request.sampling);
        request
    };
    let cases = [
        ("prompt_tokens", greedy(&[], 1)),
        ("prompt_tokens", greedy(&[260], 1)),
        ("max_tokens", greedy(&[1], 0)),
        ("stop", GenerateRequest { stop: vec![String::new()], ..greedy(&[1], 1) }),
        ("stop", GenerateRequest { stop: vec!["x".to_owned(); 17], ..greedy(&[1], 1) }),
        ("logprobs", GenerateRequest { logprobs: Some(21), ..greedy(&[1], 1) }),
        ("temperature", sampling(|s| s.temperature = f32::NAN)),
        ("temperature", sampling(|s| s.temperature = -0.1)),
        ("top_p", sampling(|s| s.top_p = 0.0)),
        ("top_p", sampling(|s| s.top_p = 1.1)),
        ("min_p", sampling(|s| s.min_p = 1.0)),
        ("presence_penalty", sampling(|s| s.presence_penalty = 3.0)),
        ("frequency_penalty", sampling(|s| s.frequency_penalty = f32::INFINITY)),
        ("repetition_penalty", sampling(|s| s.repetition_penalty = 0.0)),
        ("logit_bias", sampling(|s| s.logit_bias = vec![(260, 0.0)])),
        ("logit_bias", sampling(|s| s.logit_bias = vec![(1, f32::NAN)])),
    ];
    for (name, request) in cases {
        match engine.submit(request, Box::new(|_| ControlFlow::Continue(()))) {
            Err(SubmitError::Invalid { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    wait_idle(&engine);
}
