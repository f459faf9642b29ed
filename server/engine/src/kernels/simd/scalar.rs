//! Plain Rust in groups of four, which compilers turn into whatever the baseline has.

use half::f16;

use super::Simd;

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Scalar;

const N: usize = 4;

#[inline(always)]
fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Scalar {
    const LANES: usize = N;
    const TILE_ROWS: usize = 6;
    type V = [f32; N];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; N] {
        // SAFETY: by the contract of the trait.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; N]) {
        // SAFETY: by the contract of the trait.
        unsafe { p.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> [f32; N] {
        // SAFETY: by the contract of the trait.
        unsafe { p.cast::<[u16; N]>().read_unaligned() }.map(widen)
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: [f32; N]) {
        // SAFETY: by the contract of the trait.
        unsafe { p.cast::<[u16; N]>().write_unaligned(v.map(|x| f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> [f32; N] {
        // SAFETY: by the contract of the trait.
        unsafe { p.cast::<[i8; N]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        // Not `mul_add`: without the instruction it is a call into the C library.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn select_lt(self, a: [f32; N], b: [f32; N], x: [f32; N], y: [f32; N]) -> [f32; N] {
        let mut out = y;
        for i in 0..N {
            if a[i] < b[i] {
                out[i] = x[i];
            }
        }
        out
    }
    #[inline(always)]
    fn shift_to_exponent(self, v: [f32; N]) -> [f32; N] {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    fn swap_pairs(self, v: [f32; N]) -> [f32; N] {
        [v[1], v[0], v[3], v[2]]
    }
    #[inline(always)]
    fn reduce_max(self, v: [f32; N]) -> f32 {
        let half = [v[0], v[1], v[0], v[1]];
        let half = self.max(half, [v[2], v[3], v[2], v[3]]);
        if half[0] > half[1] { half[0] } else { half[1] }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}

/// Half-precision bits to f32 without a branch per class: the exponent is rebased by a multiplication, which also
/// normalises subnormals, and what was infinite or NaN gets its exponent back.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    const REBASE: f32 = f32::from_bits((254 - 15) << 23); // 2^112
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * REBASE;
    let infinite = if magnitude >= 65536.0 { 0xff << 23 } else { 0 };
    f32::from_bits(magnitude.to_bits() | infinite | (u32::from(bits & 0x8000) << 16))
}
