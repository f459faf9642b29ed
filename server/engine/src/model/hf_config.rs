//! `config.json` of a Hugging Face folder.

mod rotations;

use serde::Deserialize;
use serde_json::Value;

use super::{Biases, Family, Local, Shape};
use crate::{LoadError, kernels::Activation};

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
    /// Gemma has `hidden_activation`, and sometimes a `hidden_act` that its code ignores.
    #[serde(default)]
    hidden_act: Option<String>,
    #[serde(default)]
    hidden_activation: Option<String>,
    #[serde(default)]
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    max_position_embeddings: Option<u32>,
    #[serde(default)]
    original_max_position_embeddings: Option<u32>,
    #[serde(default)]
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_local_base_freq: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<Value>,
    /// Where transformers 5 puts them, perhaps per kind of layer.
    #[serde(default)]
    rope_parameters: Option<Value>,
    #[serde(default)]
    partial_rotary_factor: Option<f64>,
    #[serde(default)]
    sliding_window: Option<u32>,
    #[serde(default)]
    use_sliding_window: Option<bool>,
    #[serde(default)]
    max_window_layers: Option<u32>,
    #[serde(default, alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<u32>,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    query_pre_attn_scalar: Option<f64>,
    #[serde(default)]
    attn_logit_softcapping: Option<f64>,
    #[serde(default)]
    final_logit_softcapping: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: Option<bool>,
    #[serde(default)]
    use_bidirectional_attention: Option<Value>,
    #[serde(default)]
    quantization_config: Option<Value>,
    /// One id or a list.
    #[serde(default)]
    pub(crate) eos_token_id: Option<Value>,
}

/// What transformers takes where a config says nothing.
struct Defaults {
    rms_eps: f64,
    context: u32,
    head_dim: Option<u32>,
    theta: f64,
    window: Option<u32>,
    tied: bool,
}

impl Defaults {
    fn of(family: Family) -> Self {
        let llama =
            Self { rms_eps: 1e-6, context: 2048, head_dim: None, theta: 10_000.0, window: None, tied: false };
        match family {
            Family::Llama => llama,
            Family::Mistral => Self { context: 131_072, window: None, ..llama },
            Family::Qwen2 => Self { context: 32_768, ..llama },
            Family::Qwen3 => Self { context: 32_768, head_dim: Some(128), ..llama },
            Family::Phi3 => Self { rms_eps: 1e-5, context: 4096, ..llama },
            Family::Gemma2 => {
                Self { context: 8192, head_dim: Some(256), window: Some(4096), tied: true, ..llama }
            }
            Family::Gemma3 => Self {
                context: 131_072,
                head_dim: Some(256),
                theta: 1e6,
                window: Some(4096),
                tied: true,
                ..llama
            },
        }
    }
}

impl HfConfig {
    pub(crate) fn parse(json: Value) -> Result<Self, LoadError> {
        // Said first: another family's config may lack the fields of these, and that is not the news.
        let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or("");
        let class = json.pointer("/architectures/0").and_then(Value::as_str).unwrap_or("");
        if Family::from_hf(model_type, class).is_none() {
            let name = if class.is_empty() { model_type } else { class };
            return Err(LoadError::unsupported(
                CONFIG,
                format!("the architecture `{name}`"),
                format!("this build serves {}; use the engine `Custom` for others", Family::classes()),
            ));
        }
        serde_json::from_value(json).map_err(|e| LoadError::corrupt(CONFIG, e.to_string()))
    }

    fn local(&self, family: Family) -> Result<Local, LoadError> {
        if let Some(types) = &self.layer_types {
            return types
                .iter()
                .map(|kind| match kind.as_str() {
                    "sliding_attention" => Ok(true),
                    "full_attention" => Ok(false),
                    other => Err(LoadError::unsupported(
                        CONFIG,
                        format!("the layer type `{other}`"),
                        "this build computes `full_attention` and `sliding_attention`; use the engine `Custom`",
                    )),
                })
                .collect::<Result<_, _>>()
                .map(Local::Layers);
        }
        Ok(match family {
            Family::Gemma2 => Local::Pattern(2),
            Family::Gemma3 => Local::Pattern(self.sliding_window_pattern.unwrap_or(6) as usize),
            Family::Qwen2 | Family::Qwen3 => {
                let first = self.max_window_layers.unwrap_or(28);
                // Bounded here, since `check` has not looked at it yet.
                Local::Layers((0..self.num_hidden_layers.min(1 << 10)).map(|i| i >= first).collect())
            }
            _ => Local::All,
        })
    }

    fn window(&self, family: Family, default: Option<u32>) -> Option<usize> {
        let window = match family {
            // Llama configs may carry a stray value.
            Family::Llama => None,
            Family::Qwen2 | Family::Qwen3 => {
                self.sliding_window.filter(|_| self.use_sliding_window == Some(true))
            }
            _ => self.sliding_window.or(default),
        };
        window.map(|n| n as usize)
    }

    fn activation(&self, family: Family) -> Result<Activation, LoadError> {
        let named = match family.is_gemma() {
            true => self.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh"),
            false => self.hidden_act.as_deref().unwrap_or("silu"),
        };
        match named {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::Gelu),
            other => Err(LoadError::unsupported(
                CONFIG,
                format!("the activation `{other}`"),
                "this build computes `silu`, `gelu` and `gelu_pytorch_tanh`; use the engine `Custom`",
            )),
        }
    }
}

