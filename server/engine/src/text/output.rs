//! Text that grows token by token: whole characters only, and nothing that might turn out to belong to a stop
//! string.

use super::Text;

/// Tokens after which an incomplete character is given up as broken: UTF-8 needs at most four bytes.
const MAX_UNDECIDED: usize = 6;
/// Prompt tokens that precede the first output token when it is decoded, since some tokenizers drop a space at
/// the start of a text.
const PROMPT_TAIL: usize = 5;

/// The text of one sequence so far.
pub(crate) struct Output {
    /// A tail of the prompt, then the output.
    tokens: Vec<u32>,
    /// Tokens before this one are decoded and emitted; those from `prefix` on give them their context.
    emitted: usize,
    prefix: usize,
    /// Certain text that may be the beginning of a stop string.
    held: String,
    stop: Vec<String>,
}

/// What a token added.
#[derive(Debug, PartialEq)]
pub(crate) enum Grown {
    /// Text to send, perhaps empty.
    Text(String),
    /// Text before the stop string that was met.
    Stopped { text: String, stop: String },
}

impl Output {
    /// Ends the output before the next occurrence of one of these.
    pub(crate) fn watch(&mut self, stop: Vec<String>) {
        self.stop = stop;
    }

    pub(crate) fn new(prompt: &[u32], stop: Vec<String>) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(PROMPT_TAIL)..].to_vec();
        Self { emitted: tokens.len(), prefix: 0, tokens, held: String::new(), stop }
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, id: u32, text: &Text) -> Grown {
        self.tokens.push(id);
        let undecided = self.tokens.len() - self.emitted;
        let piece = self.decode_new(text);
        // Tokens without text of their own (special ones) are passed over in the end too: decoding all of them again
        // with each further token would cost the square of their number.
        let undecided_yet = piece.is_empty() || piece.ends_with('\u{FFFD}');
        if undecided_yet && undecided < MAX_UNDECIDED {
            return Grown::Text(String::new());
        }
        self.prefix = self.emitted;
        self.emitted = self.tokens.len();
        self.held.push_str(&piece);
        self.release()
    }

    /// What is left when generation ends for another reason than a stop string; a stop string may still be in it.
    pub(crate) fn finish(&mut self, text: &Text) -> String {
        let piece = self.decode_new(text);
        self.emitted = self.tokens.len();
        // A character whose bytes never came is dropped, not shown as a replacement.
        self.held.push_str(piece.trim_end_matches('\u{FFFD}'));
        match self.release() {
            Grown::Stopped { text, .. } => text,
            Grown::Text(certain) => certain + &std::mem::take(&mut self.held),
        }
    }

    /// Text of the tokens that were not emitted yet.
    fn decode_new(&self, text: &Text) -> String {
        let decode = |tokens: &[u32]| text.decode(tokens).unwrap_or_default();
        let before = decode(&self.tokens[self.prefix..self.emitted]);
        let with = decode(&self.tokens[self.prefix..]);
        // Without the common beginning; a decoder that rewrites earlier text is cut at the same length.
        let mut cut = before.len().min(with.len());
        while !with.is_char_boundary(cut) {
            cut -= 1;
        }
        with[cut..].to_owned()
    }

    fn release(&mut self) -> Grown {
        let met = self
            .stop
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| (*at, stop.len()));
        if let Some((at, stop)) = met {
            let stop = stop.clone();
            self.held.truncate(at);
            return Grown::Stopped { text: std::mem::take(&mut self.held), stop };
        }
        let keep = self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Grown::Text(std::mem::replace(&mut self.held, rest))
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1))
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn text() -> Text {
        Text::new(testing::byte_tokenizer())
    }

    /// Feeds `input` byte by byte: in this tokenizer each byte is a token.
    fn feed(input: &[u8], stop: &[&str]) -> (Vec<String>, Option<String>, String) {
        let text = text();
        let mut output = Output::new(&[], stop.iter().map(|s| (*s).to_owned()).collect());
        let mut pieces = Vec::new();
        for byte in input {
            match output.push(testing::byte_token(*byte), &text) {
                Grown::Text(piece) => pieces.push(piece),
                Grown::Stopped { text, stop } => return (pieces, Some(stop), text),
            }
        }
        let rest = output.finish(&text);
        (pieces, None, rest)
    }

    #[test]
    fn characters_are_never_split() {
        let (pieces, _, rest) = feed("aé€😀z".as_bytes(), &[]);
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "😀", "z"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn an_unfinished_character_is_dropped_at_the_end() {
        let (pieces, _, rest) = feed(&"a😀".as_bytes()[..3], &[]);
        assert_eq!((pieces.concat().as_str(), rest.as_str()), ("a", ""));
    }

    #[test]
    fn bytes_that_are_no_text_do_not_hold_back_the_rest() {
        let (pieces, _, rest) = feed(b"a\xff\xfe\xfd\xff\xff\xff\xff\xffend", &[]);
        let all = pieces.concat() + &rest;
        assert!(all.starts_with("a\u{FFFD}") && all.ends_with("end"), "{all:?}");
    }

    #[test]
    fn a_stop_string_across_tokens_is_held_back_and_cut() {
        let (pieces, stop, last) = feed(b"one ST two STOP three", &["STOP", "never"]);
        assert_eq!(pieces.concat() + &last, "one ST two ");
        assert_eq!(stop.as_deref(), Some("STOP"));
        for sent in &pieces {
            assert!(!sent.contains("STO"));
        }
    }

    #[test]
    fn text_that_only_began_like_a_stop_string_comes_at_the_end() {
        let (pieces, stop, rest) = feed(b"end ST", &["STOP"]);
        assert_eq!((pieces.concat().as_str(), rest.as_str(), stop), ("end ", "ST", None));
    }

    #[test]
    fn a_stop_string_before_an_unfinished_character_is_cut_at_the_end() {
        let text = text();
        let mut output = Output::new(&[], vec!["STOP".to_owned()]);
        for byte in "end STO".bytes() {
            output.push(testing::byte_token(byte), &text);
        }
        // As one token of both would be: nothing is certain of it before the character's second byte.
        output.tokens.push(testing::byte_token(b'P'));
        output.tokens.push(testing::byte_token("é".as_bytes()[0]));
        assert_eq!(output.finish(&text), "");
    }

    #[test]
    fn tokens_without_text_are_not_decoded_again_and_again() {
        let text = text();
        let mut output = Output::new(&[], Vec::new());
        let mut longest = 0;
        for _ in 0..1000 {
            assert_eq!(output.push(testing::END_OF_TEXT, &text), Grown::Text(String::new()));
            longest = longest.max(output.tokens.len() - output.prefix);
        }
        assert!(longest <= 2 * MAX_UNDECIDED, "{longest} tokens were decoded for one");
        assert_eq!(output.push(testing::byte_token(b'a'), &text), Grown::Text("a".to_owned()));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        let (pieces, stop, last) = feed(b"abcde", &["de", "cd", "bcd"]);
        assert_eq!(stop.as_deref(), Some("bcd"));
        assert_eq!(pieces.concat() + &last, "a");
    }
}
