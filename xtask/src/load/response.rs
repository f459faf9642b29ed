//! A response read to its end, with the moment at which each part came.

use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One read: the bytes up to `end` had come at `at`.
pub(super) struct Segment {
    pub(super) end: usize,
    pub(super) at: Duration,
}

#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    /// The body as text.
    pub(super) text: String,
    /// `data:` lines of it.
    pub(super) events: Vec<Event>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Event {
    /// When its last byte had come.
    pub(super) at: Duration,
    pub(super) data: String,
}

impl Response {
    pub(super) fn read(bytes: &[u8], segments: &[Segment]) -> Result<Self> {
        let head_end = find(bytes, b"\r\n\r\n").context("the connection ended before the answer began")?;
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no HTTP answer: {head}"))?;
        let body = &bytes[head_end + 4..];
        let chunked = head.lines().any(|line| {
            line.strip_prefix("transfer-encoding:").is_some_and(|value| value.trim().ends_with("chunked"))
        });
        // Pieces of the body: (offset in `bytes`, content).
        let pieces = match chunked {
            true => chunks(body)?.into_iter().map(|(at, piece)| (head_end + 4 + at, piece)).collect(),
            false => vec![(head_end + 4, body)],
        };
        let (mut text, mut events, mut line) = (Vec::new(), Vec::new(), Vec::new());
        for (offset, piece) in pieces {
            text.extend_from_slice(piece);
            for (at, byte) in piece.iter().enumerate() {
                if *byte != b'\n' {
                    line.push(*byte);
                    continue;
                }
                if let Some(data) = String::from_utf8_lossy(&line).strip_prefix("data:") {
                    let at = arrival(segments, offset + at);
                    events.push(Event { at, data: data.trim().to_owned() });
                }
                line.clear();
            }
        }
        Ok(Self { status, text: String::from_utf8_lossy(&text).into_owned(), events })
    }
}

fn arrival(segments: &[Segment], offset: usize) -> Duration {
    let after = segments.partition_point(|segment| segment.end <= offset);
    segments.get(after).or_else(|| segments.last()).map(|segment| segment.at).unwrap_or_default()
}

/// Content of each chunk, and where it lies in `body`.
fn chunks(body: &[u8]) -> Result<Vec<(usize, &[u8])>> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        let rest = body.get(at..).unwrap_or_default();
        let line = find(rest, b"\r\n").context("the connection ended within the answer")?;
        let size = String::from_utf8_lossy(&rest[..line]);
        let size = size.split(';').next().unwrap_or_default().trim().to_owned();
        let size = usize::from_str_radix(&size, 16).with_context(|| format!("chunk of size `{size}`"))?;
        if size == 0 {
            return Ok(found);
        }
        let start = at + line + 2;
        let Some(piece) = start.checked_add(size).and_then(|end| body.get(start..end)) else {
            bail!("the connection ended within the answer");
        };
        found.push((start, piece));
        at = start + size + 2;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn events_have_the_time_of_their_last_byte_in_whatever_pieces_they_come() -> Result<()> {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                    8\r\ndata: 1\n\r\n5\r\n\ndata\r\n6\r\n: 22\n\n\r\n0\r\n\r\n";
        let bytes = text.as_bytes();
        let second = find(bytes, b": 22").context("the event")? + 4;
        // The line's end comes with the last read.
        let segments = [
            Segment { end: find(bytes, b"8\r\n").context("a chunk")? + 11, at: ms(1) },
            Segment { end: second, at: ms(2) },
            Segment { end: bytes.len(), at: ms(3) },
        ];
        let response = Response::read(bytes, &segments)?;
        assert_eq!(response.status, 200);
        assert_eq!(response.text, "data: 1\n\ndata: 22\n\n");
        let wanted = [Event { at: ms(1), data: "1".into() }, Event { at: ms(3), data: "22".into() }];
        assert_eq!(response.events, wanted);
        Ok(())
    }

    #[test]
    fn an_answer_that_was_cut_off_is_an_error() {
        for text in [
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(Response::read(text.as_bytes(), &[]).is_err(), "{text:?}");
        }
    }
}
