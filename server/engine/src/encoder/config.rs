//! `config.json` of an encoder: which graph, its sizes, and what stands on top.

use serde::Deserialize;
use serde_json::Value;

use crate::{LoadError, kernels::Activation};

pub(crate) const CONFIG: &str = "config.json";

/// Which graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// MiniLM too.
    Bert,
    /// Positions begin behind the padding token's id, no token types. RoBERTa has the same graph.
    XlmRoberta,
    /// Rotated positions, norms in front, gated feed-forward, windows in most layers.
    ModernBert,
}

/// What is computed from the last hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// One vector per text.
    Embed,
    /// One number per text or pair.
    Score,
    /// A label per token; of how many.
    Tokens(usize),
}

/// Everything but the weights.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The first of `architectures`.
    pub(crate) class: String,
    pub(crate) family: Family,
    pub(crate) head: Head,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) eps: f32,
    /// Rows of the table of positions, those before `first_position` included.
    pub(crate) positions: usize,
    pub(crate) first_position: usize,
    pub(crate) token_types: usize,
    pub(crate) activation: Activation,
    /// Per layer: the base of the rotation and the window (ModernBert only).
    pub(crate) rotations: Vec<(f32, Option<usize>)>,
    /// The classifier reads the mean of all tokens instead of the first (ModernBert's `classifier_pooling`).
    pub(crate) classifies_mean: bool,
    /// Names of the labels by their number.
    pub(crate) labels: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    max_position_embeddings: u32,
    #[serde(default)]
    type_vocab_size: Option<u32>,
    #[serde(default)]
    layer_norm_eps: Option<f64>,
    #[serde(default)]
    norm_eps: Option<f64>,
    #[serde(default)]
    pad_token_id: Option<u32>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    hidden_activation: Option<String>,
    #[serde(default)]
    local_attention: Option<u32>,
    #[serde(default)]
    global_attn_every_n_layers: Option<u32>,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    rope_parameters: Option<Value>,
    #[serde(default)]
    global_rope_theta: Option<f64>,
    #[serde(default)]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    classifier_pooling: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    id2label: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    num_labels: Option<u32>,
}

/// Family and head by the class in `architectures`; `None` = no encoder.
pub(crate) fn kind(config: &Value) -> Option<(Family, HeadKind)> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str)?;
    let families = [
        ("Bert", Family::Bert),
        ("XLMRoberta", Family::XlmRoberta),
        ("Roberta", Family::XlmRoberta),
        ("ModernBert", Family::ModernBert),
    ];
    families.iter().find_map(|(prefix, family)| {
        let head = match class.strip_prefix(prefix)? {
            // A language model's folder serves as an encoder, as sentence-transformers has it.
            "Model" | "ForMaskedLM" | "ForPreTraining" => HeadKind::Embed,
            "ForSequenceClassification" => HeadKind::Score,
            "ForTokenClassification" => HeadKind::Tokens,
            _ => return None,
        };
        Some((*family, head))
    })
}

/// What stands on top, before the number of labels is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadKind {
    Embed,
    Score,
    Tokens,
}

