//! The forward pass of encoders over packed rows: the texts of a batch one after the other, without padding.
//!
//! The arithmetic of a row depends on its own text only (see [`crate::kernels`]), so a text's vector has the same bits
//! in any batch.

mod weights;

use std::sync::Arc;

use super::config::{Family, Head, Shape};
use crate::kernels::{
    AttentionShape, HeadColumns, Isa, Pool, Rotation, Scratch, activate, add, attention_bidirectional, gated,
    layer_norm, rope,
};
use weights::{Between, Layer, Norm, Table, Top};

/// A loaded encoder.
pub(crate) struct Encoder {
    pub(crate) shape: Shape,
    words: Table,
    positions: Option<Table>,
    types: Option<Table>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    /// Behind the last layer (ModernBERT).
    final_norm: Option<Norm>,
    top: Option<Top>,
    isa: Isa,
    pool: Arc<Pool>,
    buffers: Buffers,
}

/// One text, or a pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) tokens: &'a [u32],
    /// 0 or 1 for each token; empty = all 0.
    pub(crate) types: &'a [u32],
}

#[derive(Default)]
struct Buffers {
    cos: Vec<f32>,
    sin: Vec<f32>,
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    up: Vec<f32>,
    inner: Vec<f32>,
    scratch: Scratch,
}

fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

impl Encoder {
    /// The threads it computes on.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Tokens that fit.
    pub(crate) fn max_tokens(&self) -> usize {
        self.shape.positions - self.shape.first_position
    }

    /// Bytes of the buffers for a token of a batch.
    pub(crate) fn bytes_per_token(shape: &Shape) -> u64 {
        let (h, f) = (shape.hidden, shape.feed_forward);
        let labels = if let Head::Tokens(n) = shape.head { h + n } else { 0 };
        // Gate, up and their product, beside sines and cosines.
        let (inner, rotation) = match shape.family {
            Family::ModernBert => (3 * f, h / shape.heads),
            Family::Bert | Family::XlmRoberta => (f, 0),
        };
        // Hidden states, their norms, queries, keys, values and what attention mixes; then a product's input in blocks.
        (4 * (6 * h + inner + rotation + labels) + 2 * h.max(f)) as u64
    }

