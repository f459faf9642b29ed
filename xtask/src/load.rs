//! `cargo xtask bench-load`: streamed completions from many clients at once, for `make bench-server`. Client and server
//! share the cores, so that threads only read and stamp while the load runs; what they read is understood afterwards.

mod response;

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Barrier, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use self::response::{Response, Segment};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the server listens.
    #[arg(long)]
    address: SocketAddr,
    #[arg(long, default_value = "/v1/completions")]
    path: String,
    /// File with a JSON array of prompts; each is sent once.
    #[arg(long)]
    prompts: PathBuf,
    /// Clients that send the next prompt when they have the whole answer to the last.
    #[arg(long)]
    clients: usize,
    /// JSON object: the fields of each request beside `prompt` and `stream`.
    #[arg(long)]
    fields: String,
    /// Seconds without a byte after which a request has failed.
    #[arg(long, default_value_t = 300)]
    silence_seconds: u64,
}

/// One request as it went, times counted from the start of the load.
struct Exchange {
    prompt: usize,
    began: Duration,
    ended: Duration,
    outcome: io::Result<Raw>,
}

/// What came, unread.
struct Raw {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

/// Prints one JSON object: the wall time, the client's own CPU time, and each request with the times of its events.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.clients > 0, "`--clients` must be at least 1");
    let fields: Map<String, Value> =
        serde_json::from_str(&args.fields).context("`--fields` must be a JSON object")?;
    let text = fs::read_to_string(&args.prompts)
        .with_context(|| format!("failed to read `{}`", args.prompts.display()))?;
    let prompts: Vec<Value> = serde_json::from_str(&text).context("`--prompts` must hold a JSON array")?;
    ensure!(!prompts.is_empty(), "`--prompts` holds no prompt");
    let requests: Vec<Vec<u8>> =
        prompts.into_iter().map(|prompt| request(&args, fields.clone(), prompt)).collect::<Result<_>>()?;

    let cpu_before = cpu_seconds()?;
    let (exchanges, wall) = exchange_all(&args, &requests);
    let cpu = cpu_seconds()? - cpu_before;
    let requests: Vec<Value> = exchanges.iter().map(summary).collect();
    let report = json!({
        "clients": args.clients,
        "wallSeconds": wall.as_secs_f64(),
        "clientCpuSeconds": cpu,
        "requests": requests,
    });
    writeln!(io::stdout(), "{report}")?;
    Ok(())
}

fn request(args: &Args, mut fields: Map<String, Value>, prompt: Value) -> Result<Vec<u8>> {
    fields.insert("prompt".to_owned(), prompt);
    fields.insert("stream".to_owned(), true.into());
    fields.insert("stream_options".to_owned(), json!({ "include_usage": true }));
    let body = serde_json::to_vec(&fields)?;
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        args.path,
        args.address,
        body.len()
    );
    Ok([head.into_bytes(), body].concat())
}

