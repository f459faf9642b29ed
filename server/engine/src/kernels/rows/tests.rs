use super::*;
use crate::kernels::simd::tests::erf_reference;

/// Numbers in -1..1 that look random and are the same in each run.
pub(in crate::kernels) fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn close(isa: Isa, what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{isa:?} {what} [{i}]: {got}, expected {expected}"
        );
    }
}

/// Runs an operation on `rows` at once and one by one, on one thread and on three, and wants the same bits.
fn same_bits(rows: usize, width: usize, run: impl Fn(&Pool, Range<usize>) -> Vec<f32>) -> Vec<f32> {
    let whole = run(&Pool::new(1).unwrap(), 0..rows);
    let threads = run(&Pool::new(3).unwrap(), 0..rows);
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&whole) == bits(&threads), "threads change the bits");
    let pool = Pool::new(1).unwrap();
    for row in [0, rows / 2, rows - 1] {
        let alone = run(&pool, row..row + 1);
        assert!(bits(&alone) == bits(&whole[row * width..(row + 1) * width]), "other rows change the bits");
    }
    whole
}

const WIDTHS: [usize; 6] = [8, 50, 64, 576, 2048, 2050];

#[test]
fn norms_follow_the_reference_whatever_the_batch() {
    for isa in Isa::available() {
        for n in WIDTHS {
            let rows = 40;
            let (x, weight, bias) = (numbers(rows * n, 1), numbers(n, 2), numbers(n, 3));
            let x: Vec<f32> = x.iter().map(|x| 3.0 * x + 0.5).collect();
            let got = same_bits(rows, n, |pool, r| {
                let mut y = vec![f32::NAN; r.len() * n];
                rms_norm(isa, pool, &x[r.start * n..r.end * n], &weight, 1e-5, &mut y);
                y
            });
            let wide = |x: &f32| f64::from(*x);
            let expected: Vec<f64> = x
                .chunks(n)
                .flat_map(|row| {
                    let mean = row.iter().map(|x| wide(x).powi(2)).sum::<f64>() / n as f64;
                    row.iter().zip(&weight).map(move |(x, w)| wide(x) / (mean + 1e-5).sqrt() * wide(w))
                })
                .collect();
            close(isa, "rms_norm", &got, &expected, 2e-6);

            for bias in [None, Some(&bias[..])] {
                let got = same_bits(rows, n, |pool, r| {
                    let mut y = vec![f32::NAN; r.len() * n];
                    layer_norm(isa, pool, &x[r.start * n..r.end * n], &weight, bias, 1e-12, &mut y);
                    y
                });
                let expected: Vec<f64> = x
                    .chunks(n)
                    .flat_map(|row| {
                        let mean = row.iter().map(wide).sum::<f64>() / n as f64;
                        let variance = row.iter().map(|x| (wide(x) - mean).powi(2)).sum::<f64>() / n as f64;
                        (0..n).map(move |i| (wide(&row[i]) - mean) / (variance + 1e-12).sqrt())
                    })
                    .enumerate()
                    .map(|(i, x)| x * wide(&weight[i % n]) + bias.map_or(0.0, |bias| wide(&bias[i % n])))
                    .collect();
                close(isa, "layer_norm", &got, &expected, 4e-6);
            }
        }
    }
}

#[test]
fn head_norms_touch_their_columns_only() {
    for isa in Isa::available() {
        for head_dim in [8, 10, 64, 80, 128] {
            let columns = HeadColumns { width: 7 * head_dim, first: 2 * head_dim, heads: 3, head_dim };
            let rows = 65;
            let (x, weight) = (numbers(rows * columns.width, 4), numbers(head_dim, 5));
            let got = same_bits(rows, columns.width, |pool, r| {
                let mut y = x[r.start * columns.width..r.end * columns.width].to_vec();
                rms_norm_heads(isa, pool, &mut y, columns, &weight, 1e-6);
                y
            });
            let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for row in expected.chunks_mut(columns.width) {
                for head in row[2 * head_dim..5 * head_dim].chunks_mut(head_dim) {
                    let mean = head.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                    for (x, w) in head.iter_mut().zip(&weight) {
                        *x = *x / (mean + 1e-6).sqrt() * f64::from(*w);
                    }
                }
            }
            close(isa, "rms_norm_heads", &got, &expected, 2e-6);
        }
    }
}

