//! Who shares a step, a block or a pool changes nothing but the time.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{FinishReason, LoadError, Speculation};

/// Tokens and the bits of their log-probabilities, alternatives included.
type Bits = Vec<(u32, u32, Vec<(u32, u32)>)>;

fn bits(tokens: &[Token]) -> Bits {
    let of = |token: &Token| {
        let logprob = token.logprob.as_ref().unwrap();
        let top = logprob.top.iter().map(|top| (top.id, top.logprob.to_bits())).collect();
        (token.id, logprob.logprob.to_bits(), top)
    };
    tokens.iter().map(of).collect()
}

fn requests() -> Vec<GenerateRequest> {
    let prompt =
        |i: u32| (0..40).map(|j| j * 5 % 256).chain((0..3 + 9 * i).map(move |j| (i * 31 + j * 17) % 256));
    let greedy = |i: u32| GenerateRequest { logprobs: Some(3), ..greedy(&prompt(i).collect::<Vec<_>>(), 60) };
    let sampled = |i: u32| GenerateRequest {
        sampling: SamplingParams {
            seed: Some(i.into()),
            frequency_penalty: 0.5,
            ..SamplingParams::default()
        },
        ..greedy(i)
    };
    (0..8).map(|i| if i % 4 == 3 { sampled(i) } else { greedy(i) }).collect()
}

fn one_by_one() -> Vec<Bits> {
    let config = EngineConfig { max_sequences: 1, step_tokens: 300, ..config() };
    // An engine of its own each, so that nothing is there to be used again.
    requests()
        .into_iter()
        .map(|request| bits(&generate(&engine_with(&TinyModel::default(), &config), request).0))
        .collect()
}

#[track_caller]
fn check_together(engine: &Engine, requests: Vec<GenerateRequest>, expected: &[Bits]) {
    let running: Vec<_> = requests.into_iter().map(|request| submit(engine, request).unwrap()).collect();
    for (i, running) in running.into_iter().enumerate() {
        let (tokens, finished) = running.rest();
        assert_eq!(finished.reason, FinishReason::Length);
        assert_eq!(bits(&tokens), expected[i], "request {i}");
    }
    wait_idle(engine);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.kv_tokens, stats.kv_blocks_used), (0, 0, 0, 0));
}

#[test]
fn tokens_and_log_probabilities_have_the_same_bits_in_any_batch() {
    let expected = one_by_one();
    for (max_sequences, step_tokens) in [(5, 5), (8, 16), (8, 128)] {
        let config = EngineConfig { max_sequences, step_tokens, ..config() };
        let engine = engine_with(&TinyModel::default(), &config);
        check_together(&engine, requests(), &expected);
        let before = engine.stats().prefix_hit_tokens_total;
        check_together(&engine, requests(), &expected);
        let stats = engine.stats();
        assert!(stats.prefix_hit_tokens_total >= before + 8 * 32, "every prompt starts with a known block");
        assert!(stats.prefix_query_tokens_total > stats.prefix_hit_tokens_total);
        assert_eq!(stats.preemptions_total, 0);
    }
}

#[test]
fn nor_in_a_cache_so_small_that_sequences_lose_their_blocks() {
    let expected = one_by_one();
    let config = EngineConfig { max_sequences: 8, kv_cache_tokens: Some(256), ..config() };
    let engine = engine_with(&TinyModel::default(), &config);
    assert_eq!(engine.stats().kv_blocks_total, 8);
    check_together(&engine, requests(), &expected);
    assert!(engine.stats().preemptions_total > 0, "{:?}", engine.stats());
}

#[test]
fn nor_when_tokens_are_guessed_ahead() {
    let expected = one_by_one();
    let engine =
        engine_with(&TinyModel::default(), &EngineConfig { max_sequences: 8, step_tokens: 64, ..config() });
    let speculating = |mut request: GenerateRequest| {
        request.speculation = Some(Speculation { ngram: 2, max_draft: 5 });
        request
    };
    check_together(&engine, requests().into_iter().map(speculating).collect(), &expected);
    let stats = engine.stats();
    assert!(
        0 < stats.accepted_tokens_total && stats.accepted_tokens_total < stats.draft_tokens_total,
        "{stats:?}"
    );
    for speculation in [(0, 1), (17, 1), (1, 0), (1, 33)] {
        let (ngram, max_draft) = speculation;
        let request =
            GenerateRequest { speculation: Some(Speculation { ngram, max_draft }), ..greedy(&[1], 1) };
        let refused = submit(&engine, request).map(|_| ()).unwrap_err();
        assert!(matches!(refused, SubmitError::Invalid { field: "speculation", .. }), "{refused:?}");
    }
}

#[test]
fn tenants_do_not_share_blocks() {
    let engine = engine();
    let of = |salt: Option<[u8; 32]>| GenerateRequest { salt, ..greedy(&[7; 100], 1) };
    let mut hits = Vec::new();
    for salt in [None, Some([1; 32]), Some([2; 32]), Some([1; 32]), None] {
        generate(&engine, of(salt));
        hits.push(engine.stats().prefix_hit_tokens_total);
    }
    assert_eq!(hits, [0, 0, 0, 96, 192]);
}

#[test]
fn limits_of_the_queue_that_let_nothing_wait_are_refused() {
    let dir = folder(&TinyModel::default());
    for (name, config) in [
        ("max_queue_tokens", EngineConfig { max_queue_tokens: Some(0), ..config() }),
        ("max_wait", EngineConfig { max_wait: Some(Duration::ZERO), ..config() }),
    ] {
        match Engine::load(&ModelSource::Folder(dir.path().to_owned()), &config, &mut |_| ()) {
            Err(LoadError::InvalidConfig { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn two_thousand_clients_that_leave_anywhere_leave_nothing_behind() {
    let config = EngineConfig { max_sequences: 4, max_queue: 30, kv_cache_tokens: Some(2048), ..config() };
    let engine = engine_with(&TinyModel { context_length: 2048, ..TinyModel::default() }, &config);
    let probe = || bits(&generate(&engine, GenerateRequest { logprobs: Some(1), ..greedy(&[3; 70], 20) }).0);
    let expected = probe();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut here: Vec<Running> = Vec::new();
    let (mut with_tokens, mut without) = (0, 0);
    while with_tokens + without < 2000 {
        if here.len() < 16 {
            let prompt = vec![rng.random_range(0..4); rng.random_range(1..200)];
            let request = GenerateRequest { max_tokens: None, ..greedy(&prompt, 1) };
            here.extend(submit(&engine, request).ok());
        }
        if here.len() < 8 {
            continue;
        }
        let (any, way) = (rng.random_range(0..here.len()), rng.random_range(0..3));
        let was_answered = match way {
            // The oldest has a slot: it leaves while it is answered.
            0 => {
                let oldest = here.remove(0);
                oldest.first_token();
                oldest.cancel.cancel();
                true
            }
            1 => {
                let leaving = here.remove(any);
                leaving.cancel.cancel();
                !leaving.rest().0.is_empty()
            }
            // As when a connection breaks.
            _ => here.remove(any).events.try_recv().is_ok(),
        };
        if was_answered { with_tokens += 1 } else { without += 1 }
    }
    here.iter().for_each(|running| running.cancel.cancel());
    wait_idle(&engine);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.queued_tokens), (0, 0, 0));
    assert_eq!((stats.kv_tokens, stats.kv_blocks_used), (0, 0));
    assert!(with_tokens > 100 && without > 100, "{with_tokens} while answered, {without} before");
    assert_eq!(probe(), expected);
}
