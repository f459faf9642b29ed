//! The inner kernel: up to [`TILE`] query vectors that share a kv head, over the blocks that they see.

use std::mem::MaybeUninit;

use super::AttentionShape;
use crate::kernels::{
    kv_store::{BLOCK_TOKENS, HeadLayout, MAX_HEAD_DIM},
    simd::{Element, MAX_LANES, Simd, math},
};

/// Query vectors of a task: so many that their scratch stays in the first cache beside a block of keys and values.
pub(super) const TILE: usize = 32;
/// The most query vectors that share a load of keys or values (`Simd::TILE_ROWS` of any instruction set).
const MAX_ROWS: usize = 8;

/// Where the blocks of a kv head lie: number `i` of the table is at `base + table[i] * stride`; without a table the
/// blocks follow each other.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    pub(super) base: *const u8,
    pub(super) stride: usize,
    pub(super) table: Option<&'a [u32]>,
}

impl Blocks<'_> {
    #[inline(always)]
    fn get(&self, i: usize) -> *const u8 {
        let index = self.table.map_or(i, |table| table[i] as usize);
        // The tile's maker vouches for the blocks; the address is only formed here.
        self.base.wrapping_add(index * self.stride)
    }
}

#[derive(Clone, Copy)]
pub(super) enum Visible {
    /// A token sees itself and those before it.
    Before,
    /// A token sees all of so many.
    All(usize),
}

/// The work of one task. Vector `v` of a sequence and kv head is query head `v % group` of token `v / group`.
///
/// Whoever makes one vouches that `q` and `out` point to the first query head of the group in the sequence's first row,
/// that the rows of all vectors lie there, that nobody else touches their output while it runs, and that all blocks up
/// to the last visible token are readable and not written meanwhile.
pub(super) struct Tile<'a> {
    pub(super) shape: &'a AttentionShape,
    pub(super) layout: &'a HeadLayout,
    pub(super) q: *const f32,
    pub(super) out: *mut f32,
    /// Vectors `first..first + n`.
    pub(super) first: usize,
    pub(super) n: usize,
    /// Position of the sequence's first row.
    pub(super) start: usize,
    pub(super) blocks: Blocks<'a>,
    pub(super) visible: Visible,
}

impl Tile<'_> {
    /// The tokens that vector `v` sees: never none.
    fn visible(&self, v: usize) -> (usize, usize) {
        let position = self.start + v / self.shape.group();
        match (self.visible, self.shape.window) {
            (Visible::Before, None) => (0, position + 1),
            (Visible::Before, Some(window)) => ((position + 1).saturating_sub(window.max(1)), position + 1),
            (Visible::All(n), None) => (0, n),
            (Visible::All(n), Some(window)) => {
                (position.saturating_sub(window / 2), n.min((position + 1).saturating_add(window / 2)))
            }
        }
    }
}

/// State of the online softmax of all vectors of a tile.
#[repr(align(64))]
struct Scratch {
    /// (vectors, padded head_dim), scaled.
    q: [f32; TILE * MAX_HEAD_DIM],
    /// (vectors, padded head_dim): Σ e^(score - max) · value.
    sums: [f32; TILE * MAX_HEAD_DIM],
    /// (rows, 32): scores, then their exponentials.
    p: [f32; MAX_ROWS * BLOCK_TOKENS],
    /// Σ e^(score - max) in the lanes of a vector, for each query vector.
    weights: [f32; TILE * MAX_LANES],
    max: [f32; TILE],
    visible: [(usize, usize); TILE],
}

