//! Rotary position embedding.

use super::{HeadColumns, Isa, Pool, Simd, dispatched, split};
use crate::kernels::kv_store::MAX_HEAD_DIM;

/// What of a row is rotated, and how its dimensions pair up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// The heads that are rotated: queries and keys.
    pub(crate) columns: HeadColumns,
    /// Dimensions of a head that are rotated: the first so many; even.
    pub(crate) rotated_dim: usize,
    /// Whether neighbours are pairs (0 with 1, 2 with 3, …) instead of the two halves (0 with rotated_dim / 2, …).
    pub(crate) interleaved: bool,
}

/// Rotates in place, pair `i` of row `r` by the angle whose cosine and sine are at `[r, i]` of (rows, rotated_dim / 2).
pub(crate) fn rope(isa: Isa, pool: &Pool, x: &mut [f32], rotation: &Rotation, cos: &[f32], sin: &[f32]) {
    let Rotation { columns, rotated_dim, .. } = *rotation;
    columns.check(x);
    assert!(
        rotated_dim <= columns.head_dim && rotated_dim.is_multiple_of(2),
        "pairs within a head are rotated"
    );
    assert!(rotated_dim <= MAX_HEAD_DIM, "heads are at most of the largest size");
    let half = rotated_dim / 2;
    let rows = x.len() / columns.width;
    assert!(cos.len() == rows * half && sin.len() == rows * half, "an angle for each pair of each row");
    split(pool, columns.width, x, &|rows, x| {
        let angles = rows.start * half..rows.end * half;
        rope_chunk(isa, x, rotation, &cos[angles.clone()], &sin[angles]);
    });
}

#[inline(always)]
fn rope_rows<S: Simd>(s: S, x: &mut [f32], rotation: &Rotation, cos: &[f32], sin: &[f32]) {
    let HeadColumns { width, first, heads, head_dim } = rotation.columns;
    let half = rotation.rotated_dim / 2;
    for (r, row) in x.chunks_exact_mut(width).enumerate() {
        let (cos, sin) = (&cos[r * half..][..half], &sin[r * half..][..half]);
        let row = &mut row[first..][..heads * head_dim];
        // SAFETY: each head has `head_dim >= 2 * half` elements, the angles `half`.
        unsafe {
            if rotation.interleaved {
                let (mut cosines, mut sines) = ([0.0f32; MAX_HEAD_DIM], [0.0f32; MAX_HEAD_DIM]);
                for i in 0..half {
                    (cosines[2 * i], cosines[2 * i + 1]) = (cos[i], cos[i]);
                    (sines[2 * i], sines[2 * i + 1]) = (-sin[i], sin[i]);
                }
                for head in row.chunks_exact_mut(head_dim) {
                    neighbours(s, 2 * half, head.as_mut_ptr(), cosines.as_ptr(), sines.as_ptr());
                }
            } else {
                for head in row.chunks_exact_mut(head_dim) {
                    halves(s, half, head.as_mut_ptr(), cos.as_ptr(), sin.as_ptr());
                }
            }
        }
    }
}

/// # Safety
/// `2 * half` floats at `x`, `half` at `cos` and `sin`.
#[inline(always)]
unsafe fn halves<S: Simd>(s: S, half: usize, x: *mut f32, cos: *const f32, sin: *const f32) {
    let whole = half - half % S::LANES;
    // SAFETY: by the contract.
    unsafe {
        let y = x.add(half);
        for i in (0..whole).step_by(S::LANES) {
            let (a, b) = (s.load(x.add(i)), s.load(y.add(i)));
            let (c, d) = (s.load(cos.add(i)), s.load(sin.add(i)));
            s.store(x.add(i), s.sub(s.mul(a, c), s.mul(b, d)));
            s.store(y.add(i), s.fma(b, c, s.mul(a, d)));
        }
        for i in whole..half {
            let (a, b, c, d) = (*x.add(i), *y.add(i), *cos.add(i), *sin.add(i));
            *x.add(i) = a * c - b * d;
            *y.add(i) = b * c + a * d;
        }
    }
}

/// `x = x · cos + swapped x · sin`, with the signs in `sin`.
///
/// # Safety
/// `n` floats at each pointer, `n` even; `cos` and `sin` readable up to a whole vector.
#[inline(always)]
unsafe fn neighbours<S: Simd>(s: S, n: usize, x: *mut f32, cos: *const f32, sin: *const f32) {
    let whole = n - n % S::LANES;
    // SAFETY: by the contract.
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let rest = n - i;
            let a = if i < whole { s.load(x.add(i)) } else { s.load_first(x.add(i), rest) };
            let y = s.fma(a, s.load(cos.add(i)), s.mul(s.swap_pairs(a), s.load(sin.add(i))));
            if i < whole {
                s.store(x.add(i), y);
            } else {
                s.store_first(x.add(i), y, rest);
            }
        }
    }
}

dispatched! { fn rope_chunk = rope_rows; (x: &mut [f32], rotation: &Rotation, cos: &[f32], sin: &[f32]) }
