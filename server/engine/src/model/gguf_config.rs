//! The shape of a model from GGUF metadata.

use super::{
    Biases, Shape,
    rope::{Rope, Scaling},
};
use crate::{
    LoadError,
    weights::{Part, Role, Weights, gguf::GgufFile},
};

/// Checks the metadata and turns them into a shape. Divisors of frequencies (`rope_freqs`) are read here too.
pub(crate) fn from_gguf(file: &mut GgufFile<'_>) -> Result<Shape, LoadError> {
    let name = file.name.clone();
    let corrupt = |e: String| LoadError::corrupt(&name, e);
    let missing = |key: &str| LoadError::corrupt(&name, format!("metadata `{key}` is missing"));
    let architecture = file.header.str("general.architecture").map_err(corrupt)?;
    let architecture = architecture.ok_or_else(|| missing("general.architecture"))?.to_owned();
    if architecture != "llama" {
        return Err(LoadError::unsupported(
            &name,
            format!("the architecture `{architecture}`"),
            "this build serves GGUF files of the architecture `llama`; use the engine `Custom` for others",
        ));
    }
    let header = &file.header;
    let get = |key: &str| header.u32(&format!("llama.{key}")).map_err(corrupt);
    let need = |key: &str| get(key)?.ok_or_else(|| missing(&format!("llama.{key}")));
    if let Some(experts) = get("expert_count")?.filter(|n| *n > 0) {
        return Err(LoadError::unsupported(
            &name,
            format!("a mixture of {experts} experts"),
            "use a dense Llama-family model, or the engine `Custom`",
        ));
    }
    let hidden = need("embedding_length")?;
    let heads = need("attention.head_count")?;
    let head_dim = match get("attention.key_length")?.or(get("rope.dimension_count")?) {
        Some(n) => n,
        None if heads != 0 => hidden / heads,
        None => 0,
    };
    if let Some(rotated) = get("rope.dimension_count")?.filter(|n| *n != head_dim) {
        return Err(LoadError::unsupported(
            &name,
            format!("rotating {rotated} of {head_dim} dimensions"),
            "Llama-family models rotate whole heads",
        ));
    }
    let vocabulary = match get("vocab_size")? {
        Some(n) => n as usize,
        None => {
            let tokens = header.strings("tokenizer.ggml.tokens").map_err(corrupt)?;
            tokens.ok_or_else(|| missing("tokenizer.ggml.tokens"))?.len()
        }
    };
    let theta = header.f64("llama.rope.freq_base").map_err(corrupt)?.unwrap_or(10_000.0) as f32;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(LoadError::corrupt(&name, format!("metadata `llama.rope.freq_base` is {theta}")));
    }
    let factor = header.f64("llama.rope.scaling.factor").map_err(corrupt)?;
    let factor = factor.or(header.f64("llama.rope.scale_linear").map_err(corrupt)?);
    let scaling = match header.str("llama.rope.scaling.type").map_err(corrupt)? {
        Some("none") => Scaling::None,
        None | Some("linear") => {
            factor.map_or(Scaling::None, |factor| Scaling::Linear { factor: factor as f32 })
        }
        Some(other) => {
            return Err(LoadError::unsupported(
                &name,
                format!("the RoPE scaling `{other}`"),
                "this build computes `linear` and the frequency factors of Llama 3; use the engine `Custom`",
            ));
        }
    };
    scaling.check().map_err(corrupt)?;
    let rms_eps = header.f64("llama.attention.layer_norm_rms_epsilon").map_err(corrupt)?;
    let bias = |part| file.contains(Role::Layer(0, part));
    let shape = Shape {
        vocabulary,
        hidden: hidden as usize,
        feed_forward: need("feed_forward_length")? as usize,
        layers: need("block_count")? as usize,
        heads: heads as usize,
        kv_heads: get("attention.head_count_kv")?.unwrap_or(heads) as usize,
        head_dim: head_dim as usize,
        rms_eps: rms_eps.ok_or_else(|| missing("llama.attention.layer_norm_rms_epsilon"))?,
        max_context: need("context_length")?,
        sliding_window: get("attention.sliding_window")?.filter(|n| *n > 0).map(|n| n as usize),
        tied_head: !file.contains(Role::Head),
        biases: Biases {
            qkv: bias(Part::QueryBias),
            output: bias(Part::OutputBias),
            feed_forward: bias(Part::GateBias),
        },
        rope: Rope::new((head_dim as usize).min(1 << 12), theta, scaling, true),
        architecture,
    };
    shape.check().map_err(corrupt)?;
    with_rope_factors(file, shape)
}

fn with_rope_factors(file: &mut GgufFile<'_>, mut shape: Shape) -> Result<Shape, LoadError> {
    if !file.contains(Role::RopeFactors) {
        return Ok(shape);
    }
    let factors = file.vector(Role::RopeFactors, shape.head_dim / 2)?.to_vec1::<f32>();
    let factors = factors.map_err(|e| LoadError::corrupt(&file.name, e.to_string()))?;
    for (frequency, factor) in shape.rope.inverse_frequencies.iter_mut().zip(factors) {
        if !(factor.is_finite() && factor > 0.0) {
            return Err(LoadError::corrupt(&file.name, format!("tensor `rope_freqs.weight` holds {factor}")));
        }
        *frequency /= factor;
    }
    Ok(shape)
}
