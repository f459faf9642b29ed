//! The shape of a model from GGUF metadata.

use super::{
    Biases, Family, Local, Shape,
    rope::{LongRope, Rope, Scaling},
};
use crate::{
    LoadError,
    kernels::Activation,
    weights::{Part, Role, Weights, gguf::GgufFile},
};

/// Checks the metadata and turns them into a shape. Divisors of frequencies (`rope_freqs`) are read here too.
pub(crate) fn from_gguf(file: &GgufFile<'_>) -> Result<Shape, LoadError> {
    let name = file.name.as_str();
    let corrupt = |e: String| LoadError::corrupt(name, e);
    let missing = |key: &str| LoadError::corrupt(name, format!("metadata `{key}` is missing"));
    let unsupported =
        |what: String, hint: String| LoadError::unsupported(name, what, hint + "; use the engine `Custom`");
    let architecture = file.header.str("general.architecture").map_err(corrupt)?;
    let architecture = architecture.ok_or_else(|| missing("general.architecture"))?;
    let Some(family) = Family::from_gguf(architecture) else {
        let hint = format!("this build serves GGUF files of {}", Family::ggufs());
        return Err(unsupported(format!("the architecture `{architecture}`"), hint));
    };
    let header = &file.header;
    let key = |key: &str| format!("{architecture}.{key}");
    let get = |name: &str| header.u32(&key(name)).map_err(corrupt);
    let float = |name: &str| header.f64(&key(name)).map_err(corrupt);
    let need = |name: &str| get(name)?.ok_or_else(|| missing(&key(name)));
    if let Some(experts) = get("expert_count")?.filter(|n| *n > 0) {
        let hint = "this build serves dense models".to_owned();
        return Err(unsupported(format!("a mixture of {experts} experts"), hint));
    }
    let hidden = need("embedding_length")?;
    let heads = need("attention.head_count")?;
    let rotated = get("rope.dimension_count")?;
    let head_dim = match get("attention.key_length")? {
        Some(n) => n,
        // llama.cpp's own default: the whole head is rotated unless both are said.
        None if heads != 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => rotated.unwrap_or(0),
    };
    let rotated = rotated.unwrap_or(head_dim);
    if rotated == 0 || rotated > head_dim || rotated % 2 == 1 {
        let what = format!("`{}` is {rotated} for heads of {head_dim}", key("rope.dimension_count"));
        return Err(LoadError::corrupt(name, what));
    }
    let vocabulary = match get("vocab_size")? {
        Some(n) => n as usize,
        None => {
            let tokens = header.strings("tokenizer.ggml.tokens").map_err(corrupt)?;
            tokens.ok_or_else(|| missing("tokenizer.ggml.tokens"))?.len()
        }
    };
    let base = |name: &str, default: f64| -> Result<f32, LoadError> {
        let theta = float(name)?.unwrap_or(default) as f32;
        match theta.is_finite() && theta > 0.0 {
            true => Ok(theta),
            false => Err(corrupt(format!("metadata `{}` is {theta}", key(name)))),
        }
    };
    let factor = float("rope.scaling.factor")?.or(float("rope.scale_linear")?);
    let scaling = match header.str(&key("rope.scaling.type")).map_err(corrupt)? {
        // What stretches there are factors, read below.
        Some("none" | "longrope") => Scaling::None,
        None | Some("linear") => {
            factor.map_or(Scaling::None, |factor| Scaling::Linear { factor: factor as f32 })
        }
        Some(other) => {
            let hint =
                "this build computes `linear`, `longrope` and the frequency factors of Llama 3".to_owned();
            return Err(unsupported(format!("the RoPE scaling `{other}`"), hint));
        }
    };
    scaling.check().map_err(corrupt)?;
    let rms_eps = float("attention.layer_norm_rms_epsilon")?;
    let window = get("attention.sliding_window")?.filter(|n| *n > 0).map(|n| n as usize);
    let bias = |part| file.contains(Role::Layer(0, part));
    // A hostile size must not allocate: `check` below bounds it, 4096 is its bound.
    let rope_of = |theta, scaling| {
        Rope::new((rotated as usize).min(1 << 12), theta, scaling, family.gguf_is_interleaved())
    };
    let theta = base("rope.freq_base", 10_000.0)?;
    let local_rope = match family {
        Family::Gemma3 => Some(rope_of(base("rope.freq_base_swa", 10_000.0)?, Scaling::None)),
        _ => None,
    };
    // llama.cpp knows Gemma's largest models by their layers: they alone scale by hidden size and heads.
    let layers = need("block_count")? as usize;
    let is_27b = matches!((family, layers), (Family::Gemma2, 46) | (Family::Gemma3, 62)) && heads != 0;
    let scale_of = if is_27b { hidden / heads } else { head_dim };
    let shape = Shape {
        family,
        architecture: architecture.to_owned(),
        vocabulary,
        hidden: hidden as usize,
        feed_forward: need("feed_forward_length")? as usize,
        layers,
        heads: heads as usize,
        kv_heads: get("attention.head_count_kv")?.unwrap_or(heads) as usize,
        head_dim: head_dim as usize,
        rms_eps: rms_eps.ok_or_else(|| missing(&key("attention.layer_norm_rms_epsilon")))?,
        max_context: need("context_length")?,
        sliding_window: match family {
            Family::Gemma2 => Some(window.unwrap_or(4096)),
            // As llama.cpp has it: converters write windows that the models were not trained with.
            Family::Phi3 | Family::Qwen2 | Family::Qwen3 => None,
            _ => window,
        },
        local: family.default_pattern().map_or(Local::All, Local::Pattern),
        tied_head: !file.contains(Role::Head),
        biases: Biases {
            qkv: bias(Part::QueryBias),
            output: bias(Part::OutputBias),
            feed_forward: bias(Part::GateBias),
        },
        rope: rope_of(theta, scaling),
        local_rope,
        activation: if family.is_gemma() { Activation::GeluTanh } else { Activation::Silu },
        attention_scale: 1.0 / f64::from(scale_of).sqrt() as f32,
        attention_softcap: match family {
            Family::Gemma2 => Some(float("attn_logit_softcapping")?.unwrap_or(50.0) as f32),
            _ => None,
        },
        logit_softcap: match family {
            Family::Gemma2 => Some(float("final_logit_softcapping")?.unwrap_or(30.0) as f32),
            Family::Gemma3 => {
                float("final_logit_softcapping")?.filter(|cap| *cap > 0.0).map(|cap| cap as f32)
            }
            _ => None,
        },
        embedding_scale: family.is_gemma().then(|| f64::from(hidden).sqrt() as f32),
    };
    shape.check().map_err(corrupt)?;
    with_rope_factors(file, &key, shape)
}

