//! Cuts a long text into parts of at most so many tokens, where the text itself has breaks.

use super::super::error::ApiError;

/// The fewest parts that a greedy walk finds. `count` gives the tokens of a text; a part that has more than `most` of
/// them is cut again, so that the result holds for any tokenizer.
pub(super) fn split(
    text: &str,
    most: usize,
    mut count: impl FnMut(&str) -> Result<usize, ApiError>,
) -> Result<Vec<&str>, ApiError> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    // Bytes that are tried first; grows and shrinks with what the text turns out to need.
    let mut guess = most.saturating_mul(4);
    while !rest.is_empty() {
        let mut part = cut(rest, guess);
        loop {
            let n_tokens = count(part)?;
            if n_tokens <= most || part.chars().count() == 1 {
                let roomy = part.len().saturating_mul(most) / n_tokens.max(1);
                guess = roomy.clamp(1, most.saturating_mul(16)).max(4);
                break;
            }
            let smaller = part.len().saturating_mul(most) / n_tokens;
            part = cut(part, (smaller * 9 / 10).min(part.len() - 1).max(1));
        }
        if !part.trim().is_empty() {
            parts.push(part.trim());
        }
        rest = rest[part.len()..].trim_start();
    }
    Ok(parts)
}

/// The longest beginning of at most `bytes` (at least one character) that ends at the best kind of break in its last
/// half: a paragraph, a line, a sentence, a word.
fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes {
        return text;
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 {
        return &text[..text.chars().next().map_or(0, char::len_utf8)];
    }
    let window = &text[..end];
    for mark in ["\n\n", "\n", ". ", "。", "? ", "! ", " "] {
        if let Some(at) = window.rfind(mark).map(|at| at + mark.len()).filter(|at| *at > end / 2) {
            return &text[..at];
        }
    }
    window
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<usize, ApiError> {
        Ok(text.split_whitespace().count())
    }

    #[test]
    fn parts_are_small_enough_and_nothing_is_lost() {
        let sentence = "The quick brown fox jumps over the lazy dog. ";
        let text = (0..40).map(|i| sentence.repeat(1 + i % 5) + "\n\n").collect::<String>();
        for most in [3, 10, 50, 10_000] {
            let parts = split(&text, most, words).unwrap();
            assert!(parts.iter().all(|part| words(part).unwrap() <= most));
            let all: Vec<&str> = parts.iter().flat_map(|part| part.split_whitespace()).collect();
            assert_eq!(all, text.split_whitespace().collect::<Vec<_>>());
            let fewest = words(&text).unwrap().div_ceil(most);
            assert!(parts.len() <= 4 * fewest, "{} parts for {fewest}", parts.len());
        }
    }

    #[test]
    fn text_without_breaks_is_cut_between_characters() {
        let text = "é€😀".repeat(100);
        let bytes = |text: &str| Ok(text.len());
        let parts = split(&text, 16, bytes).unwrap();
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| part.len() <= 16));
        // A character that alone is too much still moves on.
        assert_eq!(split("😀😀", 1, bytes).unwrap(), ["😀", "😀"]);
        assert_eq!(split(" \n ", 5, bytes).unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_break_between_sentences_is_better_than_one_between_words() {
        let parts = split("One two three. Four five six. Seven", 5, words).unwrap();
        assert_eq!(parts, ["One two three.", "Four five six. Seven"]);
    }
}
