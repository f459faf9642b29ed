//! Products against widened weights in f64, and the same bits whatever runs beside.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};

use super::*;

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

const TYPES: [(StoredType, Option<GgmlDType>); 13] = [
    (StoredType::F32, None),
    (StoredType::F16, None),
    (StoredType::BF16, None),
    (StoredType::Q4_0, Some(GgmlDType::Q4_0)),
    (StoredType::Q4_1, Some(GgmlDType::Q4_1)),
    (StoredType::Q5_0, Some(GgmlDType::Q5_0)),
    (StoredType::Q5_1, Some(GgmlDType::Q5_1)),
    (StoredType::Q8_0, Some(GgmlDType::Q8_0)),
    (StoredType::Q2K, Some(GgmlDType::Q2K)),
    (StoredType::Q3K, Some(GgmlDType::Q3K)),
    (StoredType::Q4K, Some(GgmlDType::Q4K)),
    (StoredType::Q5K, Some(GgmlDType::Q5K)),
    (StoredType::Q6K, Some(GgmlDType::Q6K)),
];

/// A matrix of noise as a file would hold it.
fn stored(dtype: StoredType, blocks: Option<GgmlDType>, rows: usize, columns: usize) -> Vec<u8> {
    let values = noise(rows * columns, 7);
    match (dtype, blocks) {
        (_, Some(blocks)) => {
            let tensor = Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, blocks).unwrap().data().unwrap().to_vec()
        }
        (StoredType::F16, _) => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        (StoredType::BF16, _) => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// `x · Wᵀ` in f64, and for each element the sum of its terms' sizes.
fn reference(raw: &RawTensor<'_>, x: &[f32]) -> Vec<(f64, f64)> {
    let mut rows = vec![vec![0.0; raw.columns]; raw.rows];
    rows.iter_mut().enumerate().for_each(|(i, row)| raw.widen_row(i, row));
    let mut out = Vec::new();
    for x in x.chunks(raw.columns) {
        for row in &rows {
            let terms = x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b));
            out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
        }
    }
    out
}

/// Largest error of a product as a share of the sum of its terms' sizes.
fn bound(dtype: StoredType) -> f64 {
    match dtype {
        // Rounding of f32 sums.
        StoredType::F32 | StoredType::F16 | StoredType::BF16 => 1e-6,
        // Activations in 8 bits: at most 1/254 of a block's largest each, so less in sum.
        StoredType::Q4_0 | StoredType::Q4_1 | StoredType::Q8_0 | StoredType::Q4K => 4e-3,
        // And weights in 8 bits beside.
        _ => 8e-3,
    }
}

