//! The forward pass over packed rows: every token of a step, whichever sequence it belongs to, goes through one
//! product per matrix; only attention is per sequence.

use candle_core::{Device, Result as CandleResult, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};

use super::{KvCache, Shape};
use crate::{
    LoadError,
    weights::{Matrix, Part, Product, Role, Weights, dense},
};

/// A loaded model.
pub(crate) struct Llama {
    pub(crate) shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Product,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

struct Linear {
    weight: Product,
    bias: Option<Tensor>,
}

/// Some new tokens of one sequence.
pub(crate) struct Chunk<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) cache: &'a mut KvCache,
    /// Whether the logits after the last token are wanted.
    pub(crate) wants_logits: bool,
}

impl Llama {
    /// Bytes that the weights will hold in memory; checks names, shapes and types of all of them on the way.
    pub(crate) fn weights_bytes(shape: &Shape, weights: &dyn Weights) -> Result<u64, LoadError> {
        let embedding = weights.matrix_bytes(Role::Embedding, (shape.vocabulary, shape.hidden))?;
        let head = match shape.tied_head {
            true => 0,
            false => weights.matrix_bytes(Role::Head, (shape.vocabulary, shape.hidden))?,
        };
        let mut total = embedding.saturating_add(head);
        for layer in 0..shape.layers {
            for (part, dims) in matrices(shape) {
                total = total.saturating_add(weights.matrix_bytes(Role::Layer(layer, part), dims)?);
            }
        }
        Ok(total)
    }

    pub(crate) fn load(shape: Shape, weights: &mut dyn Weights, file: &str) -> Result<Self, LoadError> {
        let failed = |e: candle_core::Error| LoadError::corrupt(file, e.to_string());
        let embedding = weights.matrix(Role::Embedding, (shape.vocabulary, shape.hidden))?;
        let head = match shape.tied_head {
            true => embedding.clone(),
            false => weights.matrix(Role::Head, (shape.vocabulary, shape.hidden))?,
        };
        let layers = (0..shape.layers)
            .map(|i| Layer::load(i, &shape, weights, file))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = weights.vector(Role::FinalNorm, shape.hidden)?;
        Ok(Self { shape, embedding, layers, norm, head: head.into_product().map_err(failed)? })
    }

    /// Computes one step. The result has an entry per chunk, logits where they were wanted.
    pub(crate) fn forward(&self, chunks: &mut [Chunk<'_>]) -> CandleResult<Vec<Option<Vec<f32>>>> {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for chunk in chunks.iter_mut() {
            chunk.cache.reserve(chunk.tokens.len(), self.layers.len())?;
            ids.extend_from_slice(chunk.tokens);
            let start = chunk.cache.len() as u32;
            positions.extend((start..).take(chunk.tokens.len()));
        }
        let n_rows = ids.len();
        let mut x = self.embedding.rows(&Tensor::from_vec(ids, n_rows, &Device::Cpu)?)?;
        let tables = self.shape.rope.tables(&positions)?;
        let eps = self.shape.rms_eps as f32;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = rms_norm(&x, &layer.attention_norm, eps)?;
            x = (x + self.attention(i, layer, &normed, &tables, chunks)?)?;
            let normed = rms_norm(&x, &layer.feed_forward_norm, eps)?;
            let inner = (silu(&layer.gate.apply(&normed)?)? * layer.up.apply(&normed)?)?;
            x = (x + layer.down.apply(&inner)?)?;
        }
        for chunk in chunks.iter_mut() {
            chunk.cache.advance(chunk.tokens.len());
        }
        self.logits(&x, chunks)
    }

    /// The head, for the rows that are wanted only.
    fn logits(&self, x: &Tensor, chunks: &[Chunk<'_>]) -> CandleResult<Vec<Option<Vec<f32>>>> {
        let (mut rows, mut end) = (Vec::new(), 0u32);
        for chunk in chunks {
            end += chunk.tokens.len() as u32;
            if chunk.wants_logits {
                rows.push(end - 1);
            }
        }
        if rows.is_empty() {
            return Ok(chunks.iter().map(|_| None).collect());
        }
        let n_rows = rows.len();
        let last = x.index_select(&Tensor::from_vec(rows, n_rows, &Device::Cpu)?, 0)?;
        let last = rms_norm(&last, &self.norm, self.shape.rms_eps as f32)?;
        let mut logits = self.head.apply(&last)?.to_vec2::<f32>()?.into_iter();
        Ok(chunks.iter().map(|chunk| if chunk.wants_logits { logits.next() } else { None }).collect())
    }

    fn attention(
        &self,
        i: usize,
        layer: &Layer,
        x: &Tensor,
        tables: &(Tensor, Tensor),
        chunks: &mut [Chunk<'_>],
    ) -> CandleResult<Tensor> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let n_rows = x.dim(0)?;
        let by_head = |x: Tensor, heads: usize| x.reshape((n_rows, heads, head_dim))?.transpose(0, 1);
        let query = self.shape.rope.rotate(&by_head(layer.query.apply(x)?, heads)?, tables)?;
        let key = self.shape.rope.rotate(&by_head(layer.key.apply(x)?, kv_heads)?, tables)?;
        let value = by_head(layer.value.apply(x)?, kv_heads)?;
        let mut outputs = Vec::with_capacity(chunks.len());
        let mut start = 0;
        for chunk in chunks {
            let n = chunk.tokens.len();
            let (keys, values) =
                chunk.cache.append(i, &key.narrow(1, start, n)?, &value.narrow(1, start, n)?)?;
            outputs.push(self.attend(&query.narrow(1, start, n)?.contiguous()?, &keys, &values)?);
            start += n;
        }
        layer.output.apply(&Tensor::cat(&outputs, 0)?)
    }

    /// Attention of `n` new tokens of one sequence, `(heads, n, head_dim)`, over all its keys and values,
    /// `(kv_heads, len, head_dim)`. The heads that share a key-value head are rows of one product.
    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> CandleResult<Tensor> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (n, len) = (query.dim(1)?, keys.dim(1)?);
        let grouped = query.reshape((kv_heads, heads / kv_heads * n, head_dim))?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut scores = (grouped.matmul(&keys.t()?)? * scale)?;
        if let Some(mask) = self.mask(n, len)? {
            scores = scores.reshape((heads, n, len))?.broadcast_add(&mask)?.reshape((
                kv_heads,
                heads / kv_heads * n,
                len,
            ))?;
        }
        let mixed = softmax_last_dim(&scores)?.matmul(values)?;
        mixed.reshape((heads, n, head_dim))?.transpose(0, 1)?.reshape((n, heads * head_dim))
    }

    /// What the last `n` of `len` positions must not see; `None` = they see all.
    fn mask(&self, n: usize, len: usize) -> CandleResult<Option<Tensor>> {
        let window = self.shape.sliding_window.unwrap_or(len);
        if n == 1 && len <= window {
            return Ok(None);
        }
        let first = len - n;
        let hidden = |position: usize, seen: usize| seen > position || seen + window <= position;
        let values = (first..len)
            .flat_map(|position| (0..len).map(move |seen| (position, seen)))
            .map(|(position, seen)| if hidden(position, seen) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        dense(values, &[n, len]).map(Some)
    }
}

