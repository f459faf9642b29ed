//! One streamed chat, by curl, printed as it arrives.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::say;

const REACHABLE_DEADLINE: Duration = Duration::from_secs(30);

/// Figures of an answer.
pub(super) struct Answer {
    pub(super) pieces: usize,
    pub(super) first: Duration,
    pub(super) whole: Duration,
}

/// A Service leads to its pods once the node's proxy has heard that they are ready, a moment after everybody else.
pub(super) fn wait_until_reachable(url: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "5", "--output", "/dev/null"]);
        let tried = curl
            .arg(format!("{url}/v1/models"))
            .output()
            .context("failed to run `curl`; is it installed?")?;
        if tried.status.success() {
            return Ok(());
        }
        if began.elapsed() > REACHABLE_DEADLINE {
            let said = String::from_utf8_lossy(&tried.stderr);
            bail!(
                "the Service does not answer within {} s: {}; try `make demo` again, or look at the pods with kubectl",
                REACHABLE_DEADLINE.as_secs(),
                said.trim()
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
}

pub(super) fn stream(url: &str, model: &str, question: &str) -> Result<Answer> {
    let body = json!({
        "model": model,
        "stream": true,
        "temperature": 0,
        "max_tokens": 64,
        "messages": [{ "role": "user", "content": question }],
    });
    let started = Instant::now();
    let mut curl = Command::new("curl")
        .args(["--silent", "--show-error", "--no-buffer", "--max-time", "60", "--header"])
        .args(["content-type: application/json", "--data", &body.to_string()])
        .arg(format!("{url}/v1/chat/completions"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to run `curl`; is it installed?")?;
    let stdout = curl.stdout.take().context("curl has no output")?;
    let read = print(BufReader::new(stdout), started);
    let status = curl.wait()?;
    if !status.success() {
        let mut said = String::new();
        if let Some(mut stderr) = curl.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        bail!("curl failed ({status}): {}", said.trim());
    }
    read
}

fn print(lines: impl BufRead, started: Instant) -> Result<Answer> {
    let (mut pieces, mut first, mut ended, mut strange) = (0, None, false, String::new());
    say("   ")?;
    for line in lines.lines() {
        let line = line?;
        match piece(&line) {
            Piece::Text(text) => {
                first.get_or_insert_with(|| started.elapsed());
                pieces += 1;
                say(&text)?;
            }
            Piece::End => ended = true,
            Piece::Nothing => {}
            Piece::Strange => strange.push_str(&line),
        }
    }
    say("\n")?;
    if !strange.is_empty() {
        bail!("the server answered: {strange}");
    }
    let (Some(first), true) = (first, ended) else { bail!("the answer broke off after {pieces} pieces") };
    Ok(Answer { pieces, first, whole: started.elapsed() })
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    End,
    Nothing,
    /// No event of a stream, so probably an error's body.
    Strange,
}

fn piece(line: &str) -> Piece {
    if line.is_empty() || line.starts_with(':') {
        return Piece::Nothing;
    }
    let Some(data) = line.strip_prefix("data:").map(str::trim) else { return Piece::Strange };
    if data == "[DONE]" {
        return Piece::End;
    }
    let Ok(event) = serde_json::from_str::<Value>(data) else { return Piece::Strange };
    if !event["error"].is_null() {
        return Piece::Strange;
    }
    match event["choices"][0]["delta"]["content"].as_str() {
        Some(text) if !text.is_empty() => Piece::Text(text.to_owned()),
        _ => Piece::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_text_between_a_role_and_an_end() {
        let of = |line| piece(line);
        assert_eq!(of(r#"data: {"choices":[{"delta":{"role":"assistant"}}]}"#), Piece::Nothing);
        assert_eq!(
            of(r#"data: {"choices":[{"delta":{"content":"Paris"}}]}"#),
            Piece::Text("Paris".to_owned())
        );
        assert_eq!(of(r#"data: {"choices":[],"usage":{}}"#), Piece::Nothing);
        assert_eq!(of("data: [DONE]"), Piece::End);
        assert_eq!(of(r#"{"error":{"message":"no such model"}}"#), Piece::Strange);
    }

    #[test]
    fn a_broken_or_refused_answer_is_an_error() {
        let read = |text: &str| print(text.as_bytes(), Instant::now());
        assert!(read("data: {\"choices\":[{\"delta\":{\"content\":\"Par\"}}]}\n\n").is_err());
        assert!(read("{\"error\":{}}\n").is_err());
        let whole = read("data: {\"choices\":[{\"delta\":{\"content\":\"Paris\"}}]}\n\ndata: [DONE]\n\n");
        assert_eq!(whole.map(|answer| answer.pieces).ok(), Some(1));
    }
}
