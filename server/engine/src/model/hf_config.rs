//! `config.json` of a Hugging Face folder.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Biases, Shape,
    rope::{Rope, Scaling},
};
use crate::LoadError;

pub(crate) const CONFIG: &str = "config.json";

/// The fields that matter here, as written by transformers 4 and 5.
#[derive(Debug, Deserialize)]
pub(crate) struct HfConfig {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    model_type: String,
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    #[serde(default)]
    num_key_value_heads: Option<u32>,
    #[serde(default)]
    head_dim: Option<u32>,
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_context")]
    max_position_embeddings: u32,
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<Value>,
    /// Where transformers 5 puts both.
    #[serde(default)]
    rope_parameters: Option<Value>,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
    #[serde(default)]
    sliding_window: Option<u32>,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: Option<bool>,
    #[serde(default)]
    quantization_config: Option<Value>,
    /// One id or a list.
    #[serde(default)]
    pub(crate) eos_token_id: Option<Value>,
}

// The defaults of `LlamaConfig`.
fn default_eps() -> f64 {
    1e-6
}

fn default_context() -> u32 {
    2048
}

impl HfConfig {
    pub(crate) fn parse(json: Value) -> Result<Self, LoadError> {
        // Said first: another family's config may lack Llama's fields, and that is not the news.
        let family = json.get("model_type").and_then(Value::as_str).unwrap_or("");
        let class = json.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("");
        let known = matches!(
            (family, class),
            ("llama" | "mistral", "" | "LlamaForCausalLM" | "MistralForCausalLM")
                | ("", "LlamaForCausalLM" | "MistralForCausalLM")
        );
        if !known {
            let name = if class.is_empty() { family } else { class };
            return Err(LoadError::unsupported(
                CONFIG,
                format!("the architecture `{name}`"),
                "this build serves LlamaForCausalLM and MistralForCausalLM; use the engine `Custom` for others",
            ));
        }
        serde_json::from_value(json).map_err(|e| LoadError::corrupt(CONFIG, e.to_string()))
    }

    fn scaling(&self) -> Result<(f32, Scaling), LoadError> {
        let parameters = self.rope_parameters.as_ref().filter(|value| !value.is_null());
        let scaling = parameters.or_else(|| self.rope_scaling.as_ref().filter(|value| !value.is_null()));
        let number = |field: &str| scaling.and_then(|value| value.get(field)).and_then(Value::as_f64);
        let theta = number("rope_theta").or(self.rope_theta).unwrap_or(10_000.0) as f32;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(LoadError::corrupt(CONFIG, format!("`rope_theta` is {theta}")));
        }
        let need = |field: &str| {
            number(field)
                .map(|x| x as f32)
                .ok_or_else(|| LoadError::corrupt(CONFIG, format!("RoPE scaling lacks the number `{field}`")))
        };
        let kind = scaling.and_then(|value| value.get("rope_type").or_else(|| value.get("type")));
        let scaling = match kind.and_then(Value::as_str) {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: need("factor")? },
            Some("llama3") => Scaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: need("original_max_position_embeddings")?,
            },
            Some(other) => {
                return Err(LoadError::unsupported(
                    CONFIG,
                    format!("the RoPE scaling `{other}`"),
                    "this build computes `default`, `linear` and `llama3`; use the engine `Custom`",
                ));
            }
        };
        scaling.check().map_err(|e| LoadError::corrupt(CONFIG, e))?;
        Ok((theta, scaling))
    }
}