#[inline(always)]
pub(super) fn attend<S: Simd, E: Element>(s: S, tile: &Tile<'_>) {
    let (n, padded, head_dim) = (tile.n, tile.layout.padded, tile.layout.head_dim);
    // Whole vectors of a head.
    let whole = head_dim - head_dim % S::LANES;
    debug_assert!(n <= TILE && padded <= MAX_HEAD_DIM && S::TILE_ROWS <= MAX_ROWS);
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: the scratch is used through pointers to parts that are written first: here for all `n` vectors. Pointers
    // into the tile's buffers stay within what its maker vouches for.
    unsafe {
        let (q, sums) = (&raw mut (*scratch).q as *mut f32, &raw mut (*scratch).sums as *mut f32);
        let weights = &raw mut (*scratch).weights as *mut f32;
        let max = &raw mut (*scratch).max as *mut f32;
        let visible = &raw mut (*scratch).visible as *mut (usize, usize);
        let (mut from, mut to) = (usize::MAX, 0);
        for v in 0..n {
            let source = tile.q.add(offset(tile, v, tile.shape.width()));
            for d in (0..padded).step_by(S::LANES) {
                let x = if d < whole {
                    s.load(source.add(d))
                } else {
                    s.load_first(source.add(d), head_dim.saturating_sub(d))
                };
                s.store(q.add(v * padded + d), s.mul(x, s.splat(tile.shape.scale)));
                s.store(sums.add(v * padded + d), s.splat(0.0));
            }
            s.store(weights.add(v * MAX_LANES), s.splat(0.0));
            *max.add(v) = f32::NEG_INFINITY;
            let range = tile.visible(tile.first + v);
            *visible.add(v) = range;
            (from, to) = (from.min(range.0), to.max(range.1));
        }

        let (first, end) = (from / BLOCK_TOKENS, to.div_ceil(BLOCK_TOKENS));
        for b in first..end {
            let start = tile.blocks.get(b);
            let next = if b + 1 < end { tile.blocks.get(b + 1) } else { start };
            let ahead = (next as isize).wrapping_sub(start as isize);
            let block = Block { start, ahead, position: b * BLOCK_TOKENS };
            let mut v = 0;
            while v < n {
                let rows = S::TILE_ROWS.min(n - v);
                match rows {
                    1 => step::<S, E, 1>(s, tile, scratch, &block, v),
                    2 => step::<S, E, 2>(s, tile, scratch, &block, v),
                    3 => step::<S, E, 3>(s, tile, scratch, &block, v),
                    4 => step::<S, E, 4>(s, tile, scratch, &block, v),
                    5 => step::<S, E, 5>(s, tile, scratch, &block, v),
                    6 => step::<S, E, 6>(s, tile, scratch, &block, v),
                    7 if S::TILE_ROWS >= 7 => step::<S, E, 7>(s, tile, scratch, &block, v),
                    8 if S::TILE_ROWS >= 8 => step::<S, E, 8>(s, tile, scratch, &block, v),
                    _ => unreachable!("no instruction set has tiles of more rows"),
                }
                v += rows;
            }
        }

        for v in 0..n {
            let inverse = 1.0 / s.reduce_add(s.load(weights.add(v * MAX_LANES)));
            let out = tile.out.add(offset(tile, v, tile.shape.heads * head_dim));
            for d in (0..head_dim).step_by(S::LANES) {
                let x = s.mul(s.load(sums.add(v * padded + d)), s.splat(inverse));
                if d < whole {
                    s.store(out.add(d), x);
                } else {
                    s.store_first(out.add(d), x, head_dim - d);
                }
            }
        }
    }
}

/// Floats from the first head of the sequence's first row to vector `first + v`, in rows of `width` floats.
#[inline(always)]
fn offset(tile: &Tile<'_>, v: usize, width: usize) -> usize {
    let (v, group) = (tile.first + v, tile.shape.group());
    v / group * width + v % group * tile.shape.head_dim
}

struct Block {
    start: *const u8,
    /// Bytes from here to the next block, or 0: what is loaded there is fetched ahead at the same offset.
    ahead: isize,
    /// Of the first token.
    position: usize,
}

