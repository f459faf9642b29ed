//! The forward pass of encoders over packed rows: the texts of a batch one after the other, without padding.
//!
//! The arithmetic of a row depends on its own text only (see [`crate::kernels`]), so a text's vector has the same bits
//! in any batch.

use std::sync::Arc;

use super::config::{Family, Head, Shape};
use crate::{
    LoadError,
    kernels::{
        Activation, AttentionShape, HeadColumns, Isa, Linear, PackedFormat, PackedMatrix, Pool, RawTensor,
        Rotation, Scratch, StoredType, activate, add, attention_bidirectional, gated, layer_norm, rope,
    },
    weights::folder::FolderWeights,
};

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

/// Rows of floats as they are stored.
struct Table {
    dtype: StoredType,
    rows: usize,
    columns: usize,
    bytes: Box<[u8]>,
}

impl Table {
    fn row(&self, i: usize, out: &mut [f32]) {
        RawTensor { dtype: self.dtype, rows: self.rows, columns: self.columns, bytes: &self.bytes }
            .widen_row(i, out);
    }
}

struct Norm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

struct Layer {
    /// In front of attention; the first layer of ModernBERT has none. BERT's stands behind.
    attention_norm: Option<Norm>,
    qkv: Linear,
    output: Linear,
    feed_forward_norm: Norm,
    /// Gate and up together where the feed-forward is gated.
    up: Linear,
    down: Linear,
}

/// What turns hidden states into scores.
struct Top {
    /// Of the pooled state, with what follows it.
    dense: Option<(Linear, Between)>,
    classifier: Linear,
}

enum Between {
    Tanh,
    /// An activation, then a norm.
    Normed(Activation, Norm),
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

/// Reads tensors of an encoder by their names behind the prefix that models with a head have.
struct Reader<'a, 'p> {
    weights: &'a FolderWeights<'p>,
    prefix: &'static str,
    format: Option<PackedFormat>,
    pool: &'a Pool,
}

impl Reader<'_, '_> {
    fn corrupt(&self, what: String) -> LoadError {
        LoadError::corrupt(self.weights.name(), what)
    }

    fn body(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = vec![0.0; len];
        self.weights.tensor(name, &[len])?.widen_row(0, &mut values);
        Ok(values)
    }

    fn norm(&self, name: &str, len: usize) -> Result<Norm, LoadError> {
        let bias = format!("{name}.bias");
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), len)?,
            bias: if self.weights.has(&bias) { Some(self.vector(&bias, len)?) } else { None },
        })
    }

    fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Table, LoadError> {
        let raw = self.weights.tensor(&self.body(name), &[rows, columns])?;
        Ok(Table { dtype: raw.dtype, rows, columns, bytes: raw.bytes.into() })
    }

    /// Products over one input; a bias where the files have one.
    fn linear(&self, names: &[String], rows: usize, columns: usize) -> Result<Linear, LoadError> {
        let (mut parts, mut biases, mut has_bias) = (Vec::new(), Vec::new(), false);
        for name in names {
            let raw = self.weights.tensor(&format!("{name}.weight"), &[rows, columns])?;
            let format = self.format.filter(|_| raw.dtype.is_dense() && columns.is_multiple_of(32));
            let packed = match format {
                Some(format) => PackedMatrix::quantize(&raw, format, self.pool),
                None => PackedMatrix::pack(&raw, self.pool),
            };
            parts.push(packed.map_err(|e| self.corrupt(e))?);
            let bias = format!("{name}.bias");
            match self.weights.has(&bias) {
                true => {
                    biases.extend(self.vector(&bias, rows)?);
                    has_bias = true;
                }
                false => biases.resize(biases.len() + rows, 0.0),
            }
        }
        Linear::new(parts, has_bias.then_some(biases)).map_err(|e| self.corrupt(e))
    }

    fn layer(&self, i: usize, shape: &Shape) -> Result<Layer, LoadError> {
        let (hidden, f) = (shape.hidden, shape.feed_forward);
        if shape.family == Family::ModernBert {
            let at = |name: &str| self.body(&format!("layers.{i}.{name}"));
            return Ok(Layer {
                attention_norm: if i == 0 { None } else { Some(self.norm(&at("attn_norm"), hidden)?) },
                qkv: self.linear(&[at("attn.Wqkv")], 3 * hidden, hidden)?,
                output: self.linear(&[at("attn.Wo")], hidden, hidden)?,
                feed_forward_norm: self.norm(&at("mlp_norm"), hidden)?,
                up: self.linear(&[at("mlp.Wi")], 2 * f, hidden)?,
                down: self.linear(&[at("mlp.Wo")], hidden, f)?,
            });
        }
        let at = |name: &str| self.body(&format!("encoder.layer.{i}.{name}"));
        let qkv = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: self.linear(&qkv, hidden, hidden)?,
            output: self.linear(&[at("attention.output.dense")], hidden, hidden)?,
            attention_norm: Some(self.norm(&at("attention.output.LayerNorm"), hidden)?),
            up: self.linear(&[at("intermediate.dense")], f, hidden)?,
            down: self.linear(&[at("output.dense")], hidden, f)?,
            feed_forward_norm: self.norm(&at("output.LayerNorm"), hidden)?,
        })
    }

    fn top(&self, shape: &Shape) -> Result<Option<Top>, LoadError> {
        let hidden = shape.hidden;
        let linear = |name: &str, rows| self.linear(&[name.to_owned()], rows, hidden);
        let rows = match shape.head {
            Head::Embed => return Ok(None),
            Head::Score => 1,
            Head::Tokens(n) => n,
        };
        let normed = || -> Result<_, LoadError> {
            let between = Between::Normed(shape.activation, self.norm("head.norm", hidden)?);
            Ok(Some((linear("head.dense", hidden)?, between)))
        };
        Ok(Some(match (shape.family, shape.head) {
            (Family::ModernBert, _) => Top { dense: normed()?, classifier: linear("classifier", rows)? },
            (_, Head::Tokens(_)) => Top { dense: None, classifier: linear("classifier", rows)? },
            (Family::XlmRoberta, _) => Top {
                dense: Some((linear("classifier.dense", hidden)?, Between::Tanh)),
                classifier: linear("classifier.out_proj", rows)?,
            },
            (Family::Bert, _) => Top {
                dense: Some((linear("bert.pooler.dense", hidden)?, Between::Tanh)),
                classifier: linear("classifier", rows)?,
            },
        }))
    }
}

