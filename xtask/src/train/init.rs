//! Weights to start from. All of them are learned; they only begin where a model this small would otherwise spend most
//! of its training on getting to: heads that look at the tokens just before, and heads that look for the same token.

use rand::Rng;

use super::model::Config;

/// Standard deviation of the embedding.
const EMBEDDING: f32 = 0.03;
/// First value of every embedding: a direction that is the same for all tokens, so that a head can depend on position
/// alone. In the logits it adds the same to every token, which changes no probability.
const CONSTANT: f32 = 0.15;
/// How sharply the first two heads look at one position.
const SHARPNESS: f32 = 2.0;
/// How much of what a head reads it writes back into the residual stream.
const COPIED: f32 = 0.5;

/// A layer's attention matrices, `[in, out]`.
pub(super) struct AttentionStart {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) o: Vec<f32>,
}

/// `[vocab, hidden]`.
pub(super) fn embedding(config: &Config, rng: &mut impl Rng) -> Vec<f32> {
    let mut values = normal(rng, config.vocab * config.hidden, EMBEDDING);
    values.chunks_mut(config.hidden).for_each(|row| row[0] = CONSTANT);
    values
}

/// The first head of each key-value head asks for what its keys hold, so for the token that it stands on; every head
/// writes what it reads. In the first layer the heads of the first key-value head look one, two, ... tokens back.
pub(super) fn attention(config: &Config, layer: usize, rng: &mut impl Rng) -> AttentionStart {
    let (d, hd) = (config.hidden, config.head_dim);
    let (qw, kw) = (config.n_heads * hd, config.n_kv_heads * hd);
    let group = config.n_heads / config.n_kv_heads;
    let std = (d as f32).powf(-0.5);
    let (mut q, mut k, v) = (normal(rng, d * qw, std), normal(rng, d * kw, std), normal(rng, d * kw, std));
    let mut o = vec![0f32; qw * d];
    for head in 0..config.n_heads {
        let kv_head = head / group;
        for row in 0..d {
            for x in 0..hd {
                let (at_q, at_kv) = (row * qw + head * hd + x, row * kw + kv_head * hd + x);
                o[(head * hd + x) * d + row] = COPIED * v[at_kv];
                if head % group == 0 {
                    q[at_q] = k[at_kv];
                }
            }
        }
    }
    if layer == 0 {
        let half = hd / 2;
        for row in 0..d {
            for x in 0..hd {
                let constant = if row == 0 { 1.0 } else { 0.0 };
                k[row * kw + x] = if x < half { constant } else { 0.0 };
                for head in 0..group {
                    // A key at position s is turned by s, a query at t by t: one turned by -back meets s = t - back.
                    let frequency = config.rope_theta.powf(-2.0 * (x % half) as f32 / hd as f32);
                    let (sin, cos) = (-((head + 1) as f32) * frequency).sin_cos();
                    q[row * qw + head * hd + x] = SHARPNESS * constant * if x < half { cos } else { sin };
                }
            }
        }
    }
    AttentionStart { q, k, v, o }
}

pub(super) fn normal(rng: &mut impl Rng, n: usize, std: f32) -> Vec<f32> {
    (0..n).map(|_| gaussian(rng) * std).collect()
}

/// A standard normal sample (Box and Muller).
fn gaussian(rng: &mut impl Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random::<f32>().max(1e-9), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{Device, Tensor};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::train::attention::{Attention, Packed};

    /// The real attention over the starting weights. Its values mark positions, so that its output shows where it looks.
    #[test]
    fn the_first_heads_look_mostly_one_and_two_tokens_back() {
        let config = Config::demo(300);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let embedding = embedding(&config, &mut rng);
        let start = attention(&config, 0, &mut rng);
        let (n, d, hd) = (config.head_dim, config.hidden, config.head_dim);
        let (qw, kw) = (config.n_heads * hd, config.n_kv_heads * hd);
        // What the first layer sees: rows of the embedding, divided by their root mean square.
        let mut x = embedding[..n * d].to_vec();
        for row in x.chunks_mut(d) {
            let rms = (row.iter().map(|x| x * x).sum::<f32>() / d as f32).sqrt();
            row.iter_mut().for_each(|x| *x /= rms);
        }
        let tensor = |values, rows: usize, cols: usize| {
            Tensor::from_vec(values, (rows, cols), &Device::Cpu).expect("the shape fits the values")
        };
        let x = tensor(x, n, d);
        let q = x.matmul(&tensor(start.q, d, qw)).expect("the shapes fit");
        let k = x.matmul(&tensor(start.k, d, kw)).expect("the shapes fit");
        let marks = (0..n * kw).map(|i| if i / kw == i % hd { 1.0 } else { 0.0 }).collect();
        let packed = Packed {
            lengths: vec![n],
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: hd,
            theta: config.rope_theta,
        };
        let seen = q.apply_op3(&k, &tensor(marks, n, kw), Attention(Arc::new(packed)));
        let seen = seen.and_then(|seen| seen.to_vec2::<f32>()).expect("attention runs");
        for back in [1, 2] {
            // Mean weight of each offset. Rows of the embedding differ in length, which sharp heads make much of.
            let mean = |offset: usize| {
                let weight = |i: usize| seen[i][(back - 1) * hd..back * hd][i - offset];
                (8..n).map(weight).sum::<f32>() / (n - 8) as f32
            };
            let means: Vec<f32> = (0..8).map(mean).collect();
            for (offset, other) in means.iter().enumerate().filter(|(offset, _)| *offset != back) {
                assert!(means[back] > 2.0 * other, "{back} back: {means:.2?}, most at {offset}");
            }
        }
    }
}
