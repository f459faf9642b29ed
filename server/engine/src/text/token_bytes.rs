//! The bytes of a single token, which need not be text: a character may take several tokens.

/// `text` is what the token decodes to on its own, `written` how the vocabulary writes it. Where the text had to
/// stand in for a part of a character, the bytes are read from the vocabulary: SentencePiece writes such a token as
/// `<0xE2>`, byte-level BPE in the alphabet of GPT-2.
pub(crate) fn token_bytes(text: &str, written: Option<&str>) -> Vec<u8> {
    let as_text = || text.as_bytes().to_vec();
    let Some(written) = written.filter(|_| text.contains(char::REPLACEMENT_CHARACTER)) else {
        return as_text();
    };
    let hex =
        written.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
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
    fn fallback_bytes_are_read_and_whole_text_is_kept() {
        assert_eq!(token_bytes("\u{fffd}", Some("<0xE2>")), [0xe2]);
        assert_eq!(token_bytes("é", Some("Ã©")), "é".as_bytes());
        assert_eq!(token_bytes("\u{fffd}", Some("日")), "\u{fffd}".as_bytes());
        assert_eq!(token_bytes("", None), b"");
    }
}
