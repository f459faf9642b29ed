//! AVX2 with FMA and F16C: tiles of three rows by 16 columns.
#![expect(unsafe_code, reason = "intrinsics and raw reads; each function says what it relies on")]

use std::{arch::x86_64::*, ops::Range};

use super::{
    super::{
        matrix::{BLOCK, Line, PackedFormat},
        pack::{head_bytes, offset},
    },
    Epilogue, Quantized, Sums, TILE,
};

const INT8: u8 = 0;
const INT4: u8 = 1;
const INT4_MIN: u8 = 2;
const F32: u8 = 3;
const F16: u8 = 4;
const BF16: u8 = 5;

/// The array of an expression for each register of a row; no closures, see the path beside.
macro_rules! each {
    (4, |$j:ident| $value:expr) => {
        [
            {
                let $j: usize = 0;
                $value
            },
            {
                let $j: usize = 1;
                $value
            },
            {
                let $j: usize = 2;
                $value
            },
            {
                let $j: usize = 3;
                $value
            },
        ]
    };
    (2, |$j:ident| $value:expr) => {
        [
            {
                let $j: usize = 0;
                $value
            },
            {
                let $j: usize = 1;
                $value
            },
        ]
    };
}

/// Calls `$tile::<R, KIND>` for all rows, three at a time.
macro_rules! tiles {
    ($tile:ident, $kind:expr, $rows:expr, $epilogue:expr, $sums:ident, |$row:ident| $arguments:tt) => {{
        let mut $row = $rows.start;
        while $row < $rows.end {
            let n = 3.min($rows.end - $row);
            // SAFETY: the caller's promises cover all rows of the range.
            unsafe {
                match n {
                    1 => $tile::<1, { $kind }>$arguments,
                    2 => $tile::<2, { $kind }>$arguments,
                    _ => $tile::<3, { $kind }>$arguments,
                }
            }
            for i in 0..n {
                $epilogue.store($row + i, &$sums[i]);
            }
            $row += n;
        }
    }};
}

/// # Safety
/// The CPU has the features; the panel has `blocks()` steps of the format and `rows` lie within `x`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn blocks(
    format: PackedFormat,
    panel: &[Line],
    x: &Quantized,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    let mut sums: Sums = [[0.0; 64]; TILE];
    let panel = panel.as_ptr().cast::<u8>();
    match format {
        PackedFormat::Int8 => {
            tiles!(block_tile, INT8, rows, epilogue, sums, |row| (panel, x, row, &mut sums));
        }
        PackedFormat::Int4 => {
            tiles!(block_tile, INT4, rows, epilogue, sums, |row| (panel, x, row, &mut sums));
        }
        _ => tiles!(block_tile, INT4_MIN, rows, epilogue, sums, |row| (panel, x, row, &mut sums)),
    }
}

