//! AVX-512 with VNNI: tiles of six rows by 64 columns.
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

/// The array of an expression for each register of a row. A closure would not do: it has none of the features of the
/// function around it, and its intrinsics would stay calls.
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

/// Calls `$tile::<R, KIND>` for all rows, six at a time.
macro_rules! tiles {
    ($tile:ident, $kind:expr, $rows:expr, $epilogue:expr, $sums:ident, |$row:ident| $arguments:tt) => {{
        let mut $row = $rows.start;
        while $row < $rows.end {
            let n = TILE.min($rows.end - $row);
            // SAFETY: the caller's promises cover all rows of the range.
            unsafe {
                match n {
                    1 => $tile::<1, { $kind }>$arguments,
                    2 => $tile::<2, { $kind }>$arguments,
                    3 => $tile::<3, { $kind }>$arguments,
                    4 => $tile::<4, { $kind }>$arguments,
                    5 => $tile::<5, { $kind }>$arguments,
                    _ => $tile::<6, { $kind }>$arguments,
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
    let low = _mm512_set1_epi8(15);
    let mut acc = [[_mm512_setzero_ps(); 4]; R];
    // SAFETY: all reads lie within the panel's steps and the rows' blocks, see above.
    unsafe {
        let values = x.values.as_ptr().add(row * n_blocks * BLOCK);
        let scales = x.scales.as_ptr().add(row * n_blocks);
        let block_sums = x.sums.as_ptr().add(row * n_blocks);
        for b in 0..n_blocks {
            let panel = panel.add(b * step);
            let data = panel.add(head);
            let mut dots = [[_mm512_setzero_si512(); 4]; R];
            if offset(format) != 0 {
                for i in 0..R {
                    let start = (*block_sums.add(i * n_blocks + b)).wrapping_mul(-offset(format));
                    dots[i] = [_mm512_set1_epi32(start); 4];
                }
            }
            // Four inputs of row `i`, to all lanes.
            macro_rules! inputs {
                ($i:expr, $group:expr) => {{
                    let at = values.add($i * n_blocks * BLOCK + b * BLOCK + $group * 4);
                    _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
                }};
            }
            if KIND == INT8 {
                for g in 0..8 {
                    let data = data.add(g * 256);
                    let weights = each!(4, |j| _mm512_load_si512(data.add(64 * j).cast()));
                    for j in 0..4 {
                        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(2048 + 64 * j).cast());
                    }
                    for i in 0..R {
                        let input = inputs!(i, g);
                        for j in 0..4 {
                            dots[i][j] = _mm512_dpbusd_epi32(dots[i][j], weights[j], input);
                        }
                    }
                }
            } else {
                for g in 0..4 {
                    let data = data.add(g * 256);
                    let pairs = each!(4, |j| _mm512_load_si512(data.add(64 * j).cast()));
                    for j in 0..4 {
                        _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(2048 + 64 * j).cast());
                    }
                    let weights = each!(4, |j| _mm512_and_si512(pairs[j], low));
                    for i in 0..R {
                        let input = inputs!(i, 2 * g);
                        for j in 0..4 {
                            dots[i][j] = _mm512_dpbusd_epi32(dots[i][j], weights[j], input);
                        }
                    }
                    let weights = each!(4, |j| _mm512_and_si512(_mm512_srli_epi16::<4>(pairs[j]), low));
                    for i in 0..R {
                        let input = inputs!(i, 2 * g + 1);
                        for j in 0..4 {
                            dots[i][j] = _mm512_dpbusd_epi32(dots[i][j], weights[j], input);
                        }
                    }
                }
            }
            macro_rules! halves {
                ($at:expr, $j:expr) => {
                    _mm512_cvtph_ps(_mm256_load_si256(panel.add($at + 32 * $j).cast()))
                };
            }
            let weight_scales = each!(4, |j| halves!(0, j));
            for i in 0..R {
                let scale = _mm512_set1_ps(*scales.add(i * n_blocks + b));
                for j in 0..4 {
                    let dot = _mm512_cvtepi32_ps(dots[i][j]);
                    acc[i][j] = _mm512_fmadd_ps(dot, _mm512_mul_ps(weight_scales[j], scale), acc[i][j]);
                }
            }
            if KIND == INT4_MIN {
                let mins = each!(4, |j| halves!(128, j));
                for i in 0..R {
                    let at = i * n_blocks + b;
                    let sum = _mm512_set1_ps(*scales.add(at) * *block_sums.add(at) as f32);
                    for j in 0..4 {
                        acc[i][j] = _mm512_fnmadd_ps(mins[j], sum, acc[i][j]);
                    }
                }
            }
        }
        for i in 0..R {
            for j in 0..4 {
                _mm512_storeu_ps(sums[i].as_mut_ptr().add(16 * j), acc[i][j]);
            }
        }
    }
}

/// # Safety
/// The CPU has the features; the panel has `columns` steps of the format and `rows` lie within `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn dense_tile<const R: usize, const KIND: u8>(
    panel: *const u8,
    x: *const f32,
    columns: usize,
    sums: &mut Sums,
) {
    let mut acc = [[_mm512_setzero_ps(); 4]; R];
    let step = if KIND == F32 { 256 } else { 128 };
    // SAFETY: all reads lie within the panel's steps and the rows, see above.
    unsafe {
        for k in 0..columns {
            let panel = panel.add(k * step);
            _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(2048).cast());
            let weights = each!(4, |j| match KIND {
                F32 => _mm512_load_ps(panel.add(64 * j).cast()),
                F16 => _mm512_cvtph_ps(_mm256_load_si256(panel.add(32 * j).cast())),
                _ => {
                    let half = _mm512_cvtepu16_epi32(_mm256_load_si256(panel.add(32 * j).cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half))
                }
            });
            for i in 0..R {
                let input = _mm512_set1_ps(*x.add(i * columns + k));
                for j in 0..4 {
                    acc[i][j] = _mm512_fmadd_ps(input, weights[j], acc[i][j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..4 {
                _mm512_storeu_ps(sums[i].as_mut_ptr().add(16 * j), acc[i][j]);
            }
        }
    }
}

/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantize(x: &[f32], values: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
    let size = _mm512_set1_epi32(0x7fff_ffff);
    for ((x, values), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
        // SAFETY: 32 floats and 32 bytes.
        unsafe {
            let both = each!(2, |j| _mm512_loadu_ps(x.as_ptr().add(16 * j)));
            let sizes = each!(2, |j| _mm512_and_si512(_mm512_castps_si512(both[j]), size));
            let most = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(sizes[0], sizes[1])));
            *scale = most / 127.0;
            let inverse = _mm512_set1_ps(if most > 0.0 { 127.0 / most } else { 0.0 });
            let integers = each!(2, |j| _mm512_cvtps_epi32(_mm512_mul_ps(both[j], inverse)));
            *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(integers[0], integers[1]));
            let bytes = each!(2, |j| _mm512_cvtepi32_epi8(integers[j]));
            _mm_storeu_si128(values.as_mut_ptr().cast(), bytes[0]);
            _mm_storeu_si128(values.as_mut_ptr().add(16).cast(), bytes[1]);
        }
    }
}