#[test]
fn rotation_pairs_halves_or_neighbours_of_the_rotated_part() {
    for isa in Isa::available() {
        for (head_dim, rotated_dim) in [(8, 8), (10, 6), (64, 64), (80, 32), (96, 96), (128, 64), (256, 256)]
        {
            for interleaved in [false, true] {
                let columns = HeadColumns { width: 6 * head_dim + 3, first: 3, heads: 4, head_dim };
                let rotation = Rotation { columns, rotated_dim, interleaved };
                let (rows, half, width) = (70, rotated_dim / 2, columns.width);
                let x = numbers(rows * width, 6);
                let angles = numbers(rows * half, 7);
                let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                let got = same_bits(rows, width, |pool, r| {
                    let mut y = x[r.start * width..r.end * width].to_vec();
                    let angles = r.start * half..r.end * half;
                    let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                    rope(isa, pool, &mut y, &rotation, cos, sin);
                    y
                });
                let mut expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                for (r, row) in expected.chunks_mut(width).enumerate() {
                    for head in row[3..3 + 4 * head_dim].chunks_mut(head_dim) {
                        for i in 0..half {
                            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                            let (c, s) = (f64::from(cos[r * half + i]), f64::from(sin[r * half + i]));
                            (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
                        }
                    }
                }
                close(isa, "rope", &got, &expected, 1e-6);
            }
        }
    }
}

fn activation_reference(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::Gelu => 0.5 * x * (1.0 + erf_reference((x / 2f64.sqrt()).clamp(-6.0, 6.0))),
    }
}

#[test]
fn activations_follow_the_reference_gated_and_in_place() {
    for isa in Isa::available() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for features in [6, 16, 100, 1536] {
                let rows = 33;
                let gate_up: Vec<f32> = numbers(rows * 2 * features, 8).iter().map(|x| 12.0 * x).collect();
                let got = same_bits(rows, features, |pool, r| {
                    let mut out = vec![f32::NAN; r.len() * features];
                    let part = &gate_up[r.start * 2 * features..r.end * 2 * features];
                    gated(isa, pool, activation, part, features, &mut out);
                    out
                });
                let expected: Vec<f64> = gate_up
                    .chunks(2 * features)
                    .flat_map(|row| {
                        (0..features).map(|i| {
                            activation_reference(activation, f64::from(row[i])) * f64::from(row[features + i])
                        })
                    })
                    .collect();
                // Up to 12 times the error of the activation.
                close(isa, "gated", &got, &expected, 3e-5);

                let got = same_bits(rows, 2 * features, |pool, r| {
                    let mut x = gate_up[r.start * 2 * features..r.end * 2 * features].to_vec();
                    activate(isa, pool, activation, &mut x);
                    x
                });
                let expected: Vec<f64> =
                    gate_up.iter().map(|x| activation_reference(activation, f64::from(*x))).collect();
                close(isa, "activate", &got, &expected, 2e-6);
            }
            let mut extremes = [f32::INFINITY, -1000.0, 1000.0, 0.0];
            activate(isa, &Pool::new(1).unwrap(), activation, &mut extremes);
            let [infinite, low, high, zero] = extremes;
            assert!(low.abs() < 1e-3 && (high - 1000.0).abs() < 1e-3, "{isa:?} {activation:?}: {extremes:?}");
            assert_eq!([infinite, zero], [f32::INFINITY, 0.0], "{isa:?} {activation:?}");
        }
    }
}

#[test]
fn residuals_and_soft_caps_cover_every_element() {
    for isa in Isa::available() {
        for n in [1, 15, 33, 40_001] {
            let (x, y) = (numbers(n, 9), numbers(n, 10));
            for threads in [1, 3] {
                let pool = Pool::new(threads).unwrap();
                let mut sum = y.clone();
                add(isa, &pool, &x, &mut sum);
                assert!(sum.iter().zip(x.iter().zip(&y)).all(|(s, (x, y))| *s == x + y), "{isa:?} {n}");
                let mut capped: Vec<f32> = x.iter().map(|x| 100.0 * x).collect();
                softcap(isa, &pool, &mut capped, 30.0);
                let expected: Vec<f64> =
                    x.iter().map(|x| 30.0 * (f64::from(100.0 * x) / 30.0).tanh()).collect();
                close(isa, "softcap", &capped, &expected, 2e-6);
            }
        }
    }
}