    fn check(&self, rows: &[Row<'_>]) -> Result<(), String> {
        for row in rows {
            let n = row.tokens.len();
            if n == 0 || n > self.max_tokens() {
                return Err(format!("a text of {n} tokens, outside 1..={}", self.max_tokens()));
            }
            if let Some(id) = row.tokens.iter().find(|id| **id as usize >= self.shape.vocabulary) {
                return Err(format!("token {id} is not in the vocabulary of {}", self.shape.vocabulary));
            }
            if !(row.types.is_empty() || row.types.len() == n) {
                return Err(format!("{} token types for {n} tokens", row.types.len()));
            }
        }
        Ok(())
    }

    /// The last hidden states of all tokens, `(tokens, hidden)`.
    ///
    /// # Errors
    /// In words, when a text is empty, too long or names a token that does not exist; nothing was computed then.
    pub(crate) fn hidden(&mut self, rows: &[Row<'_>]) -> Result<&mut [f32], String> {
        self.check(rows)?;
        self.embed(rows);
        let lens: Vec<_> = rows.iter().map(|row| row.tokens.len()).collect();
        let n: usize = lens.iter().sum();
        let Self { shape, layers, isa, pool, buffers, final_norm, .. } = self;
        let (isa, pool, h, f) = (*isa, &**pool, shape.hidden, shape.feed_forward);
        let modern = shape.family == Family::ModernBert;
        let Buffers { cos, sin, x, normed, qkv, mixed, up, inner, scratch } = buffers;
        let x = sized(x, n * h);
        let normed = sized(normed, n * h);
        let qkv = sized(qkv, n * 3 * h);
        let mixed = sized(mixed, n * h);
        let up = sized(up, n * f * if modern { 2 } else { 1 });
        let inner = sized(inner, if modern { n * f } else { 0 });
        let head_dim = h / shape.heads;
        let mut attention = AttentionShape {
            heads: shape.heads,
            kv_heads: shape.heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            softcap: None,
        };
        let norm = |norm: &Norm, x: &[f32], y: &mut [f32]| {
            layer_norm(isa, pool, x, &norm.weight, norm.bias.as_deref(), shape.eps, y);
        };
        let mut theta_of_tables = f32::NAN;
        for (i, layer) in layers.iter().enumerate() {
            if modern {
                let (theta, window) = shape.rotations[i];
                if theta != theta_of_tables {
                    tables(theta, head_dim, &lens, cos, sin);
                    theta_of_tables = theta;
                }
                attention.window = window;
                match &layer.attention_norm {
                    Some(weights) => norm(weights, x, normed),
                    None => normed.copy_from_slice(x),
                }
                layer.qkv.apply(isa, pool, normed, qkv, scratch);
                let columns = HeadColumns { width: 3 * h, first: 0, heads: 2 * shape.heads, head_dim };
                let rotation = Rotation { columns, rotated_dim: head_dim, interleaved: false };
                rope(isa, pool, qkv, &rotation, cos, sin);
                attention_bidirectional(isa, pool, &attention, &lens, qkv, mixed);
                layer.output.apply_add(isa, pool, mixed, x, scratch);
                norm(&layer.feed_forward_norm, x, normed);
                layer.up.apply(isa, pool, normed, up, scratch);
                gated(isa, pool, shape.activation, up, f, inner);
                layer.down.apply_add(isa, pool, inner, x, scratch);
            } else {
                layer.qkv.apply(isa, pool, x, qkv, scratch);
                attention_bidirectional(isa, pool, &attention, &lens, qkv, mixed);
                layer.output.apply_add(isa, pool, mixed, x, scratch);
                if let Some(weights) = &layer.attention_norm {
                    norm(weights, x, normed);
                }
                layer.up.apply(isa, pool, normed, up, scratch);
                activate(isa, pool, shape.activation, up);
                layer.down.apply_add(isa, pool, up, normed, scratch);
                norm(&layer.feed_forward_norm, normed, x);
            }
        }
        if let Some(weights) = final_norm {
            norm(weights, x, normed);
            x.copy_from_slice(normed);
        }
        Ok(x)
    }

    /// Scores of the classifier: a row per text, or per token where tokens are labelled.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub(crate) fn logits(&mut self, rows: &[Row<'_>]) -> Result<Vec<f32>, String> {
        self.hidden(rows)?;
        let n: usize = rows.iter().map(|row| row.tokens.len()).sum();
        let Self { shape, isa, pool, buffers, top, .. } = self;
        let (isa, pool, h) = (*isa, &**pool, shape.hidden);
        let top = top.as_ref().ok_or("the model has no classifier")?;
        let Buffers { x, scratch, .. } = buffers;
        let x = &x[..n * h];
        let mut states = match shape.head {
            Head::Tokens(_) => x.to_vec(),
            _ => first_or_mean(x, h, rows, shape.classifies_mean),
        };
        if let Some((dense, between)) = &top.dense {
            let mut y = vec![0.0; states.len()];
            dense.apply(isa, pool, &states, &mut y, scratch);
            match between {
                Between::Tanh => {
                    for value in &mut y {
                        *value = value.tanh();
                    }
                    states = y;
                }
                Between::Normed(activation, norm) => {
                    activate(isa, pool, *activation, &mut y);
                    layer_norm(isa, pool, &y, &norm.weight, norm.bias.as_deref(), shape.eps, &mut states);
                }
            }
        }
        let labels = if let Head::Tokens(labels) = shape.head { labels } else { 1 };
        let mut logits = vec![0.0; states.len() / h * labels];
        top.classifier.apply(isa, pool, &states, &mut logits, scratch);
        Ok(logits)
    }

    fn embed(&mut self, rows: &[Row<'_>]) {
        let h = self.shape.hidden;
        let n: usize = rows.iter().map(|row| row.tokens.len()).sum();
        let Buffers { x, normed, .. } = &mut self.buffers;
        let (x, normed) = (sized(x, n * h), sized(normed, n * h));
        let mut row = vec![0.0; h];
        let tokens = rows.iter().flat_map(|row| {
            let types = row.types.iter().copied().chain(std::iter::repeat(0));
            row.tokens.iter().zip(types).enumerate()
        });
        for (out, (position, (token, kind))) in normed.chunks_exact_mut(h).zip(tokens) {
            self.words.row(*token as usize, out);
            let mut term = |table: &Option<Table>, i: usize| {
                if let Some(table) = table {
                    table.row(i, &mut row);
                    add(self.isa, &self.pool, &row, out);
                }
            };
            term(&self.types, (kind as usize).min(self.shape.token_types.saturating_sub(1)));
            term(&self.positions, self.shape.first_position + position);
        }
        let Norm { weight, bias } = &self.embedding_norm;
        layer_norm(self.isa, &self.pool, normed, weight, bias.as_deref(), self.shape.eps, x);
    }
}

/// Cosines and sines for the positions of each text.
fn tables(theta: f32, head_dim: usize, lens: &[usize], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
    cos.clear();
    sin.clear();
    let frequencies: Vec<f32> =
        (0..head_dim / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / head_dim as f32)).collect();
    for position in lens.iter().flat_map(|n| 0..*n) {
        for frequency in &frequencies {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c);
            sin.push(s);
        }
    }
}

/// The first token's state of each text, or the mean of all: `(texts, hidden)`.
pub(crate) fn first_or_mean(x: &[f32], hidden: usize, rows: &[Row<'_>], mean: bool) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * hidden);
    let mut rest = x;
    for row in rows {
        let (text, after) = rest.split_at(row.tokens.len() * hidden);
        rest = after;
        out.extend_from_slice(&text[..hidden]);
        if mean {
            let at = out.len() - hidden;
            for token in text.chunks_exact(hidden).skip(1) {
                for (sum, value) in out[at..].iter_mut().zip(token) {
                    *sum += value;
                }
            }
            for sum in &mut out[at..] {
                *sum /= row.tokens.len() as f32;
            }
        }
    }
    out
}
