//! The numbers that define a Llama-shaped model, checked once.

use super::rope::Rope;
use crate::{Memory, facts};

/// Everything but the weights.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) architecture: String,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) feed_forward: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rms_eps: f64,
    /// Tokens that the model was made for.
    pub(crate) max_context: u32,
    /// Tokens that one position attends to, itself included.
    pub(crate) sliding_window: Option<usize>,
    pub(crate) tied_head: bool,
    pub(crate) biases: Biases,
    pub(crate) rope: Rope,
}

/// Which projections have one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) output: bool,
    pub(crate) feed_forward: bool,
}

impl Shape {
    /// Refuses numbers that contradict each other or that no model has, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            ("vocabulary size", self.vocabulary, 1 << 24),
            ("hidden size", self.hidden, 1 << 18),
            ("feed-forward size", self.feed_forward, 1 << 20),
            ("number of layers", self.layers, 1 << 10),
            ("number of attention heads", self.heads, 1 << 12),
            ("number of key-value heads", self.kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 12),
            ("context length", self.max_context as usize, 1 << 30),
        ];
        for (what, value, limit) in bounds {
            if value == 0 || value > limit {
                return Err(format!("the {what} is {value}, outside 1..={limit}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} attention heads cannot share {} key-value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("the head size {} is odd, RoPE needs pairs", self.head_dim));
        }
        if !(self.rms_eps >= 0.0 && self.rms_eps < 1.0) {
            return Err(format!("the epsilon of the norms is {}, outside 0..1", self.rms_eps));
        }
        if self.sliding_window == Some(0) {
            return Err("the sliding window is 0".to_owned());
        }
        Ok(())
    }

    pub(crate) fn kv_bytes_per_token(&self) -> u64 {
        2 * 4 * (self.layers * self.kv_heads * self.head_dim) as u64
    }

    /// Memory at full use; `weights_bytes` is what the weights will hold.
    pub(crate) fn memory(
        &self,
        weights_bytes: u64,
        context: u32,
        sequences: usize,
        step_tokens: usize,
    ) -> Memory {
        let kv_bytes =
            self.kv_bytes_per_token().saturating_mul(context.into()).saturating_mul(sequences as u64);
        // Live at once in a layer: the residual, a normed copy and three feed-forward rows per token; the scores
        // of one sequence's chunk, with the masked copy and the softmax of them; the logits of each sequence.
        let step = step_tokens as u64;
        let rows = step * (4 * self.hidden + 3 * self.feed_forward + 4 * self.heads * self.head_dim) as u64;
        let scores = (3 * step * self.heads as u64).saturating_mul(context.into());
        let logits = (2 * sequences as u64).saturating_mul(self.vocabulary as u64);
        let activations_bytes = rows.saturating_add(scores).saturating_add(logits).saturating_mul(4);
        facts::Memory { weights_bytes, kv_bytes, activations_bytes }
    }
}
