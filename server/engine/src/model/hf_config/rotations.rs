//! What `config.json` says of the rotations.

use serde_json::Value;

use super::{CONFIG, HfConfig};
use crate::{
    LoadError,
    model::{
        Family,
        rope::{LongRope, Rope, Scaling},
    },
};

const LONGROPE: &str = "longrope";
/// What the first models called it.
const SU: &str = "su";

fn rope_type(fields: &Value) -> Option<&str> {
    fields.get("rope_type").or_else(|| fields.get("type"))?.as_str()
}

impl HfConfig {
    /// What is said of the rotations, in `kind` of layers where they differ.
    fn rope_fields(&self, kind: &str) -> Option<&Value> {
        let parameters = self.rope_parameters.as_ref().filter(|value| !value.is_null());
        let parameters = parameters.map(|value| value.get(kind).unwrap_or(value));
        parameters.or_else(|| self.rope_scaling.as_ref().filter(|value| !value.is_null()))
    }

    /// Base and scaling of the rotations.
    fn scaling(&self, kind: &str, default_theta: f64) -> Result<(f32, Scaling), LoadError> {
        let scaling = self.rope_fields(kind);
        let number = |field: &str| scaling.and_then(|value| value.get(field)).and_then(Value::as_f64);
        let theta = number("rope_theta").or(self.rope_theta).unwrap_or(default_theta) as f32;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(LoadError::corrupt(CONFIG, format!("`rope_theta` is {theta}")));
        }
        let need = |field: &str| {
            number(field)
                .map(|x| x as f32)
                .ok_or_else(|| LoadError::corrupt(CONFIG, format!("RoPE scaling lacks the number `{field}`")))
        };
        let scaling = match scaling.and_then(rope_type) {
            None | Some("default") => Scaling::None,
            // It has divisors of its own, see `long_rope`.
            Some(LONGROPE | SU) => Scaling::None,
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
                    "this build computes `default`, `linear`, `llama3` and `longrope`; use the engine `Custom`",
                ));
            }
        };
        scaling.check().map_err(|e| LoadError::corrupt(CONFIG, e))?;
        Ok((theta, scaling))
    }

    /// As transformers' `_compute_longrope_parameters` reads it.
    fn long_rope(&self, kind: &str) -> Result<Option<LongRope>, LoadError> {
        let Some(fields) =
            self.rope_fields(kind).filter(|fields| matches!(rope_type(fields), Some(LONGROPE | SU)))
        else {
            return Ok(None);
        };
        let corrupt = |what: String| LoadError::corrupt(CONFIG, what);
        let factors = |field: &str| -> Result<Vec<f32>, LoadError> {
            let numbers = fields.get(field).and_then(Value::as_array);
            let numbers = numbers.map(|all| all.iter().map(|x| x.as_f64().map(|x| x as f32)));
            numbers
                .and_then(|all| all.collect())
                .ok_or_else(|| corrupt(format!("RoPE scaling lacks the numbers `{field}`")))
        };
        let number = |field: &str| fields.get(field).and_then(Value::as_f64);
        // Phi-3 has it outside, and that counts.
        let original_context = self
            .original_max_position_embeddings
            .or_else(|| number("original_max_position_embeddings").map(|x| x as u32))
            .or(self.max_position_embeddings)
            .ok_or_else(|| corrupt("`longrope` lacks `original_max_position_embeddings`".to_owned()))?;
        let context = self.max_position_embeddings.unwrap_or(original_context);
        let factor = number("factor").unwrap_or_else(|| f64::from(context) / f64::from(original_context));
        let magnitude = number("attention_factor").unwrap_or_else(|| match factor > 1.0 {
            true => (1.0 + factor.ln() / f64::from(original_context).ln()).sqrt(),
            false => 1.0,
        });
        let (short, long) = (factors("short_factor")?, factors("long_factor")?);
        Ok(Some(LongRope { original_context, magnitude: magnitude as f32, short, long }))
    }

    /// Rotations of all layers, and of the local ones where those differ.
    pub(super) fn ropes(
        &self,
        family: Family,
        rotated: usize,
        theta: f64,
    ) -> Result<(Rope, Option<Rope>), LoadError> {
        let (global_theta, scaling) = self.scaling("full_attention", theta)?;
        let mut rope = Rope::new(rotated, global_theta, scaling, false);
        if let Some(stretch) = self.long_rope("full_attention")? {
            let corrupt = |e| LoadError::corrupt(CONFIG, format!("RoPE scaling `longrope`: {e}"));
            rope = rope.with_long(&stretch).map_err(corrupt)?;
        }
        if family != Family::Gemma3 {
            return Ok((rope, None));
        }
        let nested =
            self.rope_parameters.as_ref().is_some_and(|value| value.get("sliding_attention").is_some());
        let (theta, scaling) = match nested {
            true => self.scaling("sliding_attention", 10_000.0)?,
            // Only global layers are stretched.
            false => (self.rope_local_base_freq.unwrap_or(10_000.0) as f32, Scaling::None),
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(LoadError::corrupt(CONFIG, format!("`rope_local_base_freq` is {theta}")));
        }
        Ok((rope, Some(Rope::new(rotated, theta, scaling, false))))
    }
}