fn with_rope_factors(
    file: &GgufFile<'_>,
    key: &dyn Fn(&str) -> String,
    mut shape: Shape,
) -> Result<Shape, LoadError> {
    let n_frequencies = shape.rope.inverse_frequencies.len();
    let corrupt = |e: String| LoadError::corrupt(&file.name, e);
    if file.contains(Role::RopeFactors) {
        let factors = file.vector(Role::RopeFactors, n_frequencies)?;
        shape.rope.divide(&factors).map_err(|e| corrupt(format!("tensor `rope_freqs.weight`: {e}")))?;
    }
    if file.contains(Role::RopeFactorsLong) {
        let original = key("rope.scaling.original_context_length");
        let stretch = LongRope {
            original_context: file.header.u32(&original).map_err(corrupt)?.ok_or_else(|| {
                corrupt(format!("metadata `{original}` is missing, which `rope_factors_long.weight` needs"))
            })?,
            magnitude: file
                .header
                .f64(&key("rope.scaling.attn_factor"))
                .map_err(corrupt)?
                .map_or(1.0, |factor| factor as f32),
            short: file.vector(Role::RopeFactorsShort, n_frequencies)?,
            long: file.vector(Role::RopeFactorsLong, n_frequencies)?,
        };
        shape.rope = shape.rope.with_long(&stretch).map_err(|e| corrupt(format!("RoPE scaling: {e}")))?;
    }
    Ok(shape)
}
