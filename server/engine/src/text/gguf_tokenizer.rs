//! Tokenizer and chat template from GGUF metadata.
//!
//! Each supported kind is expressed as the `tokenizer.json` that the model's authors ship, so that the same library
//! does the work; kinds that this module does not know are refused by name, since a nearly right tokenizer gives
//! nearly right answers that nobody can explain.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{
    Text,
    chat_template::{ChatTemplate, TemplateTokens},
    guarded,
};
use crate::{LoadError, weights::gguf::Header};

/// The splitting rule of Llama 3.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The splitting rule of Qwen 2: single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Texts of control tokens that end an answer, for files that name only one of them; as llama.cpp does.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "</s>",
    "<end_of_turn>",
];

/// Bytes of one token: real ones have up to 256, 128 spaces or letters in the byte-level alphabet.
const MAX_TOKEN_BYTES: usize = 512;
/// Bytes of all merges that a SentencePiece vocabulary stands for; those of 256,000 pieces have about 20 MB.
const MAX_MERGES_BYTES: usize = 128 << 20;

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

/// Reads them; `file` is for messages.
pub(crate) fn from_gguf(header: &Header, file: &str) -> Result<Text, LoadError> {
    let corrupt = |e: String| LoadError::corrupt(file, e);
    let missing = |key: &str| LoadError::corrupt(file, format!("metadata `{key}` is missing"));
    let model = header.str("tokenizer.ggml.model").map_err(corrupt)?;
    let model = model.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let tokens = header.strings("tokenizer.ggml.tokens").map_err(corrupt)?;
    let tokens = tokens.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    if let Some(at) = tokens.iter().position(|token| token.len() > MAX_TOKEN_BYTES) {
        return Err(corrupt(format!(
            "token {at} has {} bytes, more than the {MAX_TOKEN_BYTES} that any real one has",
            tokens[at].len()
        )));
    }
    let vocabulary = Vocabulary { tokens, kinds: kinds(header, tokens.len()).map_err(corrupt)? };
    let pre = header.str("tokenizer.ggml.pre").map_err(corrupt)?;
    let (json, begins) = match model {
        "gpt2" => {
            let splitting = splitting(pre).map_err(|what| {
                LoadError::unsupported(
                    file,
                    what,
                    "this build knows `gpt-2`, `llama-bpe`, `qwen2` and `smollm`; use the safetensors version",
                )
            })?;
            let merges = header.strings("tokenizer.ggml.merges").map_err(corrupt)?;
            let merges = merges.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
            (byte_level(&vocabulary, merges, &splitting).map_err(corrupt)?, splitting.begins)
        }
        "llama" => {
            let scores = header.floats("tokenizer.ggml.scores").map_err(corrupt)?;
            let scores = scores.ok_or_else(|| missing("tokenizer.ggml.scores"))?;
            let prefix = header.bool("tokenizer.ggml.add_space_prefix").map_err(corrupt)?.unwrap_or(true);
            (sentence_piece(&vocabulary, scores, prefix).map_err(corrupt)?, true)
        }
        other => {
            return Err(LoadError::unsupported(
                file,
                format!("the tokenizer model `{other}`"),
                "this build knows `gpt2` and `llama`; use the safetensors version of the model",
            ));
        }
    };
    let tokenizer = guarded(|| serde_json::from_value::<Tokenizer>(json).map_err(Into::into));
    let mut text = Text::new(tokenizer.map_err(|e| corrupt(e.to_string()))?);

    let id = |name: &str| -> Result<Option<u32>, LoadError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match header.u32(&key).map_err(corrupt)? {
            Some(id) if id as usize >= tokens.len() => {
                Err(corrupt(format!("metadata `{key}` is {id}, the vocabulary has {} tokens", tokens.len())))
            }
            id => Ok(id),
        }
    };
    let (bos, eos) = (id("bos")?, id("eos")?);
    let flag =
        |key: &str, default: bool| header.bool(key).map_err(corrupt).map(|flag| flag.unwrap_or(default));
    text.begin = bos.filter(|_| begins);
    if !flag("tokenizer.ggml.add_bos_token", begins)? {
        text.begin = None;
    } else if header.metadata.contains_key("tokenizer.ggml.add_bos_token") {
        text.begin = bos;
    }
    text.end = if flag("tokenizer.ggml.add_eos_token", false)? { eos } else { None };
    text.end_of_text.extend([eos, id("eot")?, id("eom")?].into_iter().flatten());
    let ends = |(i, token): (usize, &String)| {
        (vocabulary.kinds[i] == Kind::Control && END_TEXTS.contains(&token.as_str())).then_some(i as u32)
    };
    text.end_of_text.extend(tokens.iter().enumerate().filter_map(ends));

    if let Some(source) = header.str("tokenizer.chat_template").map_err(corrupt)? {
        let token = |id: Option<u32>| id.map(|id| tokens[id as usize].clone());
        let special = TemplateTokens {
            bos: token(bos),
            eos: token(eos),
            unk: token(id("unknown")?),
            pad: token(id("padding")?),
        };
        let tool_use = header.str("tokenizer.chat_template.tool_use").map_err(corrupt)?;
        text.template = Some(ChatTemplate::new(source, tool_use, special).map_err(corrupt)?);
    }
    Ok(text)
}