/// Takes `R` query vectors from `v` one block further.
///
/// # Safety
/// As in [`attend`], for initialised vectors `v..v + R` of the scratch.
#[inline(always)]
unsafe fn step<S: Simd, E: Element, const R: usize>(
    s: S,
    tile: &Tile<'_>,
    scratch: *mut Scratch,
    block: &Block,
    v: usize,
) {
    let (padded, head_dim) = (tile.layout.padded, tile.layout.head_dim);
    // SAFETY: as in `attend`; a block has its parts where the layout says.
    unsafe {
        let q = (&raw mut (*scratch).q as *mut f32).add(v * padded);
        let sums = (&raw mut (*scratch).sums as *mut f32).add(v * padded);
        let p = &raw mut (*scratch).p as *mut f32;
        let visible = (&raw const (*scratch).visible as *const (usize, usize)).add(v);

        // Which of the 32 tokens each vector sees.
        let mut seen = [(0usize, 0usize); R];
        let (mut common, mut any) = ((0, BLOCK_TOKENS), false);
        for r in 0..R {
            let (from, to) = *visible.add(r);
            let from = from.saturating_sub(block.position).min(BLOCK_TOKENS);
            let to = to.saturating_sub(block.position).min(BLOCK_TOKENS);
            seen[r] = (from, to.max(from));
            common = (common.0.max(from), common.1.min(to));
            any |= from < to;
        }
        if !any {
            return;
        }
        // The first vectors of a tile fetch the next block for all.
        let ahead = if v == 0 { block.ahead } else { 0 };
        let keys = block.start.cast::<E::T>();
        let mut column = 0;
        while column < BLOCK_TOKENS {
            outer::<S, E, R, 2>(
                s,
                head_dim,
                (q, padded),
                (keys.add(column), BLOCK_TOKENS),
                (p.add(column), BLOCK_TOKENS),
                None,
                ahead,
            );
            column += 2 * S::LANES;
        }
        let factors = softmax::<S, E, R>(s, tile, scratch, block, v, &seen);

        let values = block.start.add(tile.layout.values).cast::<E::T>();
        if common == (0, BLOCK_TOKENS) {
            accumulate::<S, E, R>(s, BLOCK_TOKENS, p, values, (sums, padded), &factors, ahead);
            return;
        }
        // Each vector's tokens in their order: what not all of them see goes one by one, before and after the rest.
        let together = common.0 < common.1;
        for r in 0..R {
            let (from, to) = seen[r];
            let (p, sums) = (p.add(r * BLOCK_TOKENS), sums.add(r * padded));
            let n = if together { common.0 - from } else { to - from };
            accumulate::<S, E, 1>(
                s,
                n,
                p.add(from),
                values.add(from * padded),
                (sums, padded),
                &[factors[r]],
                0,
            );
        }
        if together {
            let n = common.1 - common.0;
            let values = values.add(common.0 * padded);
            accumulate::<S, E, R>(s, n, p.add(common.0), values, (sums, padded), &[1.0; R], ahead);
            for r in 0..R {
                let (from, n) = (common.1, seen[r].1 - common.1);
                let p = p.add(r * BLOCK_TOKENS + from);
                let sums = sums.add(r * padded);
                accumulate::<S, E, 1>(
                    s,
                    n,
                    p,
                    values.add((from - common.0) * padded),
                    (sums, padded),
                    &[1.0],
                    0,
                );
            }
        }
    }
}

/// Turns the scores into e^(score - max), adds them to the weights, and returns by how much older sums shrink.
///
/// # Safety
/// As in [`step`]; the scores are written.
#[inline(always)]
unsafe fn softmax<S: Simd, E: Element, const R: usize>(
    s: S,
    tile: &Tile<'_>,
    scratch: *mut Scratch,
    block: &Block,
    v: usize,
    seen: &[(usize, usize); R],
) -> [f32; R] {
    /// Token numbers, to compare with the first and last that are seen.
    static TOKENS: [f32; BLOCK_TOKENS] = {
        let mut tokens = [0.0; BLOCK_TOKENS];
        let mut i = 0;
        while i < BLOCK_TOKENS {
            tokens[i] = i as f32;
            i += 1;
        }
        tokens
    };
    // SAFETY: as in `step`; all offsets are within the rows of `p` and the 32 scales of a part.
    unsafe {
        let p = &raw mut (*scratch).p as *mut f32;
        let weights = (&raw mut (*scratch).weights as *mut f32).add(v * MAX_LANES);
        let max = (&raw mut (*scratch).max as *mut f32).add(v);
        let scales = block.start.add(tile.layout.scales).cast::<f32>();
        let hidden = s.splat(f32::NEG_INFINITY);

        let mut shrink = [0.0f32; MAX_LANES];
        for r in 0..R {
            let (from, to) = seen[r];
            let row = p.add(r * BLOCK_TOKENS);
            let mut highest = hidden;
            for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
                let mut score = s.load(row.add(i));
                if E::SCALED {
                    score = s.mul(score, s.load(scales.add(i)));
                }
                if let Some(cap) = tile.shape.softcap {
                    score = s.mul(math::tanh(s, s.div(score, s.splat(cap))), s.splat(cap));
                }
                if to - from < BLOCK_TOKENS {
                    let token = s.load(TOKENS.as_ptr().add(i));
                    score = s.select_lt(token, s.splat(from as f32), hidden, score);
                    score = s.select_lt(token, s.splat(to as f32), score, hidden);
                }
                if E::SCALED || tile.shape.softcap.is_some() || to - from < BLOCK_TOKENS {
                    s.store(row.add(i), score);
                }
                highest = s.max(highest, score);
            }
            let (old, block_max) = (*max.add(r), s.reduce_max(highest));
            let new = if block_max > old { block_max } else { old };
            *max.add(r) = new;
            // Equal where nothing is seen yet, too: infinity minus infinity would not be zero.
            shrink[r] = if new == old { 0.0 } else { old - new };
        }
        for i in (0..MAX_LANES.min(R.next_multiple_of(S::LANES))).step_by(S::LANES) {
            let factors = shrink.as_mut_ptr().add(i);
            s.store(factors, math::exp_below(s, s.load(factors)));
        }
        let mut factors = [0.0; R];
        for r in 0..R {
            factors[r] = shrink[r];
            if seen[r].0 == seen[r].1 {
                continue;
            }
            let row = p.add(r * BLOCK_TOKENS);
            let max = s.splat(*max.add(r));
            let mut total = s.mul(s.load(weights.add(r * MAX_LANES)), s.splat(factors[r]));
            for i in (0..BLOCK_TOKENS).step_by(S::LANES) {
                let mut weight = math::exp_below(s, s.sub(s.load(row.add(i)), max));
                total = s.add(total, weight);
                if E::SCALED {
                    weight = s.mul(weight, s.load(scales.add(BLOCK_TOKENS + i)));
                }
                s.store(row.add(i), weight);
            }
            s.store(weights.add(r * MAX_LANES), total);
        }
        factors
    }
}