/// Checks the config and turns it into a shape.
pub(crate) fn shape(json: Value) -> Result<Shape, LoadError> {
    let refuse = |what: String, hint: &str| Err(LoadError::unsupported(CONFIG, what, hint));
    let corrupt = |what: String| Err(LoadError::corrupt(CONFIG, what));
    let class = json.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("").to_owned();
    let Some((family, head)) = kind(&json) else {
        return refuse(format!("the architecture `{class}`"), "use the engine `Custom`");
    };
    let config: Config =
        serde_json::from_value(json).map_err(|e| LoadError::corrupt(CONFIG, e.to_string()))?;
    let bounds = [
        ("vocab_size", config.vocab_size, 1 << 24),
        ("hidden_size", config.hidden_size, 1 << 16),
        ("intermediate_size", config.intermediate_size, 1 << 18),
        ("num_hidden_layers", config.num_hidden_layers, 1 << 10),
        ("num_attention_heads", config.num_attention_heads, 1 << 12),
        ("max_position_embeddings", config.max_position_embeddings, 1 << 24),
    ];
    for (field, value, limit) in bounds {
        if value == 0 || value > limit {
            return corrupt(format!("`{field}` is {value}, outside 1..={limit}"));
        }
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        let what = format!("`hidden_size` {} is not a multiple of the heads", config.hidden_size);
        return corrupt(what);
    }
    let head_dim = config.hidden_size / config.num_attention_heads;
    if !head_dim.is_multiple_of(2) || head_dim > 512 {
        return corrupt(format!("heads of {head_dim} dimensions, which must be even and at most 512"));
    }
    if config.is_decoder {
        return refuse("`is_decoder`".to_owned(), "serve an encoder");
    }
    if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
        return refuse("relative positions".to_owned(), "use the engine `Custom`");
    }
    if family == Family::ModernBert && (config.attention_bias || config.mlp_bias || config.norm_bias) {
        return refuse("ModernBERT with biases".to_owned(), "use the engine `Custom`");
    }
    let modern = family == Family::ModernBert;
    let named = if modern { &config.hidden_activation } else { &config.hidden_act };
    let activation = match named.as_deref().unwrap_or("gelu") {
        "gelu" => Activation::Gelu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        other => return refuse(format!("the activation `{other}`"), "use the engine `Custom`"),
    };
    let eps = if modern { config.norm_eps.unwrap_or(1e-5) } else { config.layer_norm_eps.unwrap_or(1e-12) };
    if !(0.0..1.0).contains(&eps) {
        return corrupt(format!("the epsilon of the norms is {eps}, outside 0..1"));
    }
    let (labels, n_labels) = labels(config.id2label.as_ref(), config.num_labels)?;
    if n_labels == 0 || n_labels > 1 << 16 {
        return corrupt(format!("{n_labels} labels"));
    }
    let head = match head {
        HeadKind::Embed => Head::Embed,
        HeadKind::Tokens => Head::Tokens(n_labels),
        HeadKind::Score if n_labels == 1 => Head::Score,
        HeadKind::Score => {
            return refuse(format!("a classifier of texts with {n_labels} labels"), "rerank needs one label");
        }
    };
    let first_position = match family {
        Family::XlmRoberta => config.pad_token_id.unwrap_or(1) as usize + 1,
        _ => 0,
    };
    if first_position >= config.max_position_embeddings as usize {
        return corrupt(format!("`pad_token_id` leaves no positions: {first_position}"));
    }
    Ok(Shape {
        class,
        rotations: if modern { rotations(&config)? } else { Vec::new() },
        family,
        head,
        vocabulary: config.vocab_size as usize,
        hidden: config.hidden_size as usize,
        feed_forward: config.intermediate_size as usize,
        layers: config.num_hidden_layers as usize,
        heads: config.num_attention_heads as usize,
        eps: eps as f32,
        positions: config.max_position_embeddings as usize,
        first_position,
        token_types: config.type_vocab_size.unwrap_or(if modern { 0 } else { 2 }) as usize,
        activation,
        classifies_mean: config.classifier_pooling.as_deref() == Some("mean"),
        labels,
    })
}

/// Names of the labels of any encoder's config, and how many labels it has.
#[cfg(feature = "onnx")]
pub(crate) fn label_names(config: &Value) -> Result<(Vec<String>, usize), LoadError> {
    #[derive(Deserialize)]
    struct Labels {
        #[serde(default)]
        id2label: Option<std::collections::BTreeMap<String, String>>,
        #[serde(default)]
        num_labels: Option<u32>,
    }
    let Labels { id2label, num_labels } =
        Labels::deserialize(config).map_err(|e| LoadError::corrupt(CONFIG, e.to_string()))?;
    labels(id2label.as_ref(), num_labels)
}

fn labels(
    id2label: Option<&std::collections::BTreeMap<String, String>>,
    num_labels: Option<u32>,
) -> Result<(Vec<String>, usize), LoadError> {
    let Some(named) = id2label else {
        let n = num_labels.unwrap_or(2) as usize;
        return Ok(((0..n.min(1 << 16)).map(|i| format!("LABEL_{i}")).collect(), n));
    };
    let labels: Option<Vec<_>> = (0..named.len()).map(|i| named.get(&i.to_string()).cloned()).collect();
    let labels = labels.ok_or_else(|| {
        LoadError::corrupt(CONFIG, "`id2label` does not number its labels from 0 without holes")
    })?;
    let n = labels.len();
    Ok((labels, n))
}

fn rotations(config: &Config) -> Result<Vec<(f32, Option<usize>)>, LoadError> {
    let theta = |kind: &str, old: Option<f64>, default: f64| {
        let parameters = config.rope_parameters.as_ref().and_then(|value| value.get(kind));
        let new = parameters.and_then(|value| value.get("rope_theta")).and_then(Value::as_f64);
        let theta = new.or(old).unwrap_or(default) as f32;
        match theta.is_finite() && theta > 0.0 {
            true => Ok(theta),
            false => Err(LoadError::corrupt(CONFIG, format!("`rope_theta` is {theta}"))),
        }
    };
    let global = theta("full_attention", config.global_rope_theta, 160_000.0)?;
    let local = theta("sliding_attention", config.local_rope_theta, 10_000.0)?;
    let window = config.local_attention.unwrap_or(128) as usize;
    let every = config.global_attn_every_n_layers.unwrap_or(3).max(1) as usize;
    let n = config.num_hidden_layers as usize;
    let is_local = |i: usize| match &config.layer_types {
        Some(types) => types[i] == "sliding_attention",
        None => !i.is_multiple_of(every),
    };
    if let Some(types) = config.layer_types.as_ref().filter(|types| types.len() != n) {
        let what = format!("{} layer types are given for {n} layers", types.len());
        return Err(LoadError::corrupt(CONFIG, what));
    }
    Ok((0..n).map(|i| if is_local(i) { (local, Some(window)) } else { (global, None) }).collect())
}