#[test]
fn products_of_every_format_agree_with_widened_weights_on_every_path() {
    let pool = Pool::new(3).unwrap();
    for (dtype, blocks) in TYPES {
        let shapes: &[(usize, usize)] = match dtype {
            _ if dtype.is_dense() => &[(1, 7), (64, 33), (130, 96), (200, 576)],
            StoredType::Q4_0 | StoredType::Q4_1 | StoredType::Q5_0 | StoredType::Q5_1 | StoredType::Q8_0 => {
                &[(1, 32), (65, 96), (192, 576)]
            }
            _ => &[(3, 256), (130, 512)],
        };
        for &(rows, columns) in shapes {
            let bytes = stored(dtype, blocks, rows, columns);
            let raw = RawTensor { dtype, rows, columns, bytes: &bytes };
            let packed = PackedMatrix::pack(&raw, &pool).unwrap();
            let bias = noise(rows, 3);
            let linear = Linear::new(vec![packed], Some(bias.clone())).unwrap();
            assert_eq!(linear.bytes(), PackedMatrix::bytes(dtype, rows, columns));
            for n in [1, 2, 5, 6, 7, 13, 64] {
                let x = noise(n * columns, n as u32);
                let expected = reference(&raw, &x);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available() {
                    let mut y = vec![f32::NAN; n * rows];
                    linear.apply(isa, &pool, &x, &mut y, &mut Scratch::default());
                    for (i, (y, (sum, size))) in y.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*y) - f64::from(bias[i % rows]) - sum).abs();
                        let what = format!("{dtype:?} {rows}x{columns} of {n} rows by {isa:?}, element {i}");
                        assert!(error <= bound(dtype) * size + 1e-5, "{what}: {error:e} of {size:e}");
                    }
                    // The paths even share their bits: integers are exact, and all of them fuse.
                    let first = first.get_or_insert_with(|| y.clone());
                    assert_eq!(&y, first, "{dtype:?} {rows}x{columns} of {n} rows by {isa:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    for (dtype, blocks) in TYPES {
        let (rows, columns) = (200, 512);
        let bytes = stored(dtype, blocks, rows, columns);
        let raw = RawTensor { dtype, rows, columns, bytes: &bytes };
        let x = noise(300 * columns, 11);
        for isa in Isa::available() {
            let mut alone: Option<Vec<f32>> = None;
            for threads in [1, 2, 4] {
                let pool = Pool::new(threads).unwrap();
                let linear = Linear::new(vec![PackedMatrix::pack(&raw, &pool).unwrap()], None).unwrap();
                let mut scratch = Scratch::default();
                for n in [1, 3, 6, 8, 300] {
                    if isa == Isa::Scalar && n > 8 {
                        continue;
                    }
                    // The row in question is the last.
                    let x = &x[(300 - n) * columns..];
                    let mut y = vec![0.0; n * rows];
                    linear.apply(isa, &pool, x, &mut y, &mut scratch);
                    let last = y[(n - 1) * rows..].to_vec();
                    let alone = alone.get_or_insert_with(|| last.clone());
                    assert_eq!(&last, alone, "{dtype:?} by {isa:?}, {n} rows, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn several_matrices_over_one_input_are_their_products_side_by_side() {
    let pool = Pool::new(2).unwrap();
    let (q4, q8) =
        (stored(StoredType::Q4K, Some(GgmlDType::Q4K), 70, 256), stored(StoredType::F16, None, 33, 256));
    let a = RawTensor { dtype: StoredType::Q4K, rows: 70, columns: 256, bytes: &q4 };
    let b = RawTensor { dtype: StoredType::F16, rows: 33, columns: 256, bytes: &q8 };
    let pack = |raw| PackedMatrix::pack(raw, &pool).unwrap();
    let both = Linear::new(vec![pack(&a), pack(&b)], None).unwrap();
    let (x, isa) = (noise(4 * 256, 5), Isa::detect());
    let mut y = vec![1.0; 4 * 103];
    both.apply_add(isa, &pool, &x, &mut y, &mut Scratch::default());
    for (raw, at) in [(&a, 0), (&b, 70)] {
        let mut alone = vec![0.0; 4 * raw.rows];
        let linear = Linear::new(vec![pack(raw)], None).unwrap();
        linear.apply(isa, &pool, &x, &mut alone, &mut Scratch::default());
        for (i, row) in alone.chunks(raw.rows).enumerate() {
            let expected: Vec<f32> = row.iter().map(|y| 1.0 + y).collect();
            assert_eq!(&y[i * 103 + at..][..raw.rows], expected);
        }
        let (mut row, mut widened) = (vec![0.0; 256], vec![0.0; 256]);
        both.row(at + 3, &mut row);
        raw.widen_row(3, &mut widened);
        let largest = row.iter().zip(&widened).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(largest <= 2e-3, "row 3 is off by {largest}");
    }
    assert!(Linear::new(vec![pack(&a)], Some(vec![0.0; 3])).is_err());
    let narrow = RawTensor { columns: 16, rows: 2, bytes: &q8[..64], ..b };
    assert!(PackedMatrix::quantize(&narrow, PackedFormat::Int8, &pool).is_err());
    assert!(Linear::new(vec![pack(&a), pack(&narrow)], None).is_err());
}

#[test]
fn weights_are_rounded_on_load_by_the_rules_of_q8_0_and_q4_0() {
    let pool = Pool::new(2).unwrap();
    let bytes = stored(StoredType::F32, None, 64, 96);
    let raw = RawTensor { dtype: StoredType::F32, rows: 64, columns: 96, bytes: &bytes };
    let (mut exact, mut ours, mut theirs) = (vec![0.0; 96], vec![0.0; 96], vec![0.0; 96]);
    for (format, dtype, blocks) in [
        (PackedFormat::Int8, StoredType::Q8_0, GgmlDType::Q8_0),
        (PackedFormat::Int4, StoredType::Q4_0, GgmlDType::Q4_0),
    ] {
        let stored = stored(dtype, Some(blocks), 64, 96);
        let reference = RawTensor { dtype, rows: 64, columns: 96, bytes: &stored };
        let packed = PackedMatrix::quantize(&raw, format, &pool).unwrap();
        for i in 0..64 {
            raw.widen_row(i, &mut exact);
            packed.row(i, &mut ours);
            reference.widen_row(i, &mut theirs);
            let error = |y: &[f32]| exact.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            assert!(error(&ours) <= 1.02 * error(&theirs) + 1e-9, "{format:?} row {i}");
        }
    }
}

#[test]
fn a_nan_and_an_infinity_show() {
    let pool = Pool::new(1).unwrap();
    let bytes = stored(StoredType::Q8_0, Some(GgmlDType::Q8_0), 64, 64);
    let raw = RawTensor { dtype: StoredType::Q8_0, rows: 64, columns: 64, bytes: &bytes };
    let linear = Linear::new(vec![PackedMatrix::pack(&raw, &pool).unwrap()], None).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        for isa in Isa::available() {
            let mut x = noise(64, 1);
            x[40] = bad;
            let mut y = vec![0.0; 64];
            linear.apply(isa, &pool, &x, &mut y, &mut Scratch::default());
            assert!(y.iter().all(|y| !y.is_finite()), "{bad} by {isa:?}");
        }
    }
}

#[test]
fn every_task_runs_once_and_calls_may_nest() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for n in [0, 1, 2, 3, 100, 5000] {
            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(n, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
                pool.run(2, &|_| ());
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} threads, {n}");
        }
    }
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_after_the_others_ended() {
    let pool = Pool::new(3).unwrap();
    for _ in 0..50 {
        let ran = AtomicUsize::new(0);
        let outcome = crate::contained::run(|| {
            pool.run(40, &|i| {
                assert!(i != 7, "on purpose");
                ran.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert!(outcome.is_err());
        assert_eq!(ran.load(Ordering::Relaxed), 39);
        pool.run(40, &|_| ());
    }
}

#[test]
fn calls_from_several_threads_take_turns() {
    let pool = Pool::new(2).unwrap();
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    pool.run(16, &|i| {
                        sum.fetch_add(i, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.load(Ordering::Relaxed), 4 * 500 * 120);
}