/// `sums = sums · factor + Σ p · value` over `n` tokens, in order, for `R` rows of `p`.
///
/// # Safety
/// `n` floats are readable in each row of `p` (32 apart), `n` rows of values, and `R` rows of sums writable.
#[inline(always)]
unsafe fn accumulate<S: Simd, E: Element, const R: usize>(
    s: S,
    n: usize,
    p: *const f32,
    values: *const E::T,
    (sums, padded): (*mut f32, usize),
    factors: &[f32; R],
    ahead: isize,
) {
    // SAFETY: by the contract; rows are `padded` long, a multiple of the lanes.
    unsafe {
        let mut d = 0;
        while d + 2 * S::LANES <= padded {
            let values = (values.add(d), padded);
            outer::<S, E, R, 2>(s, n, (p, BLOCK_TOKENS), values, (sums.add(d), padded), Some(factors), ahead);
            d += 2 * S::LANES;
        }
        if d < padded {
            let values = (values.add(d), padded);
            outer::<S, E, R, 1>(s, n, (p, BLOCK_TOKENS), values, (sums.add(d), padded), Some(factors), ahead);
        }
    }
}

/// The register tile: `c = c · factor + a · b` (or `c = a · b` without factors) for `R` rows and `N` vectors of
/// columns; each element is a chain of multiply-adds over `k` in order. Matrices are (pointer, elements per row);
/// `a` is (R, k), `b` (k, columns), and what lies `ahead` bytes from the columns will be needed soon.
///
/// # Safety
/// All of that is readable, and `c` writable.
#[inline(always)]
unsafe fn outer<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    k: usize,
    (a, a_stride): (*const f32, usize),
    (mut b, b_stride): (*const E::T, usize),
    (c, c_stride): (*mut f32, usize),
    factors: Option<&[f32; R]>,
    ahead: isize,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; R];
        if let Some(factors) = factors {
            for r in 0..R {
                for j in 0..N {
                    sums[r][j] = s.mul(s.load(c.add(r * c_stride + j * S::LANES)), s.splat(factors[r]));
                }
            }
        }
        let mut rows = [a; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = a.add(r * a_stride);
        }
        for i in 0..k {
            let mut columns = [s.splat(0.0); N];
            for j in 0..N {
                columns[j] = E::load(s, b.add(j * S::LANES));
            }
            if ahead != 0 {
                for line in 0..(N * S::LANES * size_of::<E::T>()).div_ceil(64) {
                    s.prefetch(b.wrapping_byte_offset(ahead).cast::<u8>().wrapping_add(line * 64));
                }
            }
            for r in 0..R {
                let x = s.splat(*rows[r].add(i));
                for j in 0..N {
                    sums[r][j] = s.fma(x, columns[j], sums[r][j]);
                }
            }
            b = b.wrapping_add(b_stride);
        }
        for r in 0..R {
            for j in 0..N {
                s.store(c.add(r * c_stride + j * S::LANES), sums[r][j]);
            }
        }
    }
}