/// Checks the config and turns it into a shape.
pub(crate) fn from_hf(config: &HfConfig) -> Result<Shape, LoadError> {
    let refuse = |what: String, hint: &str| Err(LoadError::unsupported(CONFIG, what, hint));
    let class = config.architectures.as_deref().and_then(|all| all.first()).map_or("", String::as_str);
    let Some(family) = Family::from_hf(&config.model_type, class) else {
        return refuse(format!("the architecture `{class}`"), "use the engine `Custom`");
    };
    if let Some(method) = config.quantization_config.as_ref().filter(|value| !value.is_null()) {
        let name = method.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return refuse(
            format!("the quantization `{name}`"),
            "use unquantised safetensors, or a GGUF file of the model",
        );
    }
    if config
        .use_bidirectional_attention
        .as_ref()
        .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    {
        return refuse("bidirectional attention".to_owned(), "it is an encoder; serve it for embeddings");
    }
    let defaults = Defaults::of(family);
    let heads = config.num_attention_heads as usize;
    let head_dim = match config.head_dim.or(defaults.head_dim) {
        Some(head_dim) => head_dim as usize,
        None if heads != 0 && (config.hidden_size as usize).is_multiple_of(heads) => {
            config.hidden_size as usize / heads
        }
        None => {
            let what = format!("`hidden_size` {} is not a multiple of {heads} heads", config.hidden_size);
            return Err(LoadError::corrupt(CONFIG, what));
        }
    };
    let partial = config.rope_parameters.as_ref().and_then(|value| value.get("partial_rotary_factor"));
    let partial = partial.and_then(Value::as_f64).or(config.partial_rotary_factor).unwrap_or(1.0);
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(LoadError::corrupt(CONFIG, format!("`partial_rotary_factor` is {partial}")));
    }
    // A hostile head size must not allocate: `check` below bounds it, 4096 is its bound.
    let rotated = (head_dim.min(1 << 12) as f64 * partial) as usize;
    if !rotated.is_multiple_of(2) {
        return Err(LoadError::corrupt(
            CONFIG,
            format!("{rotated} rotated dimensions are odd, RoPE needs pairs"),
        ));
    }
    let (rope, local_rope) = config.ropes(family, rotated, defaults.theta)?;
    let attention_bias = config.attention_bias.unwrap_or(false);
    let scalar = config.query_pre_attn_scalar.filter(|_| family.is_gemma());
    let scalar = scalar.unwrap_or_else(|| if family.is_gemma() { 256.0 } else { head_dim as f64 });
    let cap = |value: Option<f64>, default: Option<f64>| match family {
        Family::Gemma2 => value.or(default).map(|x| x as f32),
        Family::Gemma3 => value.map(|x| x as f32),
        _ => None,
    };
    let shape = Shape {
        family,
        architecture: if class.is_empty() { family.class().to_owned() } else { class.to_owned() },
        vocabulary: config.vocab_size as usize,
        hidden: config.hidden_size as usize,
        feed_forward: config.intermediate_size as usize,
        layers: config.num_hidden_layers as usize,
        heads,
        kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads) as usize,
        head_dim,
        rms_eps: config.rms_norm_eps.unwrap_or(defaults.rms_eps),
        max_context: config.max_position_embeddings.unwrap_or(defaults.context),
        sliding_window: config.window(family, defaults.window),
        local: config.local(family)?,
        tied_head: config.tie_word_embeddings.unwrap_or(defaults.tied),
        biases: Biases {
            qkv: attention_bias || family.has_qkv_bias(),
            output: attention_bias,
            feed_forward: config.mlp_bias.unwrap_or(false) && family == Family::Llama,
        },
        rope,
        local_rope,
        activation: config.activation(family)?,
        attention_scale: 1.0 / scalar.sqrt() as f32,
        attention_softcap: cap(config.attn_logit_softcapping, Some(50.0)),
        logit_softcap: cap(config.final_logit_softcapping, Some(30.0)),
        embedding_scale: family.is_gemma().then(|| (f64::from(config.hidden_size)).sqrt() as f32),
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

    /// Two frequencies are right.
    fn long_rope(n: usize, factor: f64, original: u32) -> Value {
        serde_json::json!({
            "type": "longrope", "factor": 4.0, "short_factor": vec![factor; n], "long_factor": vec![factor; n],
            "original_max_position_embeddings": original
        })
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let cases = [
            ("architectures", serde_json::json!(["GemmaForCausalLM"]), "GemmaForCausalLM"),
            ("model_type", "qwen2_moe".into(), "LlamaForCausalLM"),
            ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0}), "`yarn`"),
            ("rope_parameters", serde_json::json!({"rope_type": "dynamic", "factor": 4.0}), "`dynamic`"),
            ("quantization_config", serde_json::json!({"quant_method": "awq"}), "`awq`"),
            ("hidden_act", "relu".into(), "`relu`"),
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
            ("rope_scaling", serde_json::json!({"type": "longrope"})),
            ("rope_scaling", long_rope(2, 1.0, 0)),
            ("rope_scaling", long_rope(3, 1.0, 16)),
            ("rope_scaling", long_rope(2, 0.0, 16)),
            ("rope_scaling", long_rope(2, -1.0, 16)),
        ];
        for (field, value) in cases {
            let shown = format!("{field} = {value}");
            assert!(matches!(config(field, value), Err(LoadError::Corrupt { .. })), "{shown}");
        }
        assert!(config("head_dim", 4.into()).is_ok());
        assert!(config("rope_scaling", long_rope(2, 1.0, 16)).is_ok());
        // Its logarithm divides.
        assert!(matches!(config("rope_scaling", long_rope(2, 1.0, 1)), Err(LoadError::Corrupt { .. })));
    }
}
