//! Which instructions this CPU has; the choice between the paths of each kernel.

/// A path of the kernels. Each has the results of the others within rounding, and its own bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
}

impl Isa {
    /// The widest that this CPU runs.
    pub(crate) fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// All that this CPU runs, narrowest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    all.push(Self::Avx512);
                }
            }
        }
        all
    }
}
