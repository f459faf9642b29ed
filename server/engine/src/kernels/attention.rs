//! Attention of all rows of a step over the blocks of their sequences, and attention without a cache for encoders.
//!
//! The order of operations for one output row depends on its position and the 32 tokens of a block only: scores are
//! sums over the dimensions in order; blocks are taken in order of position, each with one step of the online softmax;
//! within a block the values are added token by token. So the result has the same bits however rows are batched,
//! chunked or spread over threads. Slots that a row does not see are never multiplied in, whatever lies in them.

#![allow(unsafe_code, reason = "a kernel module: tasks write disjoint parts of the store and of the output")]

mod bidirectional;
mod tile;

use super::{
    isa::Isa,
    kv_store::{BLOCK_TOKENS, HeadLayout, KvStore, KvType, write_token},
    pool::Pool,
    simd::{F16, F32, Int8, Simd, dispatched},
};
pub(crate) use bidirectional::attention_bidirectional;
use tile::{Blocks, TILE, Tile, Visible, attend};

/// What attention is in a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    /// Query heads, a multiple of `kv_heads`; consecutive ones share a kv head.
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Factor of the scores, commonly 1 / sqrt(head_dim).
    pub(crate) scale: f32,
    /// Tokens that a row sees, its own included; in bidirectional attention, about half of them on either side.
    pub(crate) window: Option<usize>,
    /// Scores become cap · tanh(score / cap).
    pub(crate) softcap: Option<f32>,
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Floats in a row of `qkv`.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self, qkv: &[f32], rows: usize, out: &[f32]) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "heads are a multiple of kv heads"
        );
        assert!(qkv.len() >= rows * self.width(), "qkv has a row for each token");
        assert!(out.len() >= rows * self.heads * self.head_dim, "the output has a row for each token");
    }
}

/// The rows of one sequence in a step: positions `start..start + n`, in rows `first_row..first_row + n`. `blocks[i]`
/// holds positions `32 i..32 i + 32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceRows<'a> {
    pub(crate) blocks: &'a [u32],
    pub(crate) start: usize,
    pub(crate) n: usize,
    pub(crate) first_row: usize,
}

/// Below so many multiplications a call is over before the other threads have woken.
const ALONE: usize = 1 << 16;

