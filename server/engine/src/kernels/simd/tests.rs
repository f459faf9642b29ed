use super::{Simd, math};
use crate::kernels::isa::Isa;

#[derive(Clone, Copy)]
enum Function {
    Exp,
    Tanh,
    Erf,
    HalfAndBack,
    Sum,
}

#[inline(always)]
fn apply<S: Simd>(s: S, function: Function, values: &mut [f32]) {
    assert_eq!(values.len() % super::MAX_LANES, 0);
    for chunk in values.chunks_exact_mut(S::LANES) {
        // SAFETY: the chunk has LANES elements.
        unsafe {
            let x = s.load(chunk.as_ptr());
            let y = match function {
                Function::Exp => math::exp(s, x),
                Function::Tanh => math::tanh(s, x),
                Function::Erf => math::erf(s, x),
                Function::HalfAndBack => {
                    let mut bits = [0u16; super::MAX_LANES];
                    s.store_f16(bits.as_mut_ptr(), x);
                    s.load_f16(bits.as_ptr())
                }
                Function::Sum => s.splat(s.reduce_add(x) + s.reduce_max(x)),
            };
            s.store(chunk.as_mut_ptr(), y);
        }
    }
}

dispatched! { fn run = apply; (function: Function, values: &mut [f32]) }

fn map(isa: Isa, function: Function, values: &[f32]) -> Vec<f32> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(super::MAX_LANES), 0.0);
    run(isa, function, &mut padded);
    padded.truncate(values.len());
    padded
}

/// Taylor series, all terms of one sign for `x >= 0`; enough of them for `|x| <= 6`.
pub(in crate::kernels) fn erf_reference(x: f64) -> f64 {
    // erf(x) = 2/sqrt(pi) * e^(-x²) * Σ 2^n x^(2n+1) / (1·3·…·(2n+1))
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / (2.0 * f64::from(n) + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

fn grid(from: f32, to: f32) -> Vec<f32> {
    let n = 200_000.0;
    (0..200_000u32).map(|i| from + (to - from) * i as f32 / n).collect()
}

fn check_relative(function: Function, grid: &[f32], reference: impl Fn(f64) -> f64, tolerance: f64) {
    for isa in Isa::available() {
        for (x, y) in grid.iter().zip(map(isa, function, grid)) {
            let expected = reference(f64::from(*x));
            let error = (f64::from(y) - expected).abs();
            assert!(error <= tolerance * expected.abs(), "{isa:?}: f({x}) = {y}, expected {expected}");
        }
    }
}

#[test]
fn exp_is_within_two_units_of_the_last_place() {
    check_relative(Function::Exp, &grid(-87.3, 88.3), f64::exp, 2e-7);
}

#[test]
fn exp_of_the_extremes_is_zero_infinite_one_or_nan() {
    for isa in Isa::available() {
        let y =
            map(isa, Function::Exp, &[f32::NEG_INFINITY, -1e9, -88.0, 0.0, 89.0, f32::INFINITY, f32::NAN]);
        assert_eq!(y[..6], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY], "{isa:?}");
        assert!(y[6].is_nan(), "{isa:?}");
    }
}

#[test]
fn tanh_and_erf_follow_the_reference_and_saturate() {
    check_relative(Function::Tanh, &grid(-12.0, 12.0), f64::tanh, 1e-6);
    check_relative(Function::Erf, &grid(-6.0, 6.0), erf_reference, 1e-6);
    for isa in Isa::available() {
        for function in [Function::Tanh, Function::Erf] {
            let y = map(isa, function, &[f32::NEG_INFINITY, f32::INFINITY, 1e-20, f32::NAN]);
            assert!((y[0] + 1.0).abs() < 1e-6 && (y[1] - 1.0).abs() < 1e-6, "{isa:?}: {y:?}");
            assert!(y[2] > 0.0 && y[2] < 2e-20 && y[3].is_nan(), "{isa:?}: {y:?}");
        }
    }
}

#[test]
fn half_precision_rounds_to_nearest_even_as_the_half_crate_does() {
    // Every f16, and the f32 just above and below each of their midpoints.
    let mut values = Vec::new();
    for bits in 0..=u16::MAX {
        let x = half::f16::from_bits(bits).to_f32();
        if x.is_finite() {
            values.extend([
                x,
                x * (1.0 + 1.0 / 2048.0),
                x * (1.0 + 1.01 / 2048.0),
                x * (1.0 - 0.99 / 4096.0),
            ]);
        }
    }
    values.extend([65519.9, 65520.0, f32::INFINITY, f32::NEG_INFINITY, 1e-9, -1e-9]);
    for isa in Isa::available() {
        for (x, y) in values.iter().zip(map(isa, Function::HalfAndBack, &values)) {
            assert_eq!(y.to_bits(), half::f16::from_f32(*x).to_f32().to_bits(), "{isa:?}: {x}");
        }
        assert!(map(isa, Function::HalfAndBack, &[f32::NAN])[0].is_nan());
    }
}

#[test]
fn reductions_see_every_lane() {
    for isa in Isa::available() {
        for lane in 0..16 {
            let mut values = [1.0f32; 16];
            values[lane] = 1000.0;
            let y = map(isa, Function::Sum, &values);
            assert!(y[lane] > 2000.0 && y[lane] < 2016.0, "{isa:?}: {y:?}");
        }
    }
}
