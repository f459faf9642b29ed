use half::f16;

use super::*;
use crate::kernels::rows::tests::numbers;

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Int8];

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, softcap: None }
}

/// Several sequences of different lengths with all their rows.
struct Case {
    shape: AttentionShape,
    /// (tokens, width) for each sequence.
    rows: Vec<Vec<f32>>,
}

impl Case {
    fn new(shape: AttentionShape, lens: &[usize]) -> Self {
        let rows = (1u64..)
            .zip(lens)
            // Scores far apart, so that the softmax has something to do.
            .map(|(seed, n)| numbers(n * shape.width(), seed).iter().map(|x| 3.0 * x).collect())
            .collect();
        Self { shape, rows }
    }

    fn lens(&self) -> Vec<usize> {
        self.rows.iter().map(|rows| rows.len() / self.shape.width()).collect()
    }

    /// Feeds the sequences in steps; each step gives the number of tokens that each sequence goes on by. Returns the
    /// output rows of each sequence.
    fn feed(&self, isa: Isa, kv_type: KvType, threads: usize, steps: &[Vec<usize>]) -> Vec<Vec<f32>> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let tables = self.tables();
        let n_blocks = tables.iter().map(Vec::len).sum();
        let mut store = KvStore::new(kv_type, 2, kv_heads, head_dim, n_blocks).unwrap();
        // What earlier owners of the blocks left behind must not matter: NaN in every format that has one.
        let bytes = n_blocks * store.block_stride();
        // SAFETY: the slab has so many bytes.
        unsafe { store.slab(1).write_bytes(0xff, bytes) };
        let pool = Pool::new(threads).unwrap();
        let (width, out_width) = (self.shape.width(), heads * head_dim);
        let mut outputs = vec![Vec::new(); self.rows.len()];
        let mut done = vec![0; self.rows.len()];
        for step in steps {
            let (mut qkv, mut sequences) = (Vec::new(), Vec::new());
            for (i, n) in step.iter().enumerate().filter(|(_, n)| **n > 0) {
                let first_row = qkv.len() / width;
                sequences.push((i, SequenceRows { blocks: &tables[i], start: done[i], n: *n, first_row }));
                qkv.extend_from_slice(&self.rows[i][done[i] * width..(done[i] + n) * width]);
                done[i] += n;
            }
            let mut out = vec![f32::NAN; qkv.len() / width * out_width];
            let rows: Vec<_> = sequences.iter().map(|(_, rows)| *rows).collect();
            attention(isa, &pool, &mut store, 1, &self.shape, &rows, &qkv, &mut out);
            for (i, rows) in sequences {
                outputs[i].extend_from_slice(&out[rows.first_row * out_width..][..rows.n * out_width]);
            }
        }
        outputs
    }

    /// Block tables that are neither in order nor contiguous.
    fn tables(&self) -> Vec<Vec<u32>> {
        let counts: Vec<_> = self.lens().iter().map(|n| n.div_ceil(BLOCK_TOKENS)).collect();
        let mut ids: Vec<u32> = (0..counts.iter().sum::<usize>() as u32).collect();
        ids.reverse();
        let third = ids.len() / 3;
        ids.rotate_left(third);
        counts.iter().map(|n| ids.split_off(ids.len() - n)).collect()
    }

    /// Plain attention in f64 over keys and values as `stored`.
    fn reference(&self, i: usize, sees: impl Fn(usize, usize) -> bool, stored: KvType) -> Vec<f64> {
        let AttentionShape { heads, kv_heads, head_dim, scale, softcap, .. } = self.shape;
        let width = self.shape.width();
        let rows: Vec<_> = self.rows[i].chunks(width).collect();
        let head = |row: &[f32], h: usize| as_stored(stored, &row[h * head_dim..][..head_dim]);
        let mut out = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            for h in 0..heads {
                let q: Vec<f64> = row[h * head_dim..][..head_dim].iter().map(|x| f64::from(*x)).collect();
                let kv = heads + h / (heads / kv_heads);
                let visible: Vec<_> = (0..rows.len()).filter(|token| sees(at, *token)).collect();
                let scores = visible.iter().map(|token| {
                    let key = head(rows[*token], kv);
                    let score = f64::from(scale) * q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>();
                    softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                });
                let weights: Vec<_> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; head_dim];
                for (token, weight) in visible.iter().zip(weights) {
                    for (sum, v) in sums.iter_mut().zip(head(rows[*token], kv + kv_heads)) {
                        *sum += weight / total * v;
                    }
                }
                out.extend(sums);
            }
        }
        out
    }

    fn causal_reference(&self, i: usize, stored: KvType) -> Vec<f64> {
        let window = self.shape.window.unwrap_or(usize::MAX);
        self.reference(i, |at, token| token <= at && at - token < window, stored)
    }
}