/// Writes the keys and values of all rows into `layer` of the store, then attends.
///
/// `qkv` is (rows, (heads + 2 kv_heads) · head_dim), q | k | v in each row, after rotation; `out` is
/// (rows, heads · head_dim). Sequences are in the order of their rows.
///
/// # Panics
/// Where shapes, rows or blocks contradict each other: faults of the caller.
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel: each is its own thing, and a struct would only rename them"
)]
pub(crate) fn attention(
    isa: Isa,
    pool: &Pool,
    store: &mut KvStore,
    layer: usize,
    shape: &AttentionShape,
    sequences: &[SequenceRows<'_>],
    qkv: &[f32],
    out: &mut [f32],
) {
    let rows = sequences.iter().fold(0, |end, s| {
        assert!(s.first_row >= end, "sequences are in the order of their rows");
        assert!(
            s.start + s.n <= s.blocks.len() * BLOCK_TOKENS,
            "a sequence has blocks for all its positions"
        );
        s.first_row + s.n
    });
    shape.check(qkv, rows, out);
    assert!(layer < store.layers() && store.kv_heads == shape.kv_heads, "the store is made for this model");
    assert!(store.layout.head_dim == shape.head_dim, "the store is made for heads of this size");
    store.claim(sequences.iter().map(|s| {
        let written = s.start / BLOCK_TOKENS..(s.start + s.n).div_ceil(BLOCK_TOKENS);
        (s.blocks, if s.n == 0 { 0..0 } else { written })
    }));

    let step = Step {
        shape: *shape,
        layout: store.layout,
        slab: store.slab(layer),
        block_stride: store.block_stride(),
        qkv: qkv.as_ptr(),
        out: out.as_mut_ptr(),
    };
    let step = &step;
    let chunks = |s: &SequenceRows<'_>| (s.n * shape.group()).div_ceil(TILE);
    // The last rows of a prompt see the most, so they go first: what is left at the end is short.
    let tasks: Vec<_> = sequences
        .iter()
        .flat_map(|s| {
            (0..chunks(s)).rev().flat_map(move |c| (0..shape.kv_heads).map(move |head| (s, head, c * TILE)))
        })
        .collect();
    let work: usize = sequences.iter().map(|s| s.n * (s.start + s.n) * shape.heads * shape.head_dim).sum();
    let run = |n: usize, task: &(dyn Fn(usize) + Sync)| {
        if work < ALONE { (0..n).for_each(task) } else { pool.run(n, task) }
    };
    // A task that is alone with its kv head writes what it reads; otherwise everything is written first.
    let alone = sequences.iter().all(|s| chunks(s) <= 1);
    if !alone {
        run(sequences.len() * shape.kv_heads, &|i| {
            write(isa, step, &sequences[i / shape.kv_heads], i % shape.kv_heads);
        });
    }
    run(tasks.len(), &|i| {
        let (sequence, head, first) = tasks[i];
        if alone {
            write(isa, step, sequence, head);
        }
        let tile = step.tile(sequence, head, first);
        match step.layout.kv_type {
            KvType::F32 => attend_f32(isa, &tile),
            KvType::F16 => attend_f16(isa, &tile),
            KvType::Int8 => attend_int8(isa, &tile),
        }
    });
}

/// A call of [`attention`], as its tasks see it. Tasks write disjoint parts behind the pointers.
struct Step {
    shape: AttentionShape,
    layout: HeadLayout,
    slab: *mut u8,
    block_stride: usize,
    qkv: *const f32,
    out: *mut f32,
}

// SAFETY: a task writes the blocks of its own sequence and kv head (`KvStore::claim`) and the output of its own rows and
// heads; `attention` holds the borrows of all three buffers until all tasks have ended.
unsafe impl Sync for Step {}

impl Step {
    fn tile<'a>(&'a self, sequence: &SequenceRows<'a>, head: usize, first: usize) -> Tile<'a> {
        let Self { shape, layout, .. } = self;
        let (group, width) = (shape.group(), shape.width());
        // SAFETY: `attention` has checked that the buffers hold all rows, and that the blocks are in the slab.
        unsafe {
            Tile {
                shape,
                layout,
                q: self.qkv.add(sequence.first_row * width + head * group * shape.head_dim),
                out: self.out.add((sequence.first_row * shape.heads + head * group) * shape.head_dim),
                first,
                n: TILE.min(sequence.n * group - first),
                start: sequence.start,
                blocks: Blocks {
                    base: self.slab.add(head * layout.bytes),
                    stride: self.block_stride,
                    table: Some(sequence.blocks),
                },
                visible: Visible::Before,
            }
        }
    }
}

#[inline(always)]
fn write_rows<S: Simd>(s: S, step: &Step, sequence: &SequenceRows<'_>, head: usize) {
    let Step { shape, layout, .. } = step;
    let key = (shape.heads + head) * shape.head_dim;
    for i in 0..sequence.n {
        let position = sequence.start + i;
        let block = sequence.blocks[position / BLOCK_TOKENS] as usize;
        // SAFETY: `attention` has checked that the block is in the slab and written by this sequence only, and that
        // the row is in the buffer; this kv head of the sequence is written by one task.
        unsafe {
            let row = step.qkv.add((sequence.first_row + i) * shape.width());
            let head = step.slab.add(block * step.block_stride + head * layout.bytes);
            let value = row.add(key + shape.kv_heads * shape.head_dim);
            write_token(s, layout, head, position % BLOCK_TOKENS, row.add(key), value);
        }
    }
}

dispatched! { fn write = write_rows; (step: &Step, sequence: &SequenceRows<'_>, head: usize) }
dispatched! { fn attend_f32 = attend::<_, F32>; (tile: &Tile<'_>) }
dispatched! { fn attend_f16 = attend::<_, F16>; (tile: &Tile<'_>) }
dispatched! { fn attend_int8 = attend::<_, Int8>; (tile: &Tile<'_>) }

#[cfg(test)]
mod tests;
