//! Vectors of f32 behind one trait, so that a kernel is written once and compiled for each instruction set.
//!
//! A kernel is a generic `#[inline(always)]` function over [`Simd`] that the macro [`dispatched`] instantiates inside
//! functions with the right `#[target_feature]`. No closures inside such kernels: a closure does not inherit the
//! features and its intrinsics would stay calls. Results may differ between instruction sets (fused multiply-add or
//! not, number of lanes); within one they depend on the operands only.

#![allow(unsafe_code, reason = "a kernel module: vector loads and stores through pointers")]

pub(super) mod math;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// The most lanes of any implementation: the size of scratch that holds one vector.
pub(super) const MAX_LANES: usize = 16;

/// One instruction set. A value of the type is the proof that this CPU has it, hence only loads and stores are
/// unsafe: they need `LANES` readable (or writable) elements at the pointer, at any alignment.
pub(super) trait Simd: Copy {
    const LANES: usize;
    /// Rows of a register tile that is two vectors wide, so that accumulators and operands stay in registers.
    const TILE_ROWS: usize;
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    unsafe fn load(self, p: *const f32) -> Self::V;
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Half-precision bits, widened exactly.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// Rounds to nearest even, beyond 65504 to infinity.
    unsafe fn store_f16(self, p: *mut u16, v: Self::V);
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set has it.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`, hence `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, hence `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? x : y`
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The bits of each lane shifted left by 23: what lies in the lowest bits becomes sign and exponent.
    fn shift_to_exponent(self, v: Self::V) -> Self::V;
    /// Lanes 1, 0, 3, 2, …
    fn swap_pairs(self, v: Self::V) -> Self::V;
    fn reduce_max(self, v: Self::V) -> f32;
    /// A hint that the cache line at `p` is needed soon; any address is fine.
    fn prefetch(self, p: *const u8);

    /// Adds the lanes pairwise: halves, quarters and so on, always in this order.
    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        let mut lanes = [0.0f32; MAX_LANES];
        // SAFETY: no implementation has more than MAX_LANES lanes.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        let mut width = Self::LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The first `n` elements at `p` and zeros.
    ///
    /// # Safety
    /// `n` elements are readable at `p`, and `n <= LANES`.
    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; MAX_LANES];
        // SAFETY: by the contract, and the lanes of the array suffice for one vector.
        unsafe {
            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                *lane = *p.add(i);
            }
            self.load(lanes.as_ptr())
        }
    }

    /// Writes the first `n` lanes.
    ///
    /// # Safety
    /// `n` elements are writable at `p`, and `n <= LANES`.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0.0f32; MAX_LANES];
        // SAFETY: by the contract, and the lanes of the array suffice for one vector.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(n) {
                *p.add(i) = *lane;
            }
        }
    }
}

/// How keys and values lie in memory: widened to f32 as they are loaded.
pub(super) trait Element {
    type T: Copy;
    /// Whether each token has a scale for its key and one for its value.
    const SCALED: bool;
    /// # Safety
    /// `S::LANES` elements are readable at `p`.
    unsafe fn load<S: Simd>(s: S, p: *const Self::T) -> S::V;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Int8;

impl Element for F32 {
    type T = f32;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: by the contract.
        unsafe { s.load(p) }
    }
}

impl Element for F16 {
    type T = u16;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u16) -> S::V {
        // SAFETY: by the contract.
        unsafe { s.load_f16(p) }
    }
}

impl Element for Int8 {
    type T = i8;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8) -> S::V {
        // SAFETY: by the contract.
        unsafe { s.load_i8(p) }
    }
}

/// Defines `fn name(isa, arguments…)`, which runs the generic kernel for that instruction set.
macro_rules! dispatched {
    ($(#[$doc:meta])* fn $name:ident = $kernel:path; ($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$doc])*
        fn $name(isa: $crate::kernels::isa::Isa, $($arg: $ty),*) {
            use $crate::kernels::isa::Isa;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $kernel(unsafe { $crate::kernels::simd::Avx512::new() }, $($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $kernel(unsafe { $crate::kernels::simd::Avx2::new() }, $($arg),*);
            }
            match isa {
                // SAFETY: an `Isa` comes from detection on this CPU.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $kernel($crate::kernels::simd::Scalar, $($arg),*),
            }
        }
    };
}
pub(super) use dispatched;

#[cfg(test)]
pub(super) mod tests;
