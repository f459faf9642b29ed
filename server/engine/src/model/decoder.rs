//! The forward pass over packed rows: every token of a step, whichever sequence it belongs to, goes through the same
//! products; attention finds its keys and values through each sequence's block table.
//!
//! Buffers are allocated once and reused. The arithmetic of a row never depends on the rows beside it (see
//! [`crate::kernels`]), so a token's logits have the same bits in any batch and any chunking.

use std::sync::Arc;

use super::{Shape, layer::Layer, load::Source};
use crate::{
    LoadError,
    kernels::{
        HeadColumns, Isa, KvStore, Linear, Pool, RawTensor, Rotation, Scratch, SequenceRows, StoredType, add,
        attention, gated, rms_norm, rms_norm_heads, rope, softcap,
    },
    weights::Role,
};

/// Tokens per block of keys and values.
pub(crate) use crate::kernels::BLOCK_TOKENS;

/// A loaded model with the store of its keys and values.
pub(crate) struct Decoder {
    pub(crate) shape: Shape,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    isa: Isa,
    pool: Arc<Pool>,
    kv: KvStore,
    buffers: Buffers,
}

/// Some new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSequence<'a> {
    pub(crate) tokens: &'a [u32],
    /// Position of the first of them.
    pub(crate) start: usize,
    /// `blocks[i]` holds positions `32 i .. 32 i + 32`; as many as reach behind the last token.
    pub(crate) blocks: &'a [u32],
    /// Logits are wanted after each of the last this many tokens.
    pub(crate) n_logits: usize,
}

/// Logits of a step: for each sequence in turn, and within it for each wanted token in turn, one row.
pub(crate) struct Logits<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) vocabulary: usize,
}

#[cfg(test)]
impl<'a> Logits<'a> {
    pub(crate) fn rows(self) -> std::slice::ChunksExactMut<'a, f32> {
        self.values.chunks_exact_mut(self.vocabulary)
    }
}

/// Where the rows of tokens come from.
enum Embedding {
    /// The head's own matrix.
    Tied,
    /// As stored in the file.
    Stored { dtype: StoredType, rows: usize, columns: usize, bytes: Box<[u8]> },
}

/// All of a step's intermediate values; grown to the largest step.
#[derive(Default)]
struct Buffers {
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    local_cos: Vec<f32>,
    local_sin: Vec<f32>,
    /// The residual.
    x: Vec<f32>,
    normed: Vec<f32>,
    /// What a block of the network adds, where it is normed before it is added.
    added: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    last: Vec<f32>,
    logits: Vec<f32>,
    scratch: Scratch,
}

/// The first `n` elements, which exist afterwards.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

impl Embedding {
    fn load(raw: RawTensor<'_>) -> Self {
        Self::Stored { dtype: raw.dtype, rows: raw.rows, columns: raw.columns, bytes: raw.bytes.into() }
    }

    fn row(&self, head: &Linear, id: u32, out: &mut [f32]) {
        match self {
            Self::Tied => head.row(id as usize, out),
            Self::Stored { dtype, rows, columns, bytes } => {
                RawTensor { dtype: *dtype, rows: *rows, columns: *columns, bytes }
                    .widen_row(id as usize, out);
            }
        }
    }
}

impl Decoder {
    /// Converts the weights. `kv` was made for this shape.
    pub(crate) fn load(
        shape: Shape,
        source: &mut Source<'_>,
        pool: Arc<Pool>,
        kv: KvStore,
    ) -> Result<Self, LoadError> {
        let dims = (shape.vocabulary, shape.hidden);
        let (embedding, head) = match shape.tied_head {
            true => (Embedding::Tied, source.linear(&pool, &[(Role::Embedding, dims)], None)?),
            false => {
                let raw = source.weights.matrix(Role::Embedding, dims)?;
                let n_bytes = raw.bytes.len() as u64;
                let embedding = Embedding::load(raw);
                source.weights.converted(n_bytes);
                (embedding, source.linear(&pool, &[(Role::Head, dims)], None)?)
            }
        };
        let layers = (0..shape.layers)
            .map(|i| Layer::load(i, &shape, source, &pool))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = source.weights.vector(Role::FinalNorm, shape.hidden)?;
        let isa = Isa::detect();
        Ok(Self { shape, embedding, layers, norm, head, isa, pool, kv, buffers: Buffers::default() })
    }