/// All requests, by so many threads at once; in the order in which they ended, and how long all of it took.
fn exchange_all(args: &Args, requests: &[Vec<u8>]) -> (Vec<Exchange>, Duration) {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(requests.len()));
    let start = Barrier::new(args.clients + 1);
    let silence = Duration::from_secs(args.silence_seconds);
    thread::scope(|scope| {
        for _ in 0..args.clients {
            scope.spawn(|| {
                start.wait();
                let zero = Instant::now();
                loop {
                    let prompt = next.fetch_add(1, Ordering::Relaxed);
                    let Some(request) = requests.get(prompt) else { break };
                    let began = zero.elapsed();
                    let outcome = exchange(args.address, request, silence, zero);
                    let exchange = Exchange { prompt, began, ended: zero.elapsed(), outcome };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(exchange);
                }
            });
        }
        start.wait();
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let wall = done.iter().map(|exchange| exchange.ended).max().unwrap_or_default();
    (done, wall)
}

fn exchange(address: SocketAddr, request: &[u8], silence: Duration, zero: Instant) -> io::Result<Raw> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(silence))?;
    socket.write_all(request)?;
    let (mut bytes, mut segments) = (Vec::with_capacity(64 << 10), Vec::with_capacity(256));
    let mut buffer = [0; 16 << 10];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(Raw { bytes, segments }),
            Ok(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                segments.push(Segment { end: bytes.len(), at: zero.elapsed() });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// `pieces`: seconds at which text came. The last event before the usage, which has a finish reason, is not one.
fn summary(exchange: &Exchange) -> Value {
    let mut report = json!({
        "prompt": exchange.prompt,
        "began": exchange.began.as_secs_f64(),
        "ended": exchange.ended.as_secs_f64(),
    });
    let read = match &exchange.outcome {
        Ok(raw) => Response::read(&raw.bytes, &raw.segments),
        Err(error) => Err(anyhow::anyhow!("{error}")),
    };
    match read.and_then(|response| answer(&response)) {
        Ok(Value::Object(answer)) => {
            if let Value::Object(report) = &mut report {
                report.extend(answer);
            }
        }
        Ok(_) => {}
        Err(error) => report["error"] = format!("{error:#}").into(),
    }
    report
}

fn answer(response: &Response) -> Result<Value> {
    ensure!(response.status == 200, "status {}: {}", response.status, response.text.trim());
    let (mut pieces, mut usage, mut complete) = (Vec::new(), None, false);
    for event in &response.events {
        if event.data == "[DONE]" {
            complete = true;
            continue;
        }
        let data: Value = serde_json::from_str(&event.data).context("an event is not JSON")?;
        ensure!(data.get("error").is_none(), "the stream ended with {data}");
        if let Some(seen) = data.get("usage").filter(|usage| usage.is_object()) {
            usage = Some(seen.clone());
        }
        if data.pointer("/choices/0").is_some_and(|choice| choice["finish_reason"].is_null()) {
            pieces.push(event.at.as_secs_f64());
        }
    }
    ensure!(complete, "the stream ended without [DONE]");
    let usage = usage.context("the stream had no usage")?;
    Ok(json!({
        "promptTokens": usage["prompt_tokens"],
        "completionTokens": usage["completion_tokens"],
        "pieces": pieces,
    }))
}

/// User and system time of this process so far, in seconds; the kernel counts it in hundredths.
fn cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat")?;
    // The second field, in brackets, may hold spaces; fields 14 and 15 are what is wanted.
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has another form")?;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange_of(text: &str) -> Exchange {
        let bytes = text.as_bytes().to_vec();
        let segments = vec![Segment { end: bytes.len(), at: Duration::from_millis(500) }];
        let (began, ended) = (Duration::from_millis(250), Duration::from_millis(500));
        Exchange { prompt: 3, began, ended, outcome: Ok(Raw { bytes, segments }) }
    }

    #[test]
    fn a_stream_is_summed_up_and_a_broken_one_is_an_error() {
        let head = "HTTP/1.1 200 OK\r\n\r\n";
        let text = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n\
                    data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n";
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\n\n";
        let whole = summary(&exchange_of(&format!("{head}{text}{usage}data: [DONE]\n\n")));
        let wanted = json!({
            "prompt": 3, "began": 0.25, "ended": 0.5, "promptTokens": 7, "completionTokens": 1, "pieces": [0.5]
        });
        assert_eq!(whole, wanted);
        let error = |text: String| summary(&exchange_of(&text))["error"].as_str().map(str::to_owned);
        assert_eq!(error(format!("{head}{text}{usage}")).as_deref(), Some("the stream ended without [DONE]"));
        assert_eq!(
            error(format!("{head}{text}data: [DONE]\n\n")).as_deref(),
            Some("the stream had no usage")
        );
        let refused = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull".to_owned();
        assert_eq!(error(refused).as_deref(), Some("status 429: full"));
        let failed = format!("{head}data: {{\"error\":{{}}}}\n\ndata: [DONE]\n\n");
        assert!(error(failed).is_some_and(|error| error.starts_with("the stream ended with")));
    }

    #[test]
    fn the_clients_own_time_is_counted() -> Result<()> {
        let before = cpu_seconds()?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(200) {
            std::hint::spin_loop();
        }
        let spent = cpu_seconds()? - before;
        // Other tests' threads count as well, and other processes may hold the core.
        assert!(spent > 0.0, "{spent}");
        Ok(())
    }
}
