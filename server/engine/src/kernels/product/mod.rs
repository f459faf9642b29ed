//! One panel of a product: 64 output columns for a range of rows.
//!
//! What one output element goes through is the same in every tile: for dense weights one fused multiply-add per input,
//! in order; for blocks an exact integer sum per 32 inputs, scaled and added in order of the blocks. So its bits do
//! not depend on the rows beside it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod quantized;
mod scalar;

use std::ops::Range;

pub(super) use quantized::Quantized;

use super::{
    isa::Isa,
    matrix::{Line, PANEL, PackedFormat},
    shared::SharedMut,
};

/// Rows of a tile at most.
const TILE: usize = 6;

/// Sums of a tile, before bias and residual.
type Sums = [[f32; PANEL]; TILE];

/// Where a panel's results go.
pub(super) struct Epilogue<'a> {
    pub(super) y: &'a SharedMut<'a, f32>,
    /// Columns of `y`.
    pub(super) stride: usize,
    /// First of the panel's columns in `y`, and how many there are.
    pub(super) first: usize,
    pub(super) n: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) add: bool,
}

impl Epilogue<'_> {
    #[inline(always)]
    fn store(&self, row: usize, sums: &[f32; PANEL]) {
        // SAFETY: the panel's columns of these rows belong to this task alone.
        #[expect(unsafe_code, reason = "tasks write disjoint parts")]
        let y = unsafe { self.y.slice(row * self.stride + self.first, self.n) };
        let bias = self.bias.map(|bias| &bias[self.first..self.first + self.n]);
        match (bias, self.add) {
            (None, false) => y.copy_from_slice(&sums[..self.n]),
            (None, true) => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
            (Some(bias), false) => y.iter_mut().zip(sums).zip(bias).for_each(|((y, sum), b)| *y = sum + b),
            (Some(bias), true) => y.iter_mut().zip(sums).zip(bias).for_each(|((y, sum), b)| *y += sum + b),
        }
    }
}

/// A panel over f32 inputs: `x` `(n, columns)`.
pub(super) fn dense(
    isa: Isa,
    format: PackedFormat,
    panel: &[Line],
    x: &[f32],
    columns: usize,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    assert!(rows.end * columns <= x.len() && panel.len() * 64 == columns * format.step_bytes());
    match isa {
        // SAFETY: the CPU has what the path needs (`Isa` says so), and the lengths were checked.
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls a path that this CPU has")]
        Isa::Avx512 => unsafe { avx512::dense(format, panel, x, columns, rows, epilogue) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls a path that this CPU has")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::dense(format, panel, x, columns, rows, epilogue) },
        _ => scalar::dense(format, panel, x, columns, rows, epilogue),
    }
}

/// A panel over inputs in blocks of 8-bit integers.
pub(super) fn blocks(
    isa: Isa,
    format: PackedFormat,
    panel: &[Line],
    x: &Quantized,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    assert!(rows.end <= x.rows() && panel.len() * 64 == x.blocks() * format.step_bytes());
    match isa {
        // SAFETY: the CPU has what the path needs (`Isa` says so), and the lengths were checked.
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls a path that this CPU has")]
        Isa::Avx512 => unsafe { avx512::blocks(format, panel, x, rows, epilogue) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls a path that this CPU has")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::blocks(format, panel, x, rows, epilogue) },
        _ => scalar::blocks(format, panel, x, rows, epilogue),
    }
}
