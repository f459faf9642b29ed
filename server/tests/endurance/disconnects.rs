//! Clients that hang up while they wait, while their prompt is read, and while they are answered.

use candela_engine::testing::TinyModel;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    alone,
    program::{Program, completion},
    slice_or_proof,
};

const SLOTS: usize = 8;
const QUEUE: usize = 56;
/// Long enough to be met while it is read, and an answer long enough to be met while it is written.
const LONG: usize = 6_000;

/// Sends a request and leaves the answer unread.
async fn sent(program: &Program, body: &Value) -> TcpStream {
    let body = body.to_string();
    let mut connection = TcpStream::connect(program.address).await.unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

async fn several(program: &Program, n: usize, body: &Value) -> Vec<TcpStream> {
    let mut connections = Vec::with_capacity(n);
    for _ in 0..n {
        connections.push(sent(program, body).await);
    }
    connections
}

fn streamed(prompt: usize, tokens: usize) -> Value {
    let mut body = completion(prompt, tokens);
    body.as_object_mut().unwrap().extend(json!({"stream": true}).as_object().unwrap().clone());
    body
}

/// Reads until text of an answer has come.
async fn first_text(connection: &mut TcpStream) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !seen.windows(5).any(|window| window == b"data:") {
        let n = connection.read(&mut buffer).await.unwrap();
        assert!(n > 0, "closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_in_queue_prefill_and_decode_leave_every_slot_free() {
    let _alone = alone().await;
    let model = TinyModel { hidden: 128, layers: 6, context_length: 16_384, ..TinyModel::default() };
    let (slots, queue) = (SLOTS.to_string(), QUEUE.to_string());
    let flags = ["--max-sequences", slots.as_str(), "--max-queue", queue.as_str()];
    let program = Program::serving(&model, &flags).await;
    let each = slice_or_proof(80, 3_400);
    let baseline = program.usage();
    let (mut in_queue, mut in_prefill, mut in_decode) = (0, 0, 0);

    while in_queue < each {
        let mut running = several(&program, SLOTS, &streamed(8, LONG)).await;
        for connection in &mut running {
            first_text(connection).await;
        }
        let waiting = several(&program, QUEUE, &completion(8, 8)).await;
        program.until("the queue is full", |now| now.queued == QUEUE as u64).await;
        drop(waiting);
        program.until("the queue is empty", |now| now.queued == 0).await;
        drop(running);
        program.settled().await;
        in_queue += QUEUE;
        in_decode += SLOTS;
    }
    while in_prefill < each {
        // None of these answers has begun when its slot is taken; most leave while their prompt is read. No two prompts
        // begin alike, so that none is found in the cache of prefixes.
        let mut reading = Vec::with_capacity(SLOTS);
        for i in 0..SLOTS {
            let mut body = completion(LONG, 8);
            let prompt = body["prompt"].as_str().unwrap().to_owned();
            body["prompt"] = json!(format!("{:06}{}", in_prefill + i, &prompt[6..]));
            reading.push(sent(&program, &body).await);
        }
        program.until("all slots are taken", |now| now.in_flight - now.queued == SLOTS as u64).await;
        drop(reading);
        program.settled().await;
        in_prefill += SLOTS;
    }
    while in_decode < each {
        let mut running = several(&program, SLOTS, &streamed(8, LONG)).await;
        for connection in &mut running {
            first_text(connection).await;
        }
        drop(running);
        program.settled().await;
        in_decode += SLOTS;
    }

    let ended = |outcome: &'static str| {
        let label = format!("outcome=\"{outcome}\"");
        let program = &program;
        async move { program.metric("candela_server_generations_total", &[&label]).await }
    };
    let gone = ended("client_gone").await;
    let now = program.usage();
    println!(
        "hung up: {in_queue} in queue, {in_prefill} in prefill, {in_decode} in decode; {gone} ended as such; \
         resident {} -> {} MiB, descriptors {} -> {}",
        baseline.resident_bytes >> 20,
        now.resident_bytes >> 20,
        baseline.descriptors,
        now.descriptors
    );
    let all = (in_queue + in_prefill + in_decode) as f64;
    assert!(gone >= 0.95 * all, "only {gone} of {all} were met before their end");
    // Every slot and the whole queue can be had again, at once and to the end.
    let body = completion(8, 4);
    let mut answered = Vec::new();
    for mut connection in several(&program, SLOTS + QUEUE, &body).await {
        let mut buffer = [0; 64];
        let n = connection.read(&mut buffer).await.unwrap();
        answered.push(String::from_utf8_lossy(&buffer[..n]).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(answered, [true; SLOTS + QUEUE]);
    program.settled().await;
    assert!(now.descriptors <= baseline.descriptors + 8, "{baseline:?} -> {now:?}");
}
