//! Tokenizer, chat template and end-of-text tokens of a Hugging Face folder.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use super::{
    Text,
    chat_template::{ChatTemplate, TemplateTokens},
    guarded,
};
use crate::{
    LoadError,
    files::{self, Files},
};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// Reads them. `config_eos` is `eos_token_id` of `config.json`.
pub(crate) fn from_folder(files: &Files, config_eos: Option<&Value>) -> Result<Text, LoadError> {
    let hint = if files.contains("tokenizer.model") {
        "the folder has only `tokenizer.model`; convert it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
    } else {
        "the folder needs the tokenizer beside the weights"
    };
    let json = files.open(TOKENIZER, hint)?;
    files::check_text_size(TOKENIZER, json.len())?;
    let tokenizer = guarded(|| Tokenizer::from_bytes(&*json));
    let mut tokenizer = tokenizer.map_err(|e| LoadError::corrupt(TOKENIZER, e.to_string()))?;
    check_growth(&tokenizer)?;
    // Some files ask for truncation or padding, which would cut prompts silently.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| LoadError::corrupt(TOKENIZER, e.to_string()))?;

    let config = files.json(TOKENIZER_CONFIG)?.unwrap_or_default();
    let special = files.json("special_tokens_map.json")?.unwrap_or_default();
    let token = |key: &str| token_text(&config[key]).or_else(|| token_text(&special[key]));
    let tokens = TemplateTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        unk: token("unk_token"),
        pad: token("pad_token"),
    };
    let mut text = Text::new(tokenizer);
    let generation = files.json(GENERATION_CONFIG)?.unwrap_or_default();
    text.end_of_text.extend(ids(&generation["eos_token_id"], GENERATION_CONFIG)?);
    text.end_of_text.extend(ids(config_eos.unwrap_or(&Value::Null), "config.json")?);
    text.end_of_text.extend(tokens.eos.as_deref().and_then(|eos| text.tokenizer.token_to_id(eos)));
    text.unknown = tokens
        .unk
        .as_deref()
        .or_else(|| own_unknown(&text.tokenizer))
        .and_then(|unknown| text.tokenizer.token_to_id(unknown));
    text.template = template(files, &config, tokens)?;
    Ok(text)
}

/// Where no file beside the tokenizer names it.
fn own_unknown(tokenizer: &Tokenizer) -> Option<&str> {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => Some(&model.unk_token),
        ModelWrapper::WordLevel(model) => Some(&model.unk_token),
        ModelWrapper::BPE(model) => model.unk_token.as_deref(),
        ModelWrapper::Unigram(_) => None,
    }
}

/// How many times as long a text may become before it is split: a space that becomes three bytes is what real files do.
const MAX_GROWTH: usize = 64;

/// A rule that puts a kilobyte in the place of each letter would make gigabytes of a request, after its size was checked.
fn check_growth(tokenizer: &Tokenizer) -> Result<(), LoadError> {
    let rules = |value: serde_json::Result<Value>, what: &str| {
        let value = value.map_err(|e| LoadError::corrupt(TOKENIZER, e.to_string()))?;
        let growth = growth(&value);
        if growth > MAX_GROWTH {
            let message =
                format!("its {what} could make a text {growth} times as long, more than {MAX_GROWTH}");
            return Err(LoadError::corrupt(TOKENIZER, message));
        }
        Ok(())
    };
    rules(serde_json::to_value(tokenizer.get_normalizer()), "normalizer")?;
    rules(serde_json::to_value(tokenizer.get_decoder()), "decoder")
}

/// The product over all rules of what one byte may become, or be led by.
fn growth(rules: &Value) -> usize {
    match rules {
        Value::Object(fields) => {
            let own = match fields.get("type").and_then(Value::as_str) {
                Some("Replace") => text_bytes(&fields["content"]),
                Some("Prepend") => text_bytes(&fields["prepend"]),
                _ => 1,
            };
            fields.values().map(growth).fold(own, usize::saturating_mul)
        }
        Value::Array(all) => all.iter().map(growth).fold(1, usize::saturating_mul),
        _ => 1,
    }
}

fn text_bytes(text: &Value) -> usize {
    text.as_str().map_or(1, str::len).max(1)
}

fn template(
    files: &Files,
    config: &Value,
    tokens: TemplateTokens,
) -> Result<Option<ChatTemplate>, LoadError> {
    const FILE: &str = "chat_template.jinja";
    let compile = |file: &str, default: &str, tool_use: Option<&str>| {
        ChatTemplate::new(default, tool_use, tokens.clone())
            .map(Some)
            .map_err(|e| LoadError::corrupt(file, e))
    };
    if let Some(source) = files.text(FILE)? {
        return compile(FILE, &source, None);
    }
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(source) => compile(TOKENIZER_CONFIG, source, None),
        Value::Array(named) => {
            let find = |name: &str| {
                let entry = named.iter().find(|entry| entry["name"] == name);
                entry.and_then(|entry| entry["template"].as_str())
            };
            match find("default") {
                Some(default) => compile(TOKENIZER_CONFIG, default, find("tool_use")),
                None => {
                    Err(LoadError::corrupt(TOKENIZER_CONFIG, "`chat_template` has no entry named `default`"))
                }
            }
        }
        _ => Err(LoadError::corrupt(TOKENIZER_CONFIG, "`chat_template` is neither a string nor a list")),
    }
}

/// A special token is written as a string or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// One id, a list of ids, or nothing.
fn ids(value: &Value, file: &str) -> Result<Vec<u32>, LoadError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| LoadError::corrupt(file, format!("`eos_token_id` is {value}, not a token id")))
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(all) => all.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_that_make_texts_grow_without_measure_are_counted() {
        let replace =
            |content: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": content});
        assert_eq!(growth(&Value::Null), 1);
        let spaces = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        assert!(growth(&spaces) <= MAX_GROWTH);
        assert!(growth(&replace(&"x".repeat(1000))) > MAX_GROWTH);
        let many: Vec<_> = (0..20).map(|_| replace("aa")).collect();
        assert!(growth(&json!({"type": "Sequence", "normalizers": many})) > MAX_GROWTH);
    }
}
