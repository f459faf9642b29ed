//! Server-sent events: the frames we write, and an incremental reader for what others write. No I/O.

/// What ends an OpenAI stream that ran to its end.
pub const DONE: &str = "[DONE]";
/// A comment, which readers skip; it keeps idle connections open and shows that the client has gone.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";

/// One frame with `data` only, as OpenAI writes them. Line breaks inside `data` become further `data:` lines.
pub fn frame(data: &str) -> String {
    let mut text = String::with_capacity(data.len() + 8);
    for line in data.split('\n') {
        text.push_str("data: ");
        text.push_str(line.strip_suffix('\r').unwrap_or(line));
        text.push('\n');
    }
    text.push('\n');
    text
}

/// One event as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Value of the `event:` field, empty if there was none.
    pub event: String,
    pub data: String,
}

/// Reads events from bytes that arrive in any pieces.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
}

/// A line or an event grew past [`Reader::MAX_EVENT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {} bytes", Reader::MAX_EVENT_BYTES)]
pub struct EventTooLong;

impl Reader {
    /// A peer cannot make us hold more than this.
    pub const MAX_EVENT_BYTES: usize = 4 << 20;

    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes; returns the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, EventTooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.event.data.len() > Self::MAX_EVENT_BYTES {
                return Err(EventTooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "event" => value.clone_into(&mut self.event.event),
            // Comments, `id` and `retry` mean nothing to us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, piece: usize) -> Vec<Event> {
        let mut reader = Reader::new();
        let mut events = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            events.extend(reader.push(bytes).expect("short events"));
        }
        events
    }

    #[test]
    fn what_we_write_is_read_back_whatever_the_pieces() {
        let texts = ["{\"a\":\"é\"}", "two\nlines", DONE];
        let wire: String = texts.iter().map(|text| frame(text) + KEEP_ALIVE).collect();
        for piece in 1..=wire.len() {
            let data: Vec<String> = read(&wire, piece).into_iter().map(|event| event.data).collect();
            assert_eq!(data, texts, "in pieces of {piece}");
        }
    }

    #[test]
    fn all_three_line_ends_and_named_events() {
        let events = read("event: error\r\ndata:x\r\n\r\ndata: y\rdata: z\r\r: c\n\n", 3);
        assert_eq!(
            events,
            [
                Event { event: "error".into(), data: "x".into() },
                Event { event: String::new(), data: "y\nz".into() },
            ]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = Reader::new();
        let bytes = vec![b'a'; Reader::MAX_EVENT_BYTES + 1];
        assert_eq!(reader.push(&bytes), Err(EventTooLong));
    }
}
