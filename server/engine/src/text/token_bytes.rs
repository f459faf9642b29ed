//! The bytes of a single token, which need not be text: a character may take several tokens.

use serde_json::Value;
use tokenizers::Tokenizer;

/// Marks special tokens in [`vocabulary_bytes`]; no byte of UTF-8.
const SPECIAL: u8 = 0xff;

/// How the ordinary tokens of a vocabulary stand for bytes.
enum Style {
    /// In the alphabet of GPT-2.
    ByteLevel,
    /// As text with this in the place of spaces, and `<0xE2>` for bytes that are none.
    SentencePiece { space: String },
}

/// What each of the ids `0..n` adds to an output, in bytes, for those who follow outputs token by token: unlike a token
/// decoded on its own, with the space it begins with. Special tokens, which add nothing, are their names behind
/// [`SPECIAL`]; ids without a token, or with one that no text has, are empty.
pub(crate) fn vocabulary_bytes(tokenizer: &Tokenizer, n: u32) -> Result<Vec<Vec<u8>>, String> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|err| err.to_string())?;
    let style = style(&decoder).ok_or("its tokenizer is neither byte-level BPE nor SentencePiece")?;
    let added = tokenizer.get_added_tokens_decoder();
    let bytes = |id: u32| {
        if let Some(token) = added.get(&id) {
            let mut bytes = if token.special { vec![SPECIAL] } else { Vec::new() };
            bytes.extend_from_slice(token.content.as_bytes());
            return bytes;
        }
        let written = tokenizer.id_to_token(id).unwrap_or_default();
        let bytes = match &style {
            Style::ByteLevel => written.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_default(),
            Style::SentencePiece { space } => match hex_byte(&written) {
                Some(byte) => vec![byte],
                None => written.replace(space.as_str(), " ").into_bytes(),
            },
        };
        // It would be taken for a special token.
        if bytes.contains(&SPECIAL) { Vec::new() } else { bytes }
    };
    Ok((0..n).map(bytes).collect())
}

/// By the decoders, one or a sequence of them.
fn style(decoder: &Value) -> Option<Style> {
    match decoder["type"].as_str()? {
        "ByteLevel" => Some(Style::ByteLevel),
        "Replace" if decoder["content"] == " " => decoder["pattern"]["String"]
            .as_str()
            .map(|space| Style::SentencePiece { space: space.to_owned() }),
        "Metaspace" => {
            let space = decoder["replacement"].as_str().unwrap_or("▁");
            Some(Style::SentencePiece { space: space.to_owned() })
        }
        "Sequence" => decoder["decoders"].as_array()?.iter().find_map(style),
        _ => None,
    }
}

fn hex_byte(written: &str) -> Option<u8> {
    let hex = written.strip_prefix("<0x")?.strip_suffix('>').filter(|hex| hex.len() == 2)?;
    u8::from_str_radix(hex, 16).ok()
}

/// `text` is what the token decodes to on its own, `written` how the vocabulary writes it. Where the text had to
/// stand in for a part of a character, the bytes are read from the vocabulary: SentencePiece writes such a token as
/// `<0xE2>`, byte-level BPE in the alphabet of GPT-2.
pub(crate) fn token_bytes(text: &str, written: Option<&str>) -> Vec<u8> {
    let as_text = || text.as_bytes().to_vec();
    let Some(written) = written.filter(|_| text.contains(char::REPLACEMENT_CHARACTER)) else {
        return as_text();
    };
    if let Some(byte) = hex_byte(written) {
        return vec![byte];
    }
    written.chars().map(byte).collect::<Option<_>>().unwrap_or_else(as_text)
}

/// GPT-2's alphabet: printable bytes are themselves, the 68 others follow from U+0100 in their order.
fn byte(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{byte_token, byte_tokenizer};

    #[test]
    fn every_byte_of_a_byte_level_vocabulary_is_itself() {
        let tokenizer = byte_tokenizer();
        for wanted in 0..=255u8 {
            let id = byte_token(wanted);
            let text = tokenizer.decode(&[id], false).unwrap();
            assert_eq!(token_bytes(&text, tokenizer.id_to_token(id).as_deref()), [wanted], "of {wanted:#x}");
        }
    }

    #[test]
    fn a_vocabulary_is_its_bytes_with_special_tokens_marked() {
        let words = vocabulary_bytes(&byte_tokenizer(), 262).unwrap();
        assert_eq!(words.len(), 262);
        for byte in 0..=254u8 {
            assert_eq!(words[usize::from(byte)], [byte]);
        }
        assert_eq!(words[255], b"", "looks like the mark");
        assert_eq!(words[257], b"\xff<|eos|>");
        assert_eq!(words[261], b"", "beyond the tokenizer");
        let pieces = serde_json::json!({
            "model": {"type": "BPE", "vocab": {"▁a": 0, "<0xE2>": 1, "b▁c": 2}, "merges": []},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}
            ]},
            "added_tokens": [{"id": 3, "content": "<call>", "special": false, "normalized": false,
                              "single_word": false, "lstrip": false, "rstrip": false}]
        });
        let tokenizer: Tokenizer = serde_json::from_value(pieces).unwrap();
        let words = vocabulary_bytes(&tokenizer, 4).unwrap();
        assert_eq!(words, [b" a".to_vec(), vec![0xe2], b"b c".to_vec(), b"<call>".to_vec()]);
    }

    #[test]
    fn fallback_bytes_are_read_and_whole_text_is_kept() {
        assert_eq!(token_bytes("\u{fffd}", Some("<0xE2>")), [0xe2]);
        assert_eq!(token_bytes("é", Some("Ã©")), "é".as_bytes());
        assert_eq!(token_bytes("\u{fffd}", Some("日")), "\u{fffd}".as_bytes());
        assert_eq!(token_bytes("", None), b"");
    }
}
