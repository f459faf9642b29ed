//! The numbers that define a decoder, checked once.

use super::{family::Family, rope::Rope};
use crate::kernels::{Activation, AttentionShape};

/// Everything but the weights.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) family: Family,
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
    /// Tokens that one position attends to, itself included, in the layers of `local`.
    pub(crate) sliding_window: Option<usize>,
    /// Which layers see the window only.
    pub(crate) local: Local,
    pub(crate) tied_head: bool,
    pub(crate) biases: Biases,
    pub(crate) rope: Rope,
    /// In local layers, where that differs.
    pub(crate) local_rope: Option<Rope>,
    pub(crate) activation: Activation,
    /// Scores are multiplied by it.
    pub(crate) attention_scale: f32,
    /// Scores, and logits, are kept below it: `cap · tanh(x / cap)`.
    pub(crate) attention_softcap: Option<f32>,
    pub(crate) logit_softcap: Option<f32>,
    /// Embeddings are multiplied by it.
    pub(crate) embedding_scale: Option<f32>,
}

/// Which projections have one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) output: bool,
    pub(crate) feed_forward: bool,
}

/// Which layers see a sliding window, if there is one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Local {
    All,
    /// Of this many neighbours all but the last.
    Pattern(usize),
    Layers(Vec<bool>),
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
        let factors = [
            ("scale of the attention", Some(self.attention_scale)),
            ("cap of the attention's scores", self.attention_softcap),
            ("cap of the logits", self.logit_softcap),
            ("scale of the embeddings", self.embedding_scale),
        ];
        for (what, value) in factors {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(format!("the {what} is {value}"));
            }
        }
        match &self.local {
            Local::Pattern(0) => Err("the pattern of sliding windows has the length 0".to_owned()),
            Local::Layers(all) if all.len() != self.layers => {
                Err(format!("{} layer types are given for {} layers", all.len(), self.layers))
            }
            _ => Ok(()),
        }
    }

    /// Once the context that is served is known, and before anything is computed.
    pub(crate) fn settle(&mut self) {
        self.rope.serve_context(self.max_context);
    }

    pub(crate) fn is_local(&self, layer: usize) -> bool {
        self.sliding_window.is_some()
            && match &self.local {
                Local::All => true,
                Local::Pattern(n) => layer % n + 1 < *n,
                Local::Layers(all) => all[layer],
            }
    }

    pub(crate) fn attention(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.attention_scale,
            window: self.sliding_window.filter(|_| self.is_local(layer)),
            softcap: self.attention_softcap,
        }
    }

    /// Columns of query, key and value together.
    pub(crate) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Bytes of a step's buffers: per token the residual and two rows of its width, query to value, the heads' mix,
    /// gate, up and their product, and the widest of these once more in 8 bits with its scales; then the logits.
    pub(crate) fn activations_bytes(&self, step_tokens: usize, logit_rows: usize) -> u64 {
        let mixed = self.heads * self.head_dim;
        let widest = self.hidden.max(self.feed_forward).max(mixed);
        let row = 4 * (3 * self.hidden + self.qkv_width() + mixed + 3 * self.feed_forward) + 2 * widest;
        (step_tokens as u64)
            .saturating_mul(row as u64)
            .saturating_add((4 * logit_rows as u64).saturating_mul((self.vocabulary + self.hidden) as u64))
    }
}
