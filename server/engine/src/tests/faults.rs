//! Steps that fail or stand still: what a prompt may ask for here and in no other build.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, mpsc::Receiver},
    thread,
};

use super::*;
use crate::{FinishReason, contained, kernels::Pool, schedule::Part};

/// Prompts that begin so make their step fail, panic in a task of the pool, or stand still there.
pub(crate) const FAILS: [u32; 3] = [7, 7, 1];
pub(crate) const PANICS: [u32; 3] = [7, 7, 2];
const STALLS: [u32; 3] = [7, 7, 3];

/// What a stalled step waits for, by the token behind [`STALLS`].
static HELD: Mutex<Option<HashMap<u32, Receiver<()>>>> = Mutex::new(None);

/// A prompt whose step stands still until the sender is dropped. No two tests may have the same `key`.
pub(crate) fn stalling(key: u32) -> (Vec<u32>, mpsc::Sender<()>) {
    let (release, held) = mpsc::channel();
    HELD.lock().unwrap().get_or_insert_default().insert(key, held);
    ([&STALLS[..], &[key]].concat(), release)
}

/// Called in each step of this crate's own tests.
pub(crate) fn in_step(pool: &Pool, parts: &[Part]) -> Result<(), String> {
    let begun: Vec<_> =
        parts.iter().filter(|part| part.start == 0).map(|part| part.tokens.as_slice()).collect();
    in_batch(pool, &begun)
}

/// Called in each batch of an encoder.
pub(crate) fn in_batch(pool: &Pool, texts: &[&[u32]]) -> Result<(), String> {
    let asked = |what: [u32; 3]| texts.iter().find(|tokens| tokens.starts_with(&what));
    if asked(FAILS).is_some() {
        return Err("on purpose".to_owned());
    }
    if asked(PANICS).is_some() {
        pool.run(4, &|i| assert!(i != 2, "a task panics on purpose"));
    }
    if let Some(tokens) = asked(STALLS) {
        let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.as_mut().and_then(|all| all.remove(&tokens[3]));
        drop(all);
        let held = Mutex::new(held.expect("the test holds the step"));
        pool.run(4, &|i| {
            if i == 2 {
                // Ends when the test lets go of its sender.
                let _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }
        });
    }
    Ok(())
}

#[track_caller]
fn assert_at_rest(engine: &Engine) {
    wait_idle(engine);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.kv_tokens, stats.kv_blocks_used), (0, 0, 0, 0));
}

#[test]
fn a_step_that_fails_ends_its_requests_and_the_next_one_works() {
    let wide = EngineConfig { step_tokens: 64, ..config() };
    let prompt = [1, 2, 3];
    let expected = ids(&generate(&engine_with(&TinyModel::default(), &wide), greedy(&prompt, 8)).0);
    for (fault, words) in [(FAILS, "on purpose"), (PANICS, "panicked")] {
        let engine = engine_with(&long_model(), &wide);
        // It is in the same step as the one that fails, so it fails as well; what waits behind does not.
        let beside = submit(&engine, endless()).unwrap();
        beside.first_token();
        let failing = submit(&engine, greedy(&fault, 4)).unwrap();
        for (who, running) in [("the one that fails", failing), ("the one beside it", beside)] {
            let reason = running.rest().1.reason;
            assert!(
                matches!(&reason, FinishReason::Error(message) if message.contains(words)),
                "{who}: {reason:?}"
            );
        }
        assert_at_rest(&engine);
        let (tokens, finished) = generate(&engine, greedy(&prompt, 8));
        assert_eq!(finished.reason, FinishReason::Length);
        assert_eq!(ids(&tokens), expected, "as if nothing had happened");
        assert!(!contained::panic_is_contained());
        assert_at_rest(&engine);
    }
}

#[test]
fn a_step_that_stands_still_shows_and_one_that_takes_long_does_not() {
    let engine = engine_with(&long_model(), &EngineConfig { threads: Some(2), ..config() });
    let (prompt, release) = stalling(11);
    let stalled = submit(&engine, greedy(&prompt, 2)).unwrap();
    let limit = Duration::from_millis(300);
    let deadline = Instant::now() + PATIENCE;
    while engine.stats().heartbeat_age < limit {
        assert!(Instant::now() < deadline, "a wedge does not show: {:?}", engine.stats());
        thread::yield_now();
    }
    assert_eq!(engine.stats().running, 1);
    drop(release);
    assert_eq!(stalled.rest().1.reason, FinishReason::Length, "it comes round");
    assert_at_rest(&engine);
    assert_eq!(engine.stats().heartbeat_age, Duration::ZERO);
}

#[test]
fn the_heart_beats_within_a_step() {
    // One step for the whole prompt, which takes far longer than any of its tasks.
    let model = TinyModel { layers: 8, hidden: 128, context_length: 1 << 14, ..TinyModel::default() };
    let config = EngineConfig { step_tokens: 1 << 13, threads: Some(2), ..config() };
    let engine = engine_with(&model, &config);
    let began = Instant::now();
    let running = submit(&engine, greedy(&vec![5; (1 << 13) - 1], 1)).unwrap();
    let mut oldest = Duration::ZERO;
    while engine.stats().steps_total == 0 {
        assert!(began.elapsed() < PATIENCE, "no step ends: {:?}", engine.stats());
        oldest = oldest.max(engine.stats().heartbeat_age);
        thread::yield_now();
    }
    let took = began.elapsed();
    running.rest();
    // What a step takes and what the longest silence in it takes grow alike on a slow machine.
    assert!(oldest * 4 < took, "silent for {oldest:?} in a step of {took:?}");
}
