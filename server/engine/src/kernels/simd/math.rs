//! exp, tanh and erf on vectors, by polynomials. `simd/tests.rs` holds the errors stated here over the whole range.

use super::Simd;

/// e^x. Relative error at most 2e-7; 0 below -87.33 (where the result would be subnormal) and for -inf, infinite above
/// 88.37, NaN for NaN; exactly 1 for 0.
#[inline(always)]
pub(in crate::kernels) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let high = s.splat(88.37);
    let y = exp_below(s, s.min(high, x));
    s.select_lt(high, x, s.splat(f32::INFINITY), y)
}

/// [`exp`] for arguments of at most 88.37.
#[inline(always)]
pub(in crate::kernels) fn exp_below<S: Simd>(s: S, x: S::V) -> S::V {
    const LOW: f32 = -87.33;
    // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits of the sum; the 127 makes it an exponent.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let clamped = s.max(s.splat(LOW), x);
    let shifted = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    // ln 2 in two parts, the first with few bits, so that the remainder is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    let y = s.mul(p, s.shift_to_exponent(shifted));
    s.select_lt(x, s.splat(LOW), s.splat(0.0), y)
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(in crate::kernels) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// Relative error at most 1e-6 (a rational function on [-9, 9], as Eigen has it); NaN for NaN.
#[inline(always)]
pub(in crate::kernels) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-9.0), s.min(s.splat(9.0), x));
    let x2 = s.mul(x, x);
    let mut p = s.splat(-2.760_768_5e-16);
    for c in [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619_5e-4, 4.893_524_6e-3] {
        p = s.fma(p, x2, s.splat(c));
    }
    let mut q = s.splat(1.198_258_4e-6);
    for c in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = s.fma(q, x2, s.splat(c));
    }
    s.div(s.mul(x, p), q)
}

/// Relative error at most 1e-6 (a rational function on [-4, 4], as Eigen has it); NaN for NaN.
#[inline(always)]
pub(in crate::kernels) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-4.0), s.min(s.splat(4.0), x));
    let x2 = s.mul(x, x);
    let mut p = s.splat(-2.726_142_3e-10);
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = s.fma(p, x2, s.splat(c));
    }
    let mut q = s.splat(-1.456_607_2e-5);
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = s.fma(q, x2, s.splat(c));
    }
    s.div(s.mul(x, p), q)
}
