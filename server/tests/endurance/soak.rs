//! A million short requests of every kind: what the process holds at the end is what it held at the beginning.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use candela_engine::testing::TinyModel;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    alone, median,
    program::{NAME, Program, Usage, completion},
    slice_or_proof,
};

const CLIENTS: usize = 8;
const CHECKS: usize = 20;

async fn post(program: &Program, path: &str, body: &Value) -> Response {
    program.http.post(program.url(path)).json(body).send().await.expect("it answers")
}

/// One request of the mix, its answer read as its kind wants.
async fn ask(program: &Program, kind: u64) {
    let chat = |tokens: u64, stream: bool| {
        json!({
            "model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens,
            "temperature": 1.0, "seed": kind, "stream": stream
        })
    };
    match kind % 10 {
        0 => {
            let response = post(program, "/v1/chat/completions", &chat(4, true)).await;
            let text = response.text().await.expect("a whole stream");
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        }
        1 => {
            // Hangs up after the first bytes.
            let mut response = post(program, "/v1/chat/completions", &chat(64, true)).await;
            response.chunk().await.expect("a stream begins");
        }
        2 => {
            let refused = post(program, "/v1/chat/completions", &chat(0, false)).await;
            assert_eq!(refused.status(), 400);
        }
        3 => {
            let unknown = json!({"model": "other", "prompt": "x"});
            assert_eq!(post(program, "/v1/completions", &unknown).await.status(), 404);
        }
        4 => assert_eq!(program.http.get(program.url("/v1/models")).send().await.unwrap().status(), 200),
        5 => {
            let response = post(program, "/v1/chat/completions", &chat(4, false)).await;
            assert_eq!(response.status(), 200);
        }
        _ => {
            let response = post(program, "/v1/completions", &completion(1 + kind as usize % 48, 2)).await;
            let answer: Value = response.json().await.expect("a whole answer");
            assert_eq!(answer["usage"]["completion_tokens"], 2, "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_requests_of_every_kind_leave_nothing_behind() {
    let _alone = alone().await;
    let program = Arc::new(Program::serving(&TinyModel::default(), &[]).await);
    let (least, time) = slice_or_proof((1_000, 10), (1_000_000, 3600));
    let step = Duration::from_secs(time) / CHECKS as u32;
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let end = began + Duration::from_secs(time);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (program, next) = (Arc::clone(&program), Arc::clone(&next));
        clients.spawn(async move {
            // The hour, and the million.
            while Instant::now() < end || next.load(Ordering::Relaxed) < least {
                ask(&program, next.fetch_add(1, Ordering::Relaxed)).await;
            }
        });
    }
    let mut seen: Vec<Usage> = Vec::new();
    for check in 1..=CHECKS {
        sleep_until(began + step * check as u32).await;
        let usage = program.usage();
        println!(
            "{:>5.0} s: {:>8} requests, {:.1} MiB resident, {} threads, {} descriptors",
            began.elapsed().as_secs_f64(),
            next.load(Ordering::Relaxed),
            usage.resident_bytes as f64 / f64::from(1 << 20),
            usage.threads,
            usage.descriptors
        );
        seen.push(usage);
    }
    clients.join_all().await;
    program.settled().await;
    let fifth = CHECKS / 5;
    let resident = |part: &[Usage]| median(part.iter().map(|usage| usage.resident_bytes).collect());
    let (early, late) = (resident(&seen[fifth..2 * fifth]), resident(&seen[CHECKS - fifth..]));
    println!("{} requests; resident {early} bytes early, {late} late", next.load(Ordering::Relaxed));
    assert!(next.load(Ordering::Relaxed) >= least);
    assert!(late <= early + early / 50 + (4 << 20), "memory grew from {early} to {late} bytes");
    let most = |of: fn(&Usage) -> u64, part: &[Usage]| part.iter().map(of).max().unwrap_or_default();
    // One connection per client and one for the status, here and there one that is just being replaced.
    let slack = CLIENTS as u64;
    for (what, of) in [
        ("threads", (|usage| usage.threads) as fn(&Usage) -> u64),
        ("descriptors", |usage| usage.descriptors),
    ] {
        let (early, late) = (most(of, &seen[..2 * fifth]), most(of, &seen[CHECKS - fifth..]));
        assert!(late <= early + slack, "{what} grew from {early} to {late}");
    }
}
