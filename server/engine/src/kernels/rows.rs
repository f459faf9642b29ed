//! What happens to each row of activations by itself: norms, rotation, activations, residuals.
//!
//! Buffers are f32, row-major. A row's result depends on that row only, and is computed in the same order whatever
//! other rows are in the call. Large calls are split over the pool by rows.

#![allow(unsafe_code, reason = "a kernel module: vectors through pointers, disjoint rows for each task")]

mod norms;
mod rotate;

use std::ops::Range;

use super::{
    isa::Isa,
    pool::Pool,
    shared::SharedMut,
    simd::{Simd, dispatched, math},
};
pub(crate) use norms::{layer_norm, rms_norm, rms_norm_heads};
pub(crate) use rotate::{Rotation, rope};

/// Heads that lie side by side in the columns of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadColumns {
    /// Floats in a row.
    pub(crate) width: usize,
    /// Column of the first head.
    pub(crate) first: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
}

impl HeadColumns {
    fn check(&self, x: &[f32]) {
        assert!(self.first + self.heads * self.head_dim <= self.width, "the heads are within the row");
        assert!(x.len().is_multiple_of(self.width), "the buffer is of whole rows");
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// GELU by tanh, as in Gemma and GPT-2.
    GeluTanh,
    /// GELU by the error function, as in BERT.
    Gelu,
}

/// `out = activation(gate) · up`; `gate_up` is (rows, 2 features), gate | up in each row, `out` (rows, features).
pub(crate) fn gated(
    isa: Isa,
    pool: &Pool,
    activation: Activation,
    gate_up: &[f32],
    features: usize,
    out: &mut [f32],
) {
    assert!(
        gate_up.len() == 2 * out.len() && out.len().is_multiple_of(features),
        "a gate and an up for each output"
    );
    split(pool, features, out, &|rows, out| {
        gated_chunk(
            isa,
            activation,
            &gate_up[rows.start * 2 * features..rows.end * 2 * features],
            features,
            out,
        );
    });
}

/// Applies the activation in place.
pub(crate) fn activate(isa: Isa, pool: &Pool, activation: Activation, x: &mut [f32]) {
    split(pool, 1, x, &|_, x| activate_chunk(isa, activation, x));
}

/// `y += x`
pub(crate) fn add(isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len(), "as many terms as sums");
    split(pool, 1, y, &|range, y| add_chunk(isa, &x[range], y));
}

/// `x = cap · tanh(x / cap)`
pub(crate) fn softcap(isa: Isa, pool: &Pool, x: &mut [f32], cap: f32) {
    split(pool, 1, x, &|_, x| softcap_chunk(isa, x, cap));
}

/// Elements that one task handles; a call of fewer than twice as many is done by the caller alone.
const CHUNK: usize = 1 << 13;

/// Runs `task` on disjoint ranges of the rows of `y` that together cover it, with those rows.
fn split(pool: &Pool, width: usize, y: &mut [f32], task: &(dyn Fn(Range<usize>, &mut [f32]) + Sync)) {
    let rows = y.len() / width;
    let chunk = CHUNK.div_ceil(width).next_multiple_of(if width == 1 { 64 } else { 1 });
    if rows * width < 2 * CHUNK || rows <= chunk {
        return task(0..rows, y);
    }
    let y = SharedMut::new(y);
    pool.run(rows.div_ceil(chunk), &|i| {
        let range = i * chunk..rows.min((i + 1) * chunk);
        // SAFETY: the ranges of different `i` are disjoint.
        let part = unsafe { y.slice(range.start * width, range.len() * width) };
        task(range, part);
    });
}

#[inline(always)]
fn activation_of<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::Silu => s.mul(x, math::sigmoid(s, x)),
        Activation::GeluTanh => {
            // 0.5 (1 + tanh u) is sigmoid(2 u).
            let x3 = s.mul(s.mul(x, x), x);
            let u = s.mul(s.fma(x3, s.splat(0.044_715), x), s.splat(2.0 * 0.797_884_6));
            s.mul(x, math::sigmoid(s, u))
        }
        Activation::Gelu => {
            let half = s.mul(x, s.splat(0.5));
            s.fma(half, math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
        }
    }
}

#[inline(always)]
fn gated_rows<S: Simd>(s: S, activation: Activation, gate_up: &[f32], features: usize, out: &mut [f32]) {
    for (gate_up, out) in gate_up.chunks_exact(2 * features).zip(out.chunks_exact_mut(features)) {
        let (gate, up) = gate_up.split_at(features);
        let (gate, up, out) = (gate.as_ptr(), up.as_ptr(), out.as_mut_ptr());
        let whole = features - features % S::LANES;
        // SAFETY: all three hold `features` elements.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let y = activation_of(s, activation, s.load(gate.add(i)));
                s.store(out.add(i), s.mul(y, s.load(up.add(i))));
            }
            if whole < features {
                let n = features - whole;
                let y = activation_of(s, activation, s.load_first(gate.add(whole), n));
                s.store_first(out.add(whole), s.mul(y, s.load_first(up.add(whole), n)), n);
            }
        }
    }
}

#[inline(always)]
fn activate_all<S: Simd>(s: S, activation: Activation, x: &mut [f32]) {
    let (n, x) = (x.len(), x.as_mut_ptr());
    let whole = n - n % S::LANES;
    // SAFETY: `n` elements are there.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store(x.add(i), activation_of(s, activation, s.load(x.add(i))));
        }
        if whole < n {
            let rest = x.add(whole);
            s.store_first(rest, activation_of(s, activation, s.load_first(rest, n - whole)), n - whole);
        }
    }
}

#[inline(always)]
fn add_all<S: Simd>(s: S, x: &[f32], y: &mut [f32]) {
    let n = y.len().min(x.len());
    let (x, y) = (x.as_ptr(), y.as_mut_ptr());
    let whole = n - n % S::LANES;
    // SAFETY: `n` elements are in both.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store(y.add(i), s.add(s.load(x.add(i)), s.load(y.add(i))));
        }
        for i in whole..n {
            *y.add(i) += *x.add(i);
        }
    }
}

#[inline(always)]
fn softcap_all<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let (n, x) = (x.len(), x.as_mut_ptr());
    let whole = n - n % S::LANES;
    let cap = s.splat(cap);
    // SAFETY: `n` elements are there.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            s.store(x.add(i), s.mul(math::tanh(s, s.div(s.load(x.add(i)), cap)), cap));
        }
        if whole < n {
            let rest = x.add(whole);
            let y = s.mul(math::tanh(s, s.div(s.load_first(rest, n - whole), cap)), cap);
            s.store_first(rest, y, n - whole);
        }
    }
}

dispatched! {
    fn gated_chunk = gated_rows; (activation: Activation, gate_up: &[f32], features: usize, out: &mut [f32])
}
dispatched! { fn activate_chunk = activate_all; (activation: Activation, x: &mut [f32]) }
dispatched! { fn add_chunk = add_all; (x: &[f32], y: &mut [f32]) }
dispatched! { fn softcap_chunk = softcap_all; (x: &mut [f32], cap: f32) }

#[cfg(test)]
pub(super) mod tests;
