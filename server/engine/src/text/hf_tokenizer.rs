//! Tokenizer, chat template and end-of-text tokens of a Hugging Face folder.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::{
    Text,
    chat_template::{ChatTemplate, TemplateTokens},
    guarded,
};
use crate::{LoadError, files::Files};

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
    let tokenizer = guarded(|| Tokenizer::from_bytes(&*json));
    let mut tokenizer = tokenizer.map_err(|e| LoadError::corrupt(TOKENIZER, e.to_string()))?;
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
    text.template = template(files, &config, tokens)?;
    Ok(text)
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
