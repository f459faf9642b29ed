//! Attention without a cache: every token of a sequence sees every other.

use std::cell::RefCell;

use super::{
    AttentionShape, attend_f32,
    tile::{Blocks, TILE, Tile, Visible},
};
use crate::kernels::{
    isa::Isa,
    kv_store::{BLOCK_TOKENS, HeadLayout, KvType, write_token},
    pool::Pool,
    simd::{Simd, dispatched},
};

thread_local! {
    /// Keys and values of one sequence and kv head, laid out as blocks of the store.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A call, as its tasks see it. Tasks write disjoint parts of the output.
struct Call<'a> {
    shape: &'a AttentionShape,
    layout: HeadLayout,
    qkv: *const f32,
    out: *mut f32,
}

// SAFETY: a task writes the output of its own sequence and heads, and the call's function holds both borrows until all
// tasks have ended.
unsafe impl Sync for Call<'_> {}

/// `lens` are the tokens of each sequence, packed one after the other in `qkv`, (rows, (heads + 2 kv_heads) · head_dim),
/// and `out`, (rows, heads · head_dim). With a window a token sees window / 2 tokens on either side and itself. The
/// result for a sequence has the same bits whatever is beside it.
///
/// # Panics
/// Where shapes and buffers contradict each other: faults of the caller.
pub(crate) fn attention_bidirectional(
    isa: Isa,
    pool: &Pool,
    shape: &AttentionShape,
    lens: &[usize],
    qkv: &[f32],
    out: &mut [f32],
) {
    shape.check(qkv, lens.iter().sum(), out);
    assert!(
        shape.head_dim <= crate::kernels::kv_store::MAX_HEAD_DIM,
        "heads are at most of the largest size"
    );
    let layout = HeadLayout::new(KvType::F32, shape.head_dim);
    let call = Call { shape, layout, qkv: qkv.as_ptr(), out: out.as_mut_ptr() };
    let call = &call;
    // The longest first, so that no long one is left to a single thread at the end.
    let mut sequences = Vec::with_capacity(lens.len());
    let mut first_row = 0;
    for n in lens {
        sequences.push((first_row, *n));
        first_row += n;
    }
    sequences.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    pool.run(sequences.len() * shape.kv_heads, &|i| {
        let (first_row, n) = sequences[i / shape.kv_heads];
        let head = i % shape.kv_heads;
        let blocks = n.div_ceil(BLOCK_TOKENS);
        PACKED.with_borrow_mut(|packed| {
            let floats = layout.bytes / size_of::<f32>();
            if packed.len() < blocks * floats {
                packed.resize(blocks * floats, 0.0);
            }
            let base = packed.as_mut_ptr();
            pack(isa, call, (first_row, n), head, base);
            let group = shape.group();
            for first in (0..n * group).step_by(TILE) {
                // A long text's head is seconds of work on a machine that has little time for us.
                pool.beat();
                // SAFETY: `check` has seen that the buffers hold all rows.
                let (q, out) = unsafe {
                    (
                        call.qkv.add(first_row * shape.width() + head * group * shape.head_dim),
                        call.out.add((first_row * shape.heads + head * group) * shape.head_dim),
                    )
                };
                let blocks = Blocks { base: base.cast(), stride: layout.bytes, table: None };
                let n_vectors = TILE.min(n * group - first);
                let (layout, visible) = (&call.layout, Visible::All(n));
                attend_f32(
                    isa,
                    &Tile { shape, layout, q, out, first, n: n_vectors, start: 0, blocks, visible },
                );
            }
        });
    });
}

#[inline(always)]
fn pack_rows<S: Simd>(s: S, call: &Call<'_>, (first_row, n): (usize, usize), head: usize, packed: *mut f32) {
    let Call { shape, layout, .. } = call;
    let key = (shape.heads + head) * shape.head_dim;
    for i in 0..n {
        // SAFETY: the caller has made room for the blocks of `n` tokens, and checked that the rows are in the buffer.
        unsafe {
            let row = call.qkv.add((first_row + i) * shape.width() + key);
            let block = packed.cast::<u8>().add(i / BLOCK_TOKENS * layout.bytes);
            write_token(s, layout, block, i % BLOCK_TOKENS, row, row.add(shape.kv_heads * shape.head_dim));
        }
    }
}

dispatched! { fn pack = pack_rows; (call: &Call<'_>, rows: (usize, usize), head: usize, packed: *mut f32) }