/// Checks a config and turns it into a shape.
pub(crate) fn from_hf(config: &HfConfig) -> Result<Shape, LoadError> {
    let refuse = |what: String, hint: &str| Err(LoadError::unsupported(CONFIG, what, hint));
    if let Some(quantization) = config.quantization_config.as_ref().filter(|value| !value.is_null()) {
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        return refuse(
            format!("the quantisation `{method}`"),
            "use the unquantised safetensors, or a GGUF file for a quantised model",
        );
    }
    if let Some(act) = config.hidden_act.as_deref().filter(|act| !matches!(*act, "silu" | "swish")) {
        return refuse(format!("the activation `{act}`"), "Llama-family models use `silu`");
    }
    let rotary = config
        .rope_parameters
        .as_ref()
        .and_then(|value| value.get("partial_rotary_factor"))
        .and_then(Value::as_f64)
        .or(config.partial_rotary_factor);
    if let Some(factor) = rotary.filter(|factor| *factor != 1.0) {
        return refuse(
            format!("a partial rotary factor of {factor}"),
            "Llama-family models rotate whole heads",
        );
    }
    let (theta, scaling) = config.scaling()?;
    let heads = config.num_attention_heads as usize;
    let head_dim = match config.head_dim {
        Some(head_dim) => head_dim as usize,
        None if heads != 0 && (config.hidden_size as usize).is_multiple_of(heads) => {
            config.hidden_size as usize / heads
        }
        None => {
            let what = format!("`hidden_size` {} is not a multiple of {heads} heads", config.hidden_size);
            return Err(LoadError::corrupt(CONFIG, what));
        }
    };
    let attention_bias = config.attention_bias.unwrap_or(false);
    let mistral = config.model_type == "mistral";
    let shape = Shape {
        architecture: match config.architectures.as_deref() {
            Some([first, ..]) => first.clone(),
            _ if mistral => "MistralForCausalLM".to_owned(),
            _ => "LlamaForCausalLM".to_owned(),
        },
        vocabulary: config.vocab_size as usize,
        hidden: config.hidden_size as usize,
        feed_forward: config.intermediate_size as usize,
        layers: config.num_hidden_layers as usize,
        heads,
        kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads) as usize,
        head_dim,
        rms_eps: config.rms_norm_eps,
        max_context: config.max_position_embeddings,
        // Llama configs may carry a stray value; only Mistral's code uses it.
        sliding_window: config.sliding_window.filter(|_| mistral).map(|n| n as usize),
        tied_head: config.tie_word_embeddings.unwrap_or(false),
        biases: Biases {
            qkv: attention_bias,
            output: attention_bias,
            feed_forward: config.mlp_bias.unwrap_or(false),
        },
        // A hostile head size must not allocate: `check` below bounds it, 4096 is its bound.
        rope: Rope::new(head_dim.min(1 << 12), theta, scaling, false),
    };
    shape.check().map_err(|e| LoadError::corrupt(CONFIG, e))?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: &str, value: Value) -> Result<Shape, LoadError> {
        let mut json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2
        });
        json[change] = value;
        from_hf(&HfConfig::parse(json)?)
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let cases = [
            ("architectures", serde_json::json!(["GemmaForCausalLM"]), "GemmaForCausalLM"),
            ("model_type", "qwen2_moe".into(), "LlamaForCausalLM"),
            ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0}), "`yarn`"),
            ("rope_parameters", serde_json::json!({"rope_type": "dynamic", "factor": 4.0}), "`dynamic`"),
            ("quantization_config", serde_json::json!({"quant_method": "awq"}), "`awq`"),
            ("hidden_act", "gelu".into(), "`gelu`"),
            ("partial_rotary_factor", 0.5.into(), "0.5"),
        ];
        for (field, value, named) in cases {
            match config(field, value) {
                Err(LoadError::Unsupported { what, .. }) => assert!(what.contains(named), "{field}: {what}"),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn impossible_numbers_are_corrupt() {
        let cases = [
            ("num_attention_heads", Value::from(0)),
            ("num_attention_heads", Value::from(3)),
            ("num_key_value_heads", Value::from(0)),
            ("num_key_value_heads", Value::from(5)),
            ("head_dim", Value::from(u32::MAX)),
            ("head_dim", Value::from(3)),
            ("vocab_size", Value::from(-1)),
            ("vocab_size", Value::from(u32::MAX)),
            ("num_hidden_layers", Value::from(1e9 as u32)),
            ("max_position_embeddings", Value::from(0)),
            ("rms_norm_eps", Value::from("x")),
            ("rope_theta", Value::from(-1.0)),
            ("rope_scaling", serde_json::json!({"type": "linear", "factor": 0.0})),
            ("rope_scaling", serde_json::json!({"type": "linear"})),
        ];
        for (field, value) in cases {
            let shown = format!("{field} = {value}");
            assert!(matches!(config(field, value), Err(LoadError::Corrupt { .. })), "{shown}");
        }
        assert!(config("head_dim", 4.into()).is_ok());
    }
}