    /// The threads it computes on.
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    /// Bytes that the weights will hold in memory; checks names, shapes and types of all of them on the way.
    pub(crate) fn weights_bytes(shape: &Shape, source: &Source<'_>) -> Result<u64, LoadError> {
        let dims = (shape.vocabulary, shape.hidden);
        let mut total = match shape.tied_head {
            true => source.packed_bytes(Role::Embedding, dims)?,
            false => {
                let stored = source.weights.matrix(Role::Embedding, dims)?.bytes.len() as u64;
                stored.saturating_add(source.packed_bytes(Role::Head, dims)?)
            }
        };
        for layer in 0..shape.layers {
            for (part, dims) in Layer::matrices(shape) {
                total = total.saturating_add(source.packed_bytes(Role::Layer(layer, part), dims)?);
            }
        }
        Ok(total)
    }

    /// Computes one step: keys and values of all tokens enter the store, and the wanted logits come back.
    ///
    /// # Errors
    /// In words, when a sequence does not fit its blocks or names a token or block that does not exist; nothing was
    /// computed then.
    pub(crate) fn forward(&mut self, sequences: &[StepSequence<'_>]) -> Result<Logits<'_>, String> {
        self.check(sequences)?;
        let rows = self.embed(sequences);
        let Self { shape, layers, isa, pool, kv, buffers, .. } = self;
        let (isa, pool) = (*isa, &**pool);
        let (hidden, f, eps) = (shape.hidden, shape.feed_forward, shape.rms_eps as f32);
        let n = buffers.positions.len();
        let mixed_width = shape.heads * shape.head_dim;
        let Buffers {
            cos,
            sin,
            local_cos,
            local_sin,
            x,
            normed,
            added,
            qkv,
            mixed,
            gate_up,
            inner,
            scratch,
            ..
        } = buffers;
        let x = sized(x, n * hidden);
        let normed = sized(normed, n * hidden);
        let added = sized(added, if shape.family.has_post_norms() { n * hidden } else { 0 });
        let qkv = sized(qkv, n * shape.qkv_width());
        let mixed = sized(mixed, n * mixed_width);
        let gate_up = sized(gate_up, n * 2 * f);
        let inner = sized(inner, n * f);
        let columns =
            |first, heads| HeadColumns { width: shape.qkv_width(), first, heads, head_dim: shape.head_dim };
        for (i, layer) in layers.iter().enumerate() {
            rms_norm(isa, pool, x, &layer.attention_norm, eps, normed);
            layer.qkv.apply(isa, pool, normed, qkv, scratch);
            if let Some((query_norm, key_norm)) = &layer.query_key_norms {
                rms_norm_heads(isa, pool, qkv, columns(0, shape.heads), query_norm, eps);
                rms_norm_heads(isa, pool, qkv, columns(mixed_width, shape.kv_heads), key_norm, eps);
            }
            let (rotation, cos, sin) = match &shape.local_rope {
                Some(local) if shape.is_local(i) => (local, &*local_cos, &*local_sin),
                _ => (&shape.rope, &*cos, &*sin),
            };
            let rotation = Rotation {
                columns: columns(0, shape.heads + shape.kv_heads),
                rotated_dim: 2 * rotation.inverse_frequencies.len(),
                interleaved: rotation.interleaved,
            };
            rope(isa, pool, qkv, &rotation, cos, sin);
            attention(isa, pool, kv, i, &shape.attention(i), &rows, qkv, mixed);
            match &layer.post_norms {
                None => layer.output.apply_add(isa, pool, mixed, x, scratch),
                Some((attention_norm, _)) => {
                    layer.output.apply(isa, pool, mixed, added, scratch);
                    rms_norm(isa, pool, added, attention_norm, eps, normed);
                    add(isa, pool, normed, x);
                }
            }
            rms_norm(isa, pool, x, &layer.feed_forward_norm, eps, normed);
            layer.gate_up.apply(isa, pool, normed, gate_up, scratch);
            gated(isa, pool, shape.activation, gate_up, f, inner);
            match &layer.post_norms {
                None => layer.down.apply_add(isa, pool, inner, x, scratch),
                Some((_, feed_forward_norm)) => {
                    layer.down.apply(isa, pool, inner, added, scratch);
                    rms_norm(isa, pool, added, feed_forward_norm, eps, normed);
                    add(isa, pool, normed, x);
                }
            }
        }
        Ok(self.logits(sequences))
    }

    /// Fills the residual, the positions and the rotations; says which rows are whose.
    fn embed<'s>(&mut self, sequences: &[StepSequence<'s>]) -> Vec<SequenceRows<'s>> {
        let Self { shape, embedding, head, buffers, .. } = self;
        let n: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let x = sized(&mut buffers.x, n * shape.hidden);
        let mut rows = Vec::with_capacity(sequences.len());
        let mut out = x.chunks_exact_mut(shape.hidden);
        buffers.positions.clear();
        for sequence in sequences {
            let (start, n) = (sequence.start, sequence.tokens.len());
            rows.push(SequenceRows { blocks: sequence.blocks, start, n, first_row: buffers.positions.len() });
            buffers.positions.extend((start..start + n).map(|position| position as u32));
            for (id, row) in sequence.tokens.iter().zip(&mut out) {
                embedding.row(head, *id, row);
                if let Some(scale) = shape.embedding_scale {
                    row.iter_mut().for_each(|value| *value *= scale);
                }
            }
        }
        let Buffers { positions, cos, sin, local_cos, local_sin, .. } = buffers;
        shape.rope.fill(positions, cos, sin);
        if let Some(local) = &shape.local_rope {
            local.fill(positions, local_cos, local_sin);
        }
        rows
    }

    /// The head, for the rows that are wanted only.
    fn logits(&mut self, sequences: &[StepSequence<'_>]) -> Logits<'_> {
        let Self { shape, norm, head, isa, pool, buffers, .. } = self;
        let (hidden, vocabulary) = (shape.hidden, shape.vocabulary);
        let n: usize = sequences.iter().map(|sequence| sequence.n_logits).sum();
        let Buffers { x, normed, last, logits, scratch, .. } = buffers;
        let last = sized(last, n * hidden);
        let (mut end, mut taken) = (0, 0);
        for sequence in sequences {
            end += sequence.tokens.len();
            for row in end - sequence.n_logits..end {
                last[taken * hidden..][..hidden].copy_from_slice(&x[row * hidden..][..hidden]);
                taken += 1;
            }
        }
        let normed = sized(normed, n * hidden);
        let values = sized(logits, n * vocabulary);
        rms_norm(*isa, pool, last, norm, shape.rms_eps as f32, normed);
        head.apply(*isa, pool, normed, values, scratch);
        if let Some(cap) = shape.logit_softcap {
            softcap(*isa, pool, values, cap);
        }
        Logits { values, vocabulary }
    }

    fn check(&self, sequences: &[StepSequence<'_>]) -> Result<(), String> {
        for sequence in sequences {
            let end = sequence.start + sequence.tokens.len();
            if sequence.blocks.len() * BLOCK_TOKENS < end {
                return Err(format!("{} blocks do not hold {end} tokens", sequence.blocks.len()));
            }
            if sequence.n_logits > sequence.tokens.len() {
                return Err(format!("{} logits of {} tokens", sequence.n_logits, sequence.tokens.len()));
            }
            if let Some(id) = sequence.tokens.iter().find(|id| **id as usize >= self.shape.vocabulary) {
                return Err(format!("token {id} is outside the vocabulary of {}", self.shape.vocabulary));
            }
            if let Some(block) = sequence.blocks.iter().find(|block| **block as usize >= self.kv.n_blocks()) {
                return Err(format!("block {block} is outside the store of {}", self.kv.n_blocks()));
            }
        }
        Ok(())
    }
}
