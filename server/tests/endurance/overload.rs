//! Four times as many requests as it can do: those that it takes it finishes as fast as ever, the others hear so at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use candela_engine::testing::TinyModel;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    alone, median,
    program::{Program, completion},
    slice_or_proof,
};

const TIMES: f64 = 4.0;
const SLOTS: usize = 8;
const QUEUE: usize = 16;
const PROMPT: usize = 64;
const TOKENS: usize = 32;
/// Share of refusals that must leave within `QUICK` (a bucket's bound, in seconds).
const SHARE: f64 = 0.99;
const QUICK: &str = "0.05";

/// What came of a time under load.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
}

async fn ask(program: &Program, tally: &Tally) {
    let request = program.http.post(program.url("/v1/completions")).json(&completion(PROMPT, TOKENS));
    let response = request.send().await.expect("it answers");
    match response.status().as_u16() {
        200 => {
            let answer: serde_json::Value = response.json().await.expect("a whole answer");
            assert_eq!(answer["usage"]["completion_tokens"], TOKENS, "{answer}");
            tally.answered.fetch_add(1, Ordering::Relaxed);
        }
        429 => {
            assert!(response.headers().contains_key("retry-after"), "{response:?}");
            tally.refused.fetch_add(1, Ordering::Relaxed);
        }
        other => panic!("status {other}"),
    }
}

/// Answers per second while all slots are taken and nobody is refused.
async fn peak(program: &Arc<Program>, time: Duration) -> f64 {
    let (tally, over) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..SLOTS + QUEUE / 2 {
        let (program, tally, over) = (Arc::clone(program), Arc::clone(&tally), Arc::clone(&over));
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                ask(&program, &tally).await;
            }
        });
    }
    // Only what falls between two answers in the middle of it counts: it has begun, and does not end.
    let rate = rate_over(&tally, time).await;
    over.store(true, Ordering::Relaxed);
    clients.join_all().await;
    assert_eq!(tally.refused.load(Ordering::Relaxed), 0, "nobody is refused at the peak");
    rate
}

/// Answers per second over `time`, after a fifth of it.
async fn rate_over(tally: &Tally, time: Duration) -> f64 {
    tokio::time::sleep(time / 5).await;
    let (before, began) = (tally.answered.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(time).await;
    (tally.answered.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_times_the_load_costs_no_answers_and_refusals_are_quick() {
    let _alone = alone().await;
    let (slots, queue) = (SLOTS.to_string(), QUEUE.to_string());
    let flags = ["--max-sequences", slots.as_str(), "--max-queue", queue.as_str()];
    // Some dozens of requests a second: the client shares the cores, and what it takes for thousands would be missed here.
    let model = TinyModel { layers: 16, hidden: 512, context_length: 1024, ..TinyModel::default() };
    let program = Arc::new(Program::serving(&model, &flags).await);
    let (beside, under) = slice_or_proof((2, 6), (30, 300));
    let before = peak(&program, Duration::from_secs(beside)).await;

    let tally = Arc::new(Tally::default());
    let over = Arc::new(AtomicBool::new(false));
    let arrivals = tokio::spawn({
        let (program, tally, over) = (Arc::clone(&program), Arc::clone(&tally), Arc::clone(&over));
        async move {
            let mut due = interval(Duration::from_secs_f64(1.0 / (TIMES * before)));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (mut asked, mut sent) = (JoinSet::new(), 0_u64);
            while !over.load(Ordering::Relaxed) {
                due.tick().await;
                sent += 1;
                let (program, tally) = (Arc::clone(&program), Arc::clone(&tally));
                asked.spawn(async move { ask(&program, &tally).await });
                while let Some(ended) = asked.try_join_next() {
                    ended.unwrap();
                }
            }
            asked.join_all().await;
            sent
        }
    });
    let samples = tokio::spawn({
        let (program, over) = (Arc::clone(&program), Arc::clone(&over));
        async move {
            let (mut due, mut seen) = (interval(Duration::from_millis(250)), Vec::new());
            while !over.load(Ordering::Relaxed) {
                due.tick().await;
                seen.push(program.usage().resident_bytes);
            }
            seen
        }
    });
    let began = Instant::now();
    let rate = rate_over(&tally, Duration::from_secs(under)).await;
    over.store(true, Ordering::Relaxed);
    let sent = arrivals.await.unwrap();
    let offered = sent as f64 / began.elapsed().as_secs_f64();
    let resident = samples.await.unwrap();
    program.settled().await;
    let after = peak(&program, Duration::from_secs(beside)).await;

    let (answered, refused) = (tally.answered.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed));
    let labels = ["route=\"/v1/completions\"", "status=\"429\""];
    let quick = [labels[0], labels[1], &format!("le=\"{QUICK}\"")];
    let all = program.metric("candela_server_answer_seconds_count", &labels).await;
    let share = program.metric("candela_server_answer_seconds_bucket", &quick).await / all;
    let mean = program.metric("candela_server_answer_seconds_sum", &labels).await / all;
    let quarter = resident.len() / 4;
    let (early, late) =
        (median(resident[quarter..2 * quarter].to_vec()), median(resident[3 * quarter..].to_vec()));
    println!(
        "peak {before:.1} answers/s before and {after:.1} after; offered {offered:.1}/s for {under} s: \
         {rate:.1} answers/s ({:.0} % of the peak), {answered} answered, {refused} refused of {sent}",
        100.0 * rate / f64::midpoint(before, after)
    );
    println!(
        "refusals: {:.2} % within {QUICK} s on the server's side, {:.2} ms on average; resident {} MiB early, {} MiB late",
        100.0 * share,
        1000.0 * mean,
        early >> 20,
        late >> 20
    );
    assert_eq!(answered + refused, sent, "each request has an answer");
    assert!(offered >= 0.85 * TIMES * before, "the client could not offer {TIMES} times {before:.1}/s");
    // In a few seconds the machine's own ups and downs are part of it.
    let least = slice_or_proof(0.7, 0.9) * f64::midpoint(before, after);
    assert!(rate >= least, "{rate:.1} answers/s under overload, at least {least:.1} are wanted");
    assert_eq!(all, refused as f64, "each refusal is counted");
    assert!(share >= SHARE, "only {share:.4} of the refusals left within {QUICK} s");
    assert!(late <= early + early / 50 + (4 << 20), "memory grew from {early} to {late} bytes");
}