impl Encoder {
    /// Converts the weights; 16- and 32-bit matrices of layers become blocks of `format`.
    pub(crate) fn load(
        shape: Shape,
        weights: &FolderWeights<'_>,
        format: Option<PackedFormat>,
        pool: Arc<Pool>,
    ) -> Result<Self, LoadError> {
        let (prefix, word) = match shape.family {
            Family::Bert => ("bert.", "embeddings.word_embeddings.weight"),
            Family::XlmRoberta => ("roberta.", "embeddings.word_embeddings.weight"),
            Family::ModernBert => ("model.", "embeddings.tok_embeddings.weight"),
        };
        // A bare model's tensors have no prefix.
        let prefix = if weights.has(&format!("{prefix}{word}")) { prefix } else { "" };
        let reader = Reader { weights, prefix, format, pool: &pool };
        let hidden = shape.hidden;
        let modern = shape.family == Family::ModernBert;
        let words = reader.table(word, shape.vocabulary, hidden)?;
        let (positions, types) = match modern {
            true => (None, None),
            false => (
                Some(reader.table("embeddings.position_embeddings.weight", shape.positions, hidden)?),
                Some(reader.table("embeddings.token_type_embeddings.weight", shape.token_types, hidden)?),
            ),
        };
        let embedding_norm = if modern { "embeddings.norm" } else { "embeddings.LayerNorm" };
        let embedding_norm = reader.norm(&reader.body(embedding_norm), hidden)?;
        let final_norm = if modern { Some(reader.norm(&reader.body("final_norm"), hidden)?) } else { None };
        let layers = (0..shape.layers).map(|i| reader.layer(i, &shape)).collect::<Result<Vec<_>, _>>()?;
        let top = reader.top(&shape)?;
        let isa = Isa::detect();
        let buffers = Buffers::default();
        Ok(Self {
            shape,
            words,
            positions,
            types,
            embedding_norm,
            layers,
            final_norm,
            top,
            isa,
            pool,
            buffers,
        })
    }

    /// Tokens that fit.
    /// The threads it computes on.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn max_tokens(&self) -> usize {
        self.shape.positions - self.shape.first_position
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

    /// Bytes that the weights will hold, at most: f32 as stored, less where they are quantised.
    pub(crate) fn weights_bytes(shape: &Shape, format: Option<PackedFormat>) -> u64 {
        let bytes = |rows: usize, columns: usize| {
            let format = format.filter(|_| columns.is_multiple_of(32)).unwrap_or(PackedFormat::F32);
            PackedMatrix::bytes_as(format, rows, columns)
        };
        let (hidden, f) = (shape.hidden, shape.feed_forward);
        let gates = if shape.family == Family::ModernBert { 2 } else { 1 };
        let layer = bytes(3 * hidden, hidden)
            .saturating_add(bytes(hidden, hidden))
            .saturating_add(bytes(gates * f, hidden))
            .saturating_add(bytes(hidden, f))
            .saturating_add(4 * (10 * hidden + f) as u64);
        let rows = shape.vocabulary + shape.positions + shape.token_types;
        (shape.layers as u64)
            .saturating_mul(layer)
            .saturating_add((4 * rows as u64).saturating_mul(hidden as u64))
            .saturating_add(2 * bytes(hidden, hidden))
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