fn as_stored(kv_type: KvType, x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    x.iter()
        .map(|x| match kv_type {
            KvType::F32 => f64::from(*x),
            KvType::F16 => f16::from_f32(*x).to_f64(),
            KvType::Int8 => f64::from((x * (127.0 / largest)).round_ties_even()) * f64::from(largest / 127.0),
        })
        .collect()
}

/// Rounding of f32 sums over up to 300 tokens with scores up to ±30 stays well below this; a token too many or too few
/// does not.
const TOLERANCE: f64 = 3e-5;

fn close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= TOLERANCE, "{what} [{i}]: {got}, expected {expected}");
    }
}

fn bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    outputs.iter().map(|out| out.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Each sequence whole and by itself.
fn alone(lens: &[usize]) -> Vec<Vec<usize>> {
    (0..lens.len()).map(|i| (0..lens.len()).map(|j| if i == j { lens[i] } else { 0 }).collect()).collect()
}

/// All sequences together, each by `chunk(sequence, step)` tokens at a time.
fn together(lens: &[usize], chunk: impl Fn(usize, usize) -> usize) -> Vec<Vec<usize>> {
    let mut left = lens.to_vec();
    let mut steps = Vec::new();
    while left.iter().any(|n| *n > 0) {
        let step: Vec<_> = left.iter().enumerate().map(|(i, n)| chunk(i, steps.len()).min(*n)).collect();
        for (left, n) in left.iter_mut().zip(&step) {
            *left -= n;
        }
        steps.push(step);
    }
    steps
}

fn check(shape: AttentionShape, lens: &[usize]) {
    let case = Case::new(shape, lens);
    for kv_type in KV_TYPES {
        let expected: Vec<_> = (0..lens.len()).map(|i| case.causal_reference(i, kv_type)).collect();
        for isa in Isa::available() {
            let what = format!("{isa:?} {kv_type:?} {shape:?}");
            let whole = case.feed(isa, kv_type, 1, &alone(lens));
            for (got, expected) in whole.iter().zip(&expected) {
                close(&what, got, expected);
            }
            for (how, threads, steps) in [
                ("whole, in a batch", 3, together(lens, |_, _| usize::MAX)),
                ("token by token, in a batch", 1, together(lens, |_, _| 1)),
                ("in odd chunks", 3, together(lens, |i, step| [7, 1, 33, 13][(i + step) % 4])),
                (
                    "one prompt beside tokens of the others",
                    3,
                    together(lens, |i, _| if i == 0 { 50 } else { 1 }),
                ),
            ] {
                let got = case.feed(isa, kv_type, threads, &steps);
                assert!(bits(&got) == bits(&whole), "{what}: {how} on {threads} threads gives other bits");
            }
        }
    }
}

#[test]
fn bits_are_the_same_however_rows_are_batched_for_every_head_size() {
    for head_dim in [8, 16, 64, 80, 96, 128, 256] {
        check(shape(4, 2, head_dim), &[70, 1, 45]);
    }
    check(shape(2, 1, 18), &[40, 33]);
    check(shape(2, 1, 512), &[40, 3]);
}

#[test]
fn bits_are_the_same_for_every_size_of_group() {
    for (heads, kv_heads) in [(3, 3), (9, 3), (5, 1), (7, 1), (32, 4), (12, 1), (40, 1)] {
        check(shape(heads, kv_heads, 16), &[67, 32]);
    }
}

#[test]
fn a_window_hides_what_is_too_old() {
    for window in [1, 5, 32, 40, 1000] {
        check(AttentionShape { window: Some(window), ..shape(6, 2, 16) }, &[130, 40]);
    }
}

#[test]
fn scores_are_capped() {
    check(AttentionShape { softcap: Some(2.0), ..shape(4, 2, 32) }, &[70, 20]);
    check(AttentionShape { softcap: Some(5.0), window: Some(33), ..shape(4, 2, 32) }, &[70, 20]);
}

#[test]
fn encoders_see_both_sides_with_the_same_bits_in_any_batch() {
    for (shape, window) in [(shape(12, 12, 32), None), (shape(6, 2, 24), None), (shape(4, 4, 64), Some(20))] {
        let shape = AttentionShape { window, ..shape };
        let case = Case::new(shape, &[1, 33, 128, 7, 0, 64]);
        let half = window.map_or(usize::MAX, |window| window / 2);
        for isa in Isa::available() {
            let run = |threads: usize, lens: &[usize], rows: &[f32]| {
                let mut out = vec![f32::NAN; rows.len() / shape.width() * shape.heads * shape.head_dim];
                attention_bidirectional(isa, &Pool::new(threads).unwrap(), &shape, lens, rows, &mut out);
                out
            };
            let packed: Vec<f32> = case.rows.concat();
            let batch = run(1, &case.lens(), &packed);
            assert!(
                bits(&[run(3, &case.lens(), &packed)]) == bits(std::slice::from_ref(&batch)),
                "{isa:?}: threads"
            );
            let single: Vec<_> =
                case.rows.iter().zip(case.lens()).map(|(rows, n)| run(1, &[n], rows)).collect();
            assert!(bits(&[single.concat()]) == bits(&[batch]), "{isa:?}: other sequences change the bits");
            for (i, got) in single.iter().enumerate() {
                let expected = case.reference(i, |at, token| at.abs_diff(token) <= half, KvType::F32);
                close(&format!("{isa:?} {shape:?}"), got, &expected);
            }
        }
    }
}

#[test]
fn a_number_that_is_not_one_stays_in_its_own_sequence() {
    let mut case = Case::new(shape(4, 2, 16), &[40, 40]);
    let clean = case.feed(Isa::detect(), KvType::Int8, 1, &together(&[40, 40], |_, _| 9));
    let width = case.shape.width();
    // The key of token 3 of the first sequence.
    case.rows[0][3 * width + 4 * 16] = f32::NAN;
    for kv_type in KV_TYPES {
        for isa in Isa::available() {
            let got = case.feed(isa, kv_type, 3, &together(&[40, 40], |_, _| 9));
            assert!(
                got[0][4 * 4 * 16].is_nan() && !got[0][..3 * 4 * 16].iter().any(|x| x.is_nan()),
                "{isa:?}"
            );
            assert!(!got[1].iter().any(|x| x.is_nan()), "{isa:?} {kv_type:?}");
        }
    }
    let got = case.feed(Isa::detect(), KvType::Int8, 1, &together(&[40, 40], |_, _| 9));
    assert!(bits(&got[1..]) == bits(&clean[1..]));
}

fn two(first: &[u32], second: &[u32], start: usize) {
    let shape = shape(2, 1, 16);
    let mut store = KvStore::new(KvType::F16, 1, 1, 16, 4).unwrap();
    let sequences = [
        SequenceRows { blocks: first, start, n: 1, first_row: 0 },
        SequenceRows { blocks: second, start: 40, n: 1, first_row: 1 },
    ];
    let (qkv, mut out) = (vec![0.5; 2 * shape.width()], vec![0.0; 2 * 32]);
    let pool = Pool::new(1).unwrap();
    attention(Isa::detect(), &pool, &mut store, 0, &shape, &sequences, &qkv, &mut out);
}

#[test]
fn sequences_share_blocks_that_neither_writes() {
    two(&[0, 1], &[0, 2], 40);
}

#[test]
#[should_panic(expected = "two sequences write the KV block 1")]
fn two_sequences_do_not_write_one_block() {
    two(&[0, 1], &[2, 1], 40);
}

#[test]
#[should_panic(expected = "reads the KV block 0 of another")]
fn a_sequence_does_not_read_what_another_writes() {
    two(&[0], &[0, 2], 5);
}

#[test]
#[should_panic(expected = "block ids are below")]
fn a_block_out_of_range_is_caught_at_the_entry() {
    two(&[0, 4], &[2, 3], 40);
}