/// The matrices of a layer, `(rows, columns)`.
fn matrices(shape: &Shape) -> [(Part, (usize, usize)); 7] {
    let (query, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    [
        (Part::Query, (query, shape.hidden)),
        (Part::Key, (kv, shape.hidden)),
        (Part::Value, (kv, shape.hidden)),
        (Part::Output, (shape.hidden, query)),
        (Part::Gate, (shape.feed_forward, shape.hidden)),
        (Part::Up, (shape.feed_forward, shape.hidden)),
        (Part::Down, (shape.hidden, shape.feed_forward)),
    ]
}

impl Layer {
    fn load(i: usize, shape: &Shape, weights: &mut dyn Weights, file: &str) -> Result<Self, LoadError> {
        let attention_norm = weights.vector(Role::Layer(i, Part::AttentionNorm), shape.hidden)?;
        let feed_forward_norm = weights.vector(Role::Layer(i, Part::FeedForwardNorm), shape.hidden)?;
        let mut linear = |(part, dims): (Part, (usize, usize))| -> Result<Linear, LoadError> {
            let weight = weights.matrix(Role::Layer(i, part), dims)?;
            let weight = weight.into_product().map_err(|e| LoadError::corrupt(file, e.to_string()))?;
            let bias = match bias_of(shape, part) {
                Some(bias) => Some(weights.vector(Role::Layer(i, bias), dims.0)?),
                None => None,
            };
            Ok(Linear { weight, bias })
        };
        let [query, key, value, output, gate, up, down] = matrices(shape).map(&mut linear);
        Ok(Self {
            attention_norm,
            query: query?,
            key: key?,
            value: value?,
            output: output?,
            feed_forward_norm,
            gate: gate?,
            up: up?,
            down: down?,
        })
    }
}

fn bias_of(shape: &Shape, part: Part) -> Option<Part> {
    let (has, bias) = match part {
        Part::Query => (shape.biases.qkv, Part::QueryBias),
        Part::Key => (shape.biases.qkv, Part::KeyBias),
        Part::Value => (shape.biases.qkv, Part::ValueBias),
        Part::Output => (shape.biases.output, Part::OutputBias),
        Part::Gate => (shape.biases.feed_forward, Part::GateBias),
        Part::Up => (shape.biases.feed_forward, Part::UpBias),
        Part::Down => (shape.biases.feed_forward, Part::DownBias),
        _ => return None,
    };
    has.then_some(bias)
}

impl Linear {
    fn apply(&self, x: &Tensor) -> CandleResult<Tensor> {
        let y = self.weight.apply(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
