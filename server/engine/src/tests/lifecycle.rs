//! Queue, cancellation, deadlines, limits and the end.

use super::*;
use crate::{FinishReason, LoadError, LoadPhase};

fn narrow() -> Engine {
    engine_with(&long_model(), &EngineConfig { max_sequences: 1, max_queue: 1, ..config() })
}

#[test]
fn cancelling_frees_the_slot_and_the_cache() {
    let engine = narrow();
    let running = submit(&engine, endless()).unwrap();
    running.first_token();
    let waiting = submit(&engine, greedy(&[4], 2)).unwrap();
    assert_eq!(engine.stats().running, 1);
    running.cancel.cancel();
    assert_eq!(running.rest().1.reason, FinishReason::Cancelled);
    assert_eq!(waiting.rest().1.reason, FinishReason::Length);
    wait_idle(&engine);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.kv_tokens), (0, 0, 0));
    assert_eq!(stats.heartbeat_age, Duration::ZERO, "an idle engine is not a wedged one");
    assert!(stats.steps_total > 2 && stats.completion_tokens_total > 2 && stats.prompt_tokens_total == 4);
}

#[test]
fn a_sink_that_breaks_off_frees_the_slot() {
    let engine = narrow();
    let sink = Box::new(|event| match event {
        Event::Token(_) => ControlFlow::Break(()),
        Event::Finished(finished) => panic!("{finished:?} after Break"),
    });
    engine.submit(endless(), sink).unwrap();
    wait_idle(&engine);
    assert_eq!(generate(&engine, greedy(&[4], 2)).1.reason, FinishReason::Length);
}

#[test]
fn a_sink_that_panics_ends_its_request_only() {
    let engine = engine();
    let beside = submit(&engine, greedy(&[1, 2], 50)).unwrap();
    engine.submit(greedy(&[1, 2], 50), Box::new(|_| panic!("a bug in a sink"))).unwrap();
    let (tokens, finished) = beside.rest();
    assert_eq!((tokens.len(), finished.reason), (50, FinishReason::Length));
    wait_idle(&engine);
}

#[test]
fn a_full_queue_is_an_answer() {
    let engine = narrow();
    let running = submit(&engine, endless()).unwrap();
    running.first_token();
    let waiting = submit(&engine, endless()).unwrap();
    match submit(&engine, endless()).map(|_| ()) {
        Err(SubmitError::QueueFull { queued: 1, retry_after }) => {
            assert!(retry_after >= Duration::from_secs(1))
        }
        other => panic!("{other:?}"),
    }
    waiting.cancel.cancel();
    let (tokens, finished) = waiting.rest();
    assert_eq!((tokens.len(), finished.reason), (0, FinishReason::Cancelled), "cancelled in the queue");
    assert!(submit(&engine, endless()).is_ok(), "its place is free again");
    engine.shutdown();
}

#[test]
fn deadlines_end_running_and_waiting_requests() {
    let engine = narrow();
    let soon = || Some(Instant::now() + Duration::from_millis(100));
    let running = submit(&engine, GenerateRequest { deadline: soon(), ..endless() }).unwrap();
    running.first_token();
    assert_eq!(running.rest().1.reason, FinishReason::Deadline);

    let blocking = submit(&engine, endless()).unwrap();
    blocking.first_token();
    let waiting = submit(&engine, GenerateRequest { deadline: soon(), ..endless() }).unwrap();
    let (tokens, finished) = waiting.rest();
    assert_eq!((tokens.len(), finished.reason), (0, FinishReason::Deadline));
    assert!(finished.timings.queue >= Duration::from_millis(50), "{:?}", finished.timings);
    blocking.cancel.cancel();
    wait_idle(&engine);
}

#[test]
fn a_long_prompt_does_not_hold_up_a_stream() {
    // 16 tokens a step: the prompt takes 60 steps, in each of which the stream gets its token.
    let engine = engine_with(&long_model(), &config());
    let stream = submit(&engine, endless()).unwrap();
    stream.first_token();
    let (_, finished) = generate(&engine, greedy(&vec![9; 900], 1));
    assert_eq!(finished.reason, FinishReason::Length);
    stream.cancel.cancel();
    let (tokens, _) = stream.rest();
    assert!(tokens.len() >= 55, "the stream got {} tokens meanwhile", tokens.len());
}