/// # Safety
/// As [`blocks`], for rows `row..row + R`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn block_tile<const R: usize, const KIND: u8>(
    panel: *const u8,
    x: &Quantized,
    row: usize,
    sums: &mut Sums,
) {
    let format = match KIND {
        INT8 => PackedFormat::Int8,
        INT4 => PackedFormat::Int4,
        _ => PackedFormat::Int4Min,
    };
    let (step, head) = (format.step_bytes(), head_bytes(format));
    let n_blocks = x.blocks();
    let ones = _mm256_set1_epi16(1);
    let low = _mm256_set1_epi8(15);
    let flip = _mm256_set1_epi8(-128);
    // SAFETY: all reads lie within the panel's steps and the rows' blocks, see above.
    unsafe {
        let values = x.values.as_ptr().add(row * n_blocks * BLOCK);
        let scales = x.scales.as_ptr().add(row * n_blocks);
        let block_sums = x.sums.as_ptr().add(row * n_blocks);
        // Sixteen columns at a time: two registers.
        for quarter in 0..4 {
            let mut acc = [[_mm256_setzero_ps(); 2]; R];
            for b in 0..n_blocks {
                let panel = panel.add(b * step);
                let data = panel.add(head + 64 * quarter);
                let mut dots = [[_mm256_setzero_si256(); 2]; R];
                // Signed 8-bit weights are multiplied as sizes with the sign on the input, so they have no offset.
                if KIND == INT4 {
                    for i in 0..R {
                        let start = (*block_sums.add(i * n_blocks + b)).wrapping_mul(-offset(format));
                        dots[i] = [_mm256_set1_epi32(start); 2];
                    }
                }
                // Four inputs of row `i`, to all lanes.
                macro_rules! inputs {
                    ($i:expr, $group:expr) => {{
                        let at = values.add($i * n_blocks * BLOCK + b * BLOCK + $group * 4);
                        _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
                    }};
                }
                if KIND == INT8 {
                    for g in 0..8 {
                        let at = data.add(g * 256);
                        let weights =
                            each!(2, |j| _mm256_xor_si256(_mm256_loadu_si256(at.add(32 * j).cast()), flip));
                        let sizes = each!(2, |j| _mm256_abs_epi8(weights[j]));
                        for i in 0..R {
                            let input = inputs!(i, g);
                            for j in 0..2 {
                                let signed = _mm256_sign_epi8(input, weights[j]);
                                let pairs = _mm256_maddubs_epi16(sizes[j], signed);
                                dots[i][j] = _mm256_add_epi32(dots[i][j], _mm256_madd_epi16(pairs, ones));
                            }
                        }
                    }
                } else {
                    for g in 0..4 {
                        let at = data.add(g * 256);
                        let pairs = each!(2, |j| _mm256_loadu_si256(at.add(32 * j).cast()));
                        let halves = [
                            each!(2, |j| _mm256_and_si256(pairs[j], low)),
                            each!(2, |j| _mm256_and_si256(_mm256_srli_epi16::<4>(pairs[j]), low)),
                        ];
                        for half in 0..2 {
                            let weights = halves[half];
                            for i in 0..R {
                                let input = inputs!(i, 2 * g + half);
                                for j in 0..2 {
                                    let pairs = _mm256_maddubs_epi16(weights[j], input);
                                    dots[i][j] = _mm256_add_epi32(dots[i][j], _mm256_madd_epi16(pairs, ones));
                                }
                            }
                        }
                    }
                }
                macro_rules! scales {
                    ($at:expr, $j:expr) => {
                        _mm256_cvtph_ps(_mm_load_si128(panel.add($at + 32 * quarter + 16 * $j).cast()))
                    };
                }
                let weight_scales = each!(2, |j| scales!(0, j));
                for i in 0..R {
                    let scale = _mm256_set1_ps(*scales.add(i * n_blocks + b));
                    for j in 0..2 {
                        let dot = _mm256_cvtepi32_ps(dots[i][j]);
                        acc[i][j] = _mm256_fmadd_ps(dot, _mm256_mul_ps(weight_scales[j], scale), acc[i][j]);
                    }
                }
                if KIND == INT4_MIN {
                    let mins = each!(2, |j| scales!(128, j));
                    for i in 0..R {
                        let at = i * n_blocks + b;
                        let sum = _mm256_set1_ps(*scales.add(at) * *block_sums.add(at) as f32);
                        for j in 0..2 {
                            acc[i][j] = _mm256_fnmadd_ps(mins[j], sum, acc[i][j]);
                        }
                    }
                }
            }
            for i in 0..R {
                for j in 0..2 {
                    _mm256_storeu_ps(sums[i].as_mut_ptr().add(16 * quarter + 8 * j), acc[i][j]);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the features; the panel has `columns` steps of the format and `rows` lie within `x`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dense(
    format: PackedFormat,
    panel: &[Line],
    x: &[f32],
    columns: usize,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    let mut sums: Sums = [[0.0; 64]; TILE];
    let panel = panel.as_ptr().cast::<u8>();
    let x = x.as_ptr();
    match format {
        PackedFormat::F16 => {
            tiles!(dense_tile, F16, rows, epilogue, sums, |row| (
                panel,
                x.add(row * columns),
                columns,
                &mut sums
            ));
        }
        PackedFormat::BF16 => {
            tiles!(dense_tile, BF16, rows, epilogue, sums, |row| (
                panel,
                x.add(row * columns),
                columns,
                &mut sums
            ));
        }
        _ => tiles!(dense_tile, F32, rows, epilogue, sums, |row| (
            panel,
            x.add(row * columns),
            columns,
            &mut sums
        )),
    }
}

/// # Safety
/// As [`dense`], with `R` rows from `x` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dense_tile<const R: usize, const KIND: u8>(
    panel: *const u8,
    x: *const f32,
    columns: usize,
    sums: &mut Sums,
) {
    let (step, width) = if KIND == F32 { (256, 4) } else { (128, 2) };
    // SAFETY: all reads lie within the panel's steps and the rows, see above.
    unsafe {
        // Half of the panel's columns at a time: twelve registers of sums.
        for half in 0..2 {
            let mut acc = [[_mm256_setzero_ps(); 4]; R];
            for k in 0..columns {
                let panel = panel.add(k * step + half * 32 * width);
                let weights = each!(4, |j| match KIND {
                    F32 => _mm256_loadu_ps(panel.add(32 * j).cast()),
                    F16 => _mm256_cvtph_ps(_mm_loadu_si128(panel.add(16 * j).cast())),
                    _ => {
                        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(panel.add(16 * j).cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                    }
                });
                for i in 0..R {
                    let input = _mm256_set1_ps(*x.add(i * columns + k));
                    for j in 0..4 {
                        acc[i][j] = _mm256_fmadd_ps(input, weights[j], acc[i][j]);
                    }
                }
            }
            for i in 0..R {
                for j in 0..4 {
                    _mm256_storeu_ps(sums[i].as_mut_ptr().add(32 * half + 8 * j), acc[i][j]);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    super::quantized::quantize(x, values, scales, sums);
}