fn kinds(header: &Header, n_tokens: usize) -> Result<Vec<Kind>, String> {
    let Some(all) = header.ints("tokenizer.ggml.token_type")? else {
        return Ok(vec![Kind::Normal; n_tokens]);
    };
    if all.len() != n_tokens {
        return Err(format!("`tokenizer.ggml.token_type` has {} entries for {n_tokens} tokens", all.len()));
    }
    Ok(all
        .iter()
        .map(|kind| match kind {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        })
        .collect())
}

/// How a byte-level BPE tokenizer cuts text into words.
struct Splitting {
    normalizer: Value,
    pre_tokenizer: Value,
    /// A word that is a token is taken whole.
    ignore_merges: bool,
    /// Texts begin with the begin-of-text token unless the metadata say otherwise.
    begins: bool,
}

fn splitting(pre: Option<&str>) -> Result<Splitting, String> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence =
        |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let by = |regex: &str| {
        let split = json!({
            "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false
        });
        sequence(split, byte_level(false))
    };
    let plain = Splitting {
        normalizer: Value::Null,
        pre_tokenizer: byte_level(true),
        ignore_merges: false,
        begins: false,
    };
    match pre {
        Some("gpt-2" | "gpt2") => Ok(plain),
        // All names under which llama.cpp's converter writes this one.
        Some("llama-bpe" | "llama3" | "llama-v3") => {
            Ok(Splitting { pre_tokenizer: by(LLAMA3), ignore_merges: true, begins: true, ..plain })
        }
        Some("qwen2") => {
            Ok(Splitting { normalizer: json!({"type": "NFC"}), pre_tokenizer: by(QWEN2), ..plain })
        }
        Some("smollm") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            Ok(Splitting { pre_tokenizer: sequence(digits, byte_level(true)), ..plain })
        }
        Some(other) => Err(format!("the pre-tokenizer `{other}`")),
        None => Err("a tokenizer `gpt2` without `tokenizer.ggml.pre`".to_owned()),
    }
}

fn byte_level(
    vocabulary: &Vocabulary<'_>,
    merges: &[String],
    splitting: &Splitting,
) -> Result<Value, String> {
    let merges = merges
        .iter()
        .map(|merge| merge.split_once(' ').ok_or_else(|| format!("the merge `{merge}` is not two tokens")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added()?,
        "normalizer": splitting.normalizer,
        "pre_tokenizer": splitting.pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "vocab": vocabulary.ids()?, "merges": merges, "ignore_merges": splitting.ignore_merges
        },
    }))
}

/// SentencePiece BPE: the pair that forms the piece of the highest score merges first, and characters that no
/// piece covers become bytes.
fn sentence_piece(vocabulary: &Vocabulary<'_>, scores: &[f32], prefix: bool) -> Result<Value, String> {
    let n_tokens = vocabulary.tokens.len();
    if scores.len() != n_tokens {
        return Err(format!("`tokenizer.ggml.scores` has {} entries for {n_tokens} tokens", scores.len()));
    }
    let pieces: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|&(i, _)| matches!(vocabulary.kinds[i], Kind::Normal | Kind::UserDefined | Kind::Unused))
        .map(|(i, token)| (token.as_str(), i))
        .collect();
    let (mut merges, mut n_bytes) = (Vec::new(), 0);
    for (piece, &i) in &pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (pieces.get(left), pieces.get(right)) {
                merges.push((scores[i], left_id, right_id, [left, right]));
                n_bytes += piece.len();
                if n_bytes > MAX_MERGES_BYTES {
                    return Err("its pieces are made of each other in more ways than those of any real one"
                        .to_owned());
                }
            }
        }
    }
    // Best score first; among equals the order of transformers' converter: longer left part, then longer right.
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0)
            .then_with(|| length(b.3[0]).cmp(&length(a.3[0])))
            .then_with(|| length(b.3[1]).cmp(&length(a.3[1])))
            .then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
    });
    let merges: Vec<_> = merges.into_iter().map(|(_, _, _, pair)| pair).collect();
    let unknown = vocabulary.kinds.iter().position(|kind| *kind == Kind::Unknown);
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", "▁")];
    let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added()?,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary.ids()?, "merges": merges, "byte_fallback": true, "fuse_unk": true,
            "unk_token": unknown.map(|i| &vocabulary.tokens[i])
        },
    }))
}

impl Vocabulary<'_> {
    fn ids(&self) -> Result<serde_json::Map<String, Value>, String> {
        let mut ids = serde_json::Map::new();
        for (i, token) in self.tokens.iter().enumerate() {
            if ids.insert(token.clone(), i.into()).is_some() {
                return Err(format!("the token `{token}` is in the vocabulary twice"));
            }
        }
        Ok(ids)
    }

    /// Tokens that are found in text as a whole: control ones, which decode to nothing, and user-defined ones.
    fn added(&self) -> Result<Vec<Value>, String> {
        let mut added = Vec::new();
        for (i, token) in self.tokens.iter().enumerate() {
            let special = match self.kinds[i] {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => continue,
            };
            if token.is_empty() {
                return Err(format!("the special token {i} is empty"));
            }
            added.push(json!({
                "id": i, "content": token, "special": special, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false
            }));
        }
        Ok(added)
    }
}