#[test]
fn draining_finishes_what_was_admitted() {
    let engine = engine();
    let running = submit(&engine, greedy(&[1, 2], 40)).unwrap();
    engine.drain();
    assert!(!engine.stats().accepting);
    assert!(matches!(submit(&engine, greedy(&[1], 1)), Err(SubmitError::ShuttingDown)));
    assert_eq!(running.rest().1.reason, FinishReason::Length);
    wait_idle(&engine);
}

#[test]
fn shutting_down_tells_every_request() {
    let engine = narrow();
    let running = submit(&engine, endless()).unwrap();
    running.first_token();
    let waiting = submit(&engine, endless()).unwrap();
    engine.shutdown();
    assert_eq!(running.rest().1.reason, FinishReason::Cancelled);
    assert_eq!(waiting.rest().1.reason, FinishReason::Cancelled);
    assert!(matches!(submit(&engine, endless()), Err(SubmitError::ShuttingDown)));
    engine.shutdown();
}

#[test]
fn dropping_the_last_handle_ends_the_thread() {
    let engine = narrow();
    let running = submit(&engine, endless()).unwrap();
    running.first_token();
    drop(engine);
    assert_eq!(running.rest().1.reason, FinishReason::Cancelled);
}

#[test]
fn warming_up_computes_a_token() {
    let engine = engine();
    engine.warm_up().unwrap();
    assert_eq!(engine.stats().completion_tokens_total, 1);
    engine.shutdown();
    assert!(engine.warm_up().is_err());
}

#[test]
fn loading_reports_progress_and_facts() {
    let dir = folder(&TinyModel { half_precision: true, ..TinyModel::default() });
    let mut seen = Vec::new();
    let source = ModelSource::Folder(dir.path().to_owned());
    let engine = Engine::load(&source, &config(), &mut |progress| seen.push(progress)).unwrap();
    let facts = engine.facts();
    assert_eq!(seen.last().map(|p| (p.phase, p.done_bytes)), Some((LoadPhase::Weights, facts.size_bytes)));
    assert!(seen.iter().any(|p| p.phase == LoadPhase::Verify && p.done_bytes == p.total_bytes));
    assert_eq!(facts.quantization, "F16");
    assert_eq!(facts.size_bytes, dir.path().join("model.safetensors").metadata().unwrap().len());
    // Packed in panels of 64 rows, so these tiny matrices take a little more than their f16.
    let stored = 2 * (facts.parameters - 5 * 32);
    assert!((stored..stored * 3 / 2).contains(&facts.memory.weights_bytes), "{:?}", facts.memory);
    // 2 layers, 2 key-value heads, f16, 256 tokens, 4 sequences: keys of 8, values padded to whole registers of 16.
    assert_eq!(facts.memory.kv_bytes, 2 * 2 * (8 + 16) * 2 * 256 * 4);
    let sum =
        crate::files::sha256(&std::fs::read(dir.path().join("model.safetensors")).unwrap(), &mut |_| ());
    let list = format!("{sum}  model.safetensors\n");
    assert_eq!(facts.digest, format!("sha256:{}", crate::files::sha256(list.as_bytes(), &mut |_| ())));
}

#[test]
fn limits_are_checked_before_anything_is_read() {
    let dir = folder(&TinyModel::default());
    let load = |config: EngineConfig| {
        Engine::load(&ModelSource::Folder(dir.path().to_owned()), &config, &mut |_| panic!("reading weights"))
    };
    match load(EngineConfig { memory_limit_bytes: Some(200_000), ..config() }) {
        Err(LoadError::OutOfMemory { needed_bytes, limit_bytes: 200_000, .. }) => {
            assert!(needed_bytes > 200_000)
        }
        other => panic!("{other:?}"),
    }
    for (name, config) in [
        ("context_length", EngineConfig { context_length: Some(257), ..config() }),
        ("context_length", EngineConfig { context_length: Some(0), ..config() }),
        ("max_sequences", EngineConfig { max_sequences: 0, ..config() }),
        ("step_tokens", EngineConfig { step_tokens: 3, ..config() }),
        ("threads", EngineConfig { threads: Some(0), ..config() }),
        ("threads", EngineConfig { threads: Some(1_000_000), ..config() }),
        ("kv_cache_tokens", EngineConfig { kv_cache_tokens: Some(0), ..config() }),
        // Less than one sequence may take.
        ("kv_cache_tokens", EngineConfig { kv_cache_tokens: Some(224), ..config() }),
    ] {
        match load(config) {
            Err(LoadError::InvalidConfig { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}
