//! Norms: sums in f32, in an order that the width of the row alone decides.

use super::{HeadColumns, Isa, Pool, Simd, dispatched, split};

/// `y = x / sqrt(mean(x²) + eps) · weight` for each row of `weight.len()` floats.
pub(crate) fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let n = weight.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(n), "whole rows in and out");
    split(pool, n, y, &|rows, y| rms_chunk(isa, &x[rows.start * n..rows.end * n], weight, eps, y));
}

/// The same for each head by itself, in place; `weight` has `head_dim` floats.
pub(crate) fn rms_norm_heads(
    isa: Isa,
    pool: &Pool,
    x: &mut [f32],
    columns: HeadColumns,
    weight: &[f32],
    eps: f32,
) {
    columns.check(x);
    assert!(weight.len() == columns.head_dim, "a weight for each dimension of a head");
    split(pool, columns.width, x, &|_, x| rms_heads_chunk(isa, x, columns, weight, eps));
}

/// `y = (x - mean) / sqrt(variance + eps) · weight + bias` for each row of `weight.len()` floats.
pub(crate) fn layer_norm(
    isa: Isa,
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) {
    let n = weight.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(n), "whole rows in and out");
    assert!(bias.is_none_or(|bias| bias.len() == n), "a bias for each weight");
    split(pool, n, y, &|rows, y| layer_chunk(isa, &x[rows.start * n..rows.end * n], weight, bias, eps, y));
}

/// Σ (x - shift)², or Σ x where `squares` is false: four vectors side by side, then what is left over.
///
/// # Safety
/// `n` floats are readable at `x`.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, x: *const f32, n: usize, shift: f32, squares: bool) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let wide = n - n % (4 * S::LANES);
    let whole = n - n % S::LANES;
    // SAFETY: all offsets are below `n`.
    unsafe {
        let shift_all = s.splat(shift);
        let mut i = 0;
        while i < whole {
            let chains = if i < wide { 4 } else { 1 };
            for chain in sums.iter_mut().take(chains) {
                let v = s.load(x.add(i));
                let v = s.sub(v, shift_all);
                *chain = if squares { s.fma(v, v, *chain) } else { s.add(v, *chain) };
                i += S::LANES;
            }
        }
        let mut total = s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
        for i in whole..n {
            let v = *x.add(i) - shift;
            total += if squares { v * v } else { v };
        }
        total
    }
}

/// `y = (x - shift) · scale · weight + bias`; `y` may be `x`.
///
/// # Safety
/// `n` floats are readable at `x`, `weight` and (unless null) `bias`, and writable at `y`.
#[inline(always)]
unsafe fn scale<S: Simd>(
    s: S,
    n: usize,
    x: *const f32,
    (shift, scale): (f32, f32),
    weight: *const f32,
    bias: *const f32,
    y: *mut f32,
) {
    let whole = n - n % S::LANES;
    // SAFETY: all offsets are below `n`.
    unsafe {
        let (shifts, scales) = (s.splat(shift), s.splat(scale));
        for i in (0..whole).step_by(S::LANES) {
            let v = s.mul(s.sub(s.load(x.add(i)), shifts), scales);
            let w = s.load(weight.add(i));
            s.store(y.add(i), if bias.is_null() { s.mul(v, w) } else { s.fma(v, w, s.load(bias.add(i))) });
        }
        for i in whole..n {
            let v = (*x.add(i) - shift) * scale * *weight.add(i);
            *y.add(i) = if bias.is_null() { v } else { v + *bias.add(i) };
        }
    }
}

#[inline(always)]
fn rms_rows<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let n = weight.len();
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        // SAFETY: all three hold `n` elements.
        unsafe {
            let factor = 1.0 / (sum(s, x.as_ptr(), n, 0.0, true) / n as f32 + eps).sqrt();
            scale(s, n, x.as_ptr(), (0.0, factor), weight.as_ptr(), std::ptr::null(), y.as_mut_ptr());
        }
    }
}

#[inline(always)]
fn rms_heads<S: Simd>(s: S, x: &mut [f32], columns: HeadColumns, weight: &[f32], eps: f32) {
    let n = columns.head_dim;
    for row in x.chunks_exact_mut(columns.width) {
        for head in row[columns.first..][..columns.heads * n].chunks_exact_mut(n) {
            // SAFETY: head and weight hold `n` elements.
            unsafe {
                let factor = 1.0 / (sum(s, head.as_ptr(), n, 0.0, true) / n as f32 + eps).sqrt();
                let head = head.as_mut_ptr();
                scale(s, n, head, (0.0, factor), weight.as_ptr(), std::ptr::null(), head);
            }
        }
    }
}

#[inline(always)]
fn layer_rows<S: Simd>(s: S, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let n = weight.len();
    let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
        // SAFETY: all four hold `n` elements, where there is a bias.
        unsafe {
            let mean = sum(s, x.as_ptr(), n, 0.0, false) / n as f32;
            let factor = 1.0 / (sum(s, x.as_ptr(), n, mean, true) / n as f32 + eps).sqrt();
            scale(s, n, x.as_ptr(), (mean, factor), weight.as_ptr(), bias, y.as_mut_ptr());
        }
    }
}

dispatched! { fn rms_chunk = rms_rows; (x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) }
dispatched! { fn rms_heads_chunk = rms_heads; (x: &mut [f32], columns: HeadColumns, weight: &[f32], eps: f32) }
dispatched! {
    fn layer_chunk = layer_rows; (x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32])
}
