//! Activations in 8 bits: a scale per row and block of 32.

use super::super::{isa::Isa, matrix::BLOCK, pool::Pool, shared::SharedMut};

/// Elements that are worth a task of their own.
const TASK_ELEMENTS: usize = 16 << 10;

/// Rows of blocks: `values` `(rows, columns)`, `scales` and `sums` `(rows, blocks)`.
#[derive(Default)]
pub(crate) struct Quantized {
    pub(super) values: Vec<i8>,
    pub(super) scales: Vec<f32>,
    /// Of the integers of each block.
    pub(super) sums: Vec<i32>,
    rows: usize,
    blocks: usize,
}

impl Quantized {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Rounds `x` `(n, columns)`, which are whole blocks. The largest of a block becomes ±127; a block with a NaN gets
    /// a NaN for its scale, so that it shows in the results.
    pub(crate) fn fill(&mut self, isa: Isa, pool: &Pool, x: &[f32], columns: usize) {
        self.rows = x.len() / columns;
        self.blocks = columns / BLOCK;
        let n_blocks = self.rows * self.blocks;
        if self.scales.len() < n_blocks {
            self.values.resize(n_blocks * BLOCK, 0);
            self.scales.resize(n_blocks, 0.0);
            self.sums.resize(n_blocks, 0);
        }
        let per_task = TASK_ELEMENTS / BLOCK;
        let (values, scales, sums) = (
            SharedMut::new(&mut self.values),
            SharedMut::new(&mut self.scales),
            SharedMut::new(&mut self.sums),
        );
        pool.run(n_blocks.div_ceil(per_task), &|task| {
            let first = task * per_task;
            let n = per_task.min(n_blocks - first);
            let x = &x[first * BLOCK..(first + n) * BLOCK];
            // SAFETY: each task has the blocks from `first` on, `n` of them.
            #[expect(unsafe_code, reason = "tasks write disjoint parts")]
            let (values, scales, sums) = unsafe {
                (values.slice(first * BLOCK, n * BLOCK), scales.slice(first, n), sums.slice(first, n))
            };
            match isa {
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calls a path that this CPU has")]
                // SAFETY: the CPU has what the path needs.
                Isa::Avx512 => unsafe { super::avx512::quantize(x, values, scales, sums) },
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calls a path that this CPU has")]
                // SAFETY: as above.
                Isa::Avx2 => unsafe { super::avx2::quantize(x, values, scales, sums) },
                _ => quantize(x, values, scales, sums),
            }
        });
    }
}

/// Written so that a compiler that may use wide registers does.
#[inline(always)]
pub(super) fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
    for ((x, values), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        // As integers: the bits of a NaN are above those of all numbers.
        let most = x.iter().fold(0, |m: u32, x| m.max(x.to_bits() & 0x7fff_ffff));
        let most = f32::from_bits(most);
        *scale = most / 127.0;
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut total = 0;
        for (value, x) in values.iter_mut().zip(x) {
            // Adding and taking away 1.5 · 2²³ rounds to the nearest, to even where two are.
            let rounded = x * inverse + 12_582_912.0 - 12_582_912.0;
            let integer = rounded as i32;
            total += integer;
            *value = integer as i8;
        }
        *sum = total;
    }
}
