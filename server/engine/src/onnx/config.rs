//! `config.json` beside an ONNX graph. The graph knows how to compute; the config says what for, and the limits of texts.

use serde_json::Value;

use crate::{
    LoadError,
    encoder::{CONFIG, Head, label_names},
};

/// What the engine must know of a model whose graph it does not know.
#[derive(Debug)]
pub(crate) struct Described {
    /// The first of `architectures`.
    pub(crate) class: String,
    pub(crate) head: Head,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) heads: usize,
    /// The longest text in tokens.
    pub(crate) positions: usize,
    pub(crate) labels: Vec<String>,
}

/// Whether a config is an encoder's, of any family.
pub(crate) fn is_encoder(config: &Value) -> bool {
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    let ends =
        ["Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification"];
    ends.iter().any(|end| class.ends_with(end))
}

/// Checks the config and takes what is needed from it.
pub(super) fn describe(config: &Value) -> Result<Described, LoadError> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !is_encoder(config) {
        let hint = "encoders are: those that embed, classify a text with one label, or classify tokens";
        return Err(LoadError::unsupported(CONFIG, format!("the architecture `{class}` in ONNX"), hint));
    }
    let (labels, n_labels) = label_names(config)?;
    let head = match n_labels {
        0 => return Err(LoadError::corrupt(CONFIG, "0 labels")),
        n if class.ends_with("ForTokenClassification") => Head::Tokens(n),
        _ if !class.ends_with("ForSequenceClassification") => Head::Embed,
        1 => Head::Score,
        n => {
            let what = format!("a classifier of texts with {n} labels");
            return Err(LoadError::unsupported(CONFIG, what, "rerank needs one label"));
        }
    };
    let hidden = number(config, &["hidden_size", "dim", "d_model"], 1 << 16, None)?;
    let positions = number(config, &["max_position_embeddings", "n_positions"], 1 << 20, None)?;
    let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(1) as usize;
    let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    // Their tables of positions begin behind the padding token's id.
    let shifted = ["roberta", "camembert", "mpnet", "longformer"].iter().any(|name| family.contains(name));
    let first = if shifted { padding.saturating_add(1) } else { 0 };
    if first >= positions {
        return Err(LoadError::corrupt(CONFIG, format!("`pad_token_id` leaves no positions: {first}")));
    }
    Ok(Described {
        class,
        head,
        vocabulary: number(config, &["vocab_size"], 1 << 24, None)?,
        hidden,
        feed_forward: number(config, &["intermediate_size", "hidden_dim"], 1 << 18, Some(4 * hidden))?,
        heads: number(config, &["num_attention_heads", "n_heads"], 1 << 12, Some(12))?,
        positions: positions - first,
        labels,
    })
}

/// A number by the names that families have for it; an error names the first of them.
fn number(config: &Value, names: &[&str], limit: u64, default: Option<usize>) -> Result<usize, LoadError> {
    let found = names.iter().find_map(|name| Some((*name, config.get(*name)?)));
    match (found, default) {
        (Some((name, value)), _) => match value.as_u64().filter(|n| (1..=limit).contains(n)) {
            Some(n) => Ok(n as usize),
            None => Err(LoadError::corrupt(CONFIG, format!("`{name}` is {value}, outside 1..={limit}"))),
        },
        (None, Some(default)) => Ok(default),
        (None, None) => Err(LoadError::corrupt(CONFIG, format!("`{}` is missing", names[0]))),
    }
}
