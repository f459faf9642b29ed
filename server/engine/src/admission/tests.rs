use std::ops::ControlFlow;

use super::*;

fn door(max_sequences: usize, max_queue: usize) -> Admission {
    let limits = Limits { max_sequences, max_queue, max_queue_tokens: None, max_wait: None };
    Admission::new(limits, Pulse::default())
}

fn pending() -> Pending {
    Pending {
        request: GenerateRequest { prompt_tokens: vec![1; 100], ..GenerateRequest::default() },
        sink: Box::new(|_| ControlFlow::Continue(())),
        cancel: CancelToken::default(),
        submitted: Instant::now(),
    }
}

#[test]
fn a_full_queue_says_when_to_retry() {
    let door = door(1, 2);
    // One goes straight to the free slot, two wait.
    for _ in 0..3 {
        door.submit(pending()).unwrap();
    }
    let refused = door.submit(pending()).unwrap_err();
    assert!(
        matches!(refused, SubmitError::QueueFull { queued: 3, retry_after } if retry_after.as_secs() >= 1),
        "{refused:?}"
    );
    let taken = door.take(0, true, |_, _| false);
    assert_eq!((taken.started.len(), taken.over.len()), (1, 0));
    assert!(door.submit(pending()).is_err(), "slot is taken, both places in the queue too");
}

#[test]
fn requests_that_ended_in_the_queue_take_no_slot() {
    let door = door(1, 4);
    let dead = pending();
    dead.cancel.cancel();
    door.submit(dead).unwrap();
    door.submit(pending()).unwrap();
    let taken = door.take(0, true, |p, _| p.cancel.is_cancelled());
    assert_eq!((taken.started.len(), taken.over.len()), (1, 1));
    assert!(!taken.started[0].cancel.is_cancelled());
}

#[test]
fn tokens_that_wait_are_bounded_and_one_prompt_may_always_wait() {
    let limits = Limits { max_sequences: 1, max_queue: 10, max_queue_tokens: Some(150), max_wait: None };
    let door = Admission::new(limits, Pulse::default());
    door.submit(pending()).unwrap();
    door.take(0, true, |_, _| false);
    let mut large = pending();
    large.request.prompt_tokens = vec![1; 1000];
    door.submit(large).unwrap();
    assert!(matches!(door.submit(pending()), Err(SubmitError::QueueFull { queued: 1, .. })));
    assert_eq!(door.snapshot().queued_tokens, 1000);
    door.take(0, true, |_, _| false);
    door.submit(pending()).unwrap();
    assert_eq!(door.snapshot().queued_tokens, 100);
}

#[test]
fn the_wait_is_estimated_from_what_was_measured() {
    let max_wait = Some(Duration::from_secs(10));
    let limits = Limits { max_sequences: 2, max_queue: 100, max_queue_tokens: None, max_wait };
    let door = Admission::new(limits, Pulse::default());
    // 10 ms for a token of a prompt, 20 ms for a generated one; 50 of those, which take 2 s.
    for _ in 0..100 {
        door.stepped(Duration::from_secs(1), 90, 10);
        door.stepped(Duration::from_millis(40), 0, 2);
        door.served(Duration::from_secs(2), 50);
    }
    for _ in 0..2 {
        door.submit(pending()).unwrap();
    }
    door.take(0, true, |_, _| false);
    // Each that waits adds 100 · 10 ms + 50 · 20 ms; a slot becomes free every second.
    let waits: Vec<f64> = (0..5)
        .map(|_| {
            let wait = door.lock().wait(&limits);
            door.submit(pending()).unwrap();
            (wait * 10.0).round() / 10.0
        })
        .collect();
    assert_eq!(waits, [1.0, 3.0, 5.0, 7.0, 9.0]);
    let refused = door.submit(pending());
    assert_eq!(refused, Err(SubmitError::QueueFull { queued: 5, retry_after: Duration::from_secs(11) }));
    // Free slots, but no blocks: nothing is taken.
    assert!(door.take(0, false, |_, _| false).started.is_empty());
    assert_eq!(door.take(0, true, |_, _| false).started.len(), 2);
}

#[test]
fn draining_admits_nothing_and_does_not_go_back() {
    let door = door(1, 1);
    door.advance(Phase::Stopping);
    door.advance(Phase::Draining);
    assert_eq!(door.submit(pending()), Err(SubmitError::ShuttingDown));
    assert_eq!(door.snapshot().phase, Phase::Stopping);
    assert!(!door.wait_for_work());
    assert!(door.wait_idle(Instant::now() + Duration::from_secs(1)));
}
