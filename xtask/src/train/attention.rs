//! Causal grouped-query attention with rotary positions over a packed batch: the rows of several dialogues lie one
//! after another, without padding, and each dialogue sees only itself. Forward and backward for the CPU.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::ops::{exp, slice, with_f32};

/// What every layer shares for one batch.
pub(super) struct Packed {
    /// Length of each dialogue; they add up to the rows of the batch.
    pub(super) lengths: Vec<usize>,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) theta: f32,
}

pub(super) struct Attention(pub(super) Arc<Packed>);

/// Cosines and sines of one dialogue, `[position][head_dim / 2]`.
struct Rotation {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn new(packed: &Packed) -> Self {
        let half = packed.head_dim / 2;
        let longest = packed.lengths.iter().copied().max().unwrap_or(0);
        let angle = |i: usize| {
            let (position, pair) = (i / half, i % half);
            position as f32 * packed.theta.powf(-2.0 * pair as f32 / packed.head_dim as f32)
        };
        let angles: Vec<f32> = (0..longest * half).map(angle).collect();
        let (sin, cos) = angles.iter().map(|a| a.sin_cos()).unzip();
        Self { half, cos, sin }
    }

    /// Rotates pairs `(i, i + half)` as transformers' `rotate_half` does; `direction` -1 undoes it.
    fn apply(&self, row: &mut [f32], position: usize, direction: f32) {
        let at = position * self.half;
        for head in row.chunks_mut(2 * self.half) {
            let (low, high) = head.split_at_mut(self.half);
            for i in 0..self.half {
                let (c, s) = (self.cos[at + i], self.sin[at + i] * direction);
                let (a, b) = (low[i], high[i]);
                low[i] = a * c - b * s;
                high[i] = b * c + a * s;
            }
        }
    }

    fn rotated(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut out = rows.to_vec();
        out.chunks_mut(width).enumerate().for_each(|(position, row)| self.apply(row, position, 1.0));
        out
    }
}

impl Packed {
    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Cuts a tensor's values into one slice per dialogue.
    fn split<'a>(&self, mut values: &'a [f32], width: usize) -> Vec<&'a [f32]> {
        let cut = |n: &usize| {
            let (head, tail) = values.split_at(n * width);
            values = tail;
            head
        };
        self.lengths.iter().map(cut).collect()
    }

    fn split_mut<'a>(&self, values: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let mut rest = values;
        let mut out = Vec::with_capacity(self.lengths.len());
        for n in &self.lengths {
            let (head, tail) = rest.split_at_mut(n * width);
            out.push(head);
            rest = tail;
        }
        out
    }

    /// Attention weights of one query row over the keys before and at it.
    fn weights(&self, q: &[f32], k: &[f32], kv_head: usize, row: usize, out: &mut [f32]) {
        let (hd, kw) = (self.head_dim, self.kv_width());
        let scale = 1.0 / (hd as f32).sqrt();
        let mut max = f32::MIN;
        for (j, w) in out[..=row].iter_mut().enumerate() {
            *w = dot(q, &k[j * kw + kv_head * hd..][..hd]) * scale;
            max = max.max(*w);
        }
        let mut sum = 0.0;
        for w in &mut out[..=row] {
            *w = exp(*w - max);
            sum += *w;
        }
        out[..=row].iter_mut().for_each(|w| *w /= sum);
    }

    fn forward(&self, rotation: &Rotation, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let (hd, qw, kw) = (self.head_dim, self.q_width(), self.kv_width());
        let n = q.len() / qw;
        let (q, k) = (rotation.rotated(q, qw), rotation.rotated(k, kw));
        let mut weights = vec![0f32; n];
        for head in 0..self.n_heads {
            let kv_head = head * self.n_kv_heads / self.n_heads;
            for i in 0..n {
                self.weights(&q[i * qw + head * hd..][..hd], &k, kv_head, i, &mut weights);
                let o = &mut out[i * qw + head * hd..][..hd];
                for (j, w) in weights[..=i].iter().enumerate() {
                    axpy(o, *w, &v[j * kw + kv_head * hd..][..hd]);
                }
            }
        }
    }

    /// Adds the gradients of one dialogue into `dq`, `dk`, `dv`; the weights are computed again, not stored.
    fn backward(
        &self,
        rotation: &Rotation,
        [q, k, v, out, grad]: [&[f32]; 5],
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let (hd, qw, kw) = (self.head_dim, self.q_width(), self.kv_width());
        let n = q.len() / qw;
        let scale = 1.0 / (hd as f32).sqrt();
        let (q, k) = (rotation.rotated(q, qw), rotation.rotated(k, kw));
        let mut weights = vec![0f32; n];
        for head in 0..self.n_heads {
            let kv_head = head * self.n_kv_heads / self.n_heads;
            for i in 0..n {
                let at = i * qw + head * hd;
                let (qi, gi) = (&q[at..at + hd], &grad[at..at + hd]);
                self.weights(qi, &k, kv_head, i, &mut weights);
                // The softmax's gradient needs sum_j w_j (g . v_j), which is g . out.
                let mean = dot(gi, &out[at..at + hd]);
                for (j, w) in weights[..=i].iter().enumerate() {
                    let kv = j * kw + kv_head * hd;
                    axpy(&mut dv[kv..kv + hd], *w, gi);
                    let ds = w * (dot(gi, &v[kv..kv + hd]) - mean) * scale;
                    axpy(&mut dq[at..at + hd], ds, &k[kv..kv + hd]);
                    axpy(&mut dk[kv..kv + hd], ds, qi);
                }
            }
        }
        dq.chunks_mut(qw).enumerate().for_each(|(position, row)| rotation.apply(row, position, -1.0));
        dk.chunks_mut(kw).enumerate().for_each(|(position, row)| rotation.apply(row, position, -1.0));
    }
}

/// Eight running sums, so that the compiler may use vector registers: float addition is not associative.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let tail = a.len() - a.len() % 8;
    sums.iter().sum::<f32>() + a[tail..].iter().zip(&b[tail..]).map(|(a, b)| a * b).sum::<f32>()
}

fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "train-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let packed = &self.0;
        let (q, k, v) = (slice(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?);
        let rotation = Rotation::new(packed);
        let mut out = vec![0f32; q.len()];
        packed
            .split_mut(&mut out, packed.q_width())
            .into_par_iter()
            .zip(packed.split(q, packed.q_width()))
            .zip(packed.split(k, packed.kv_width()))
            .zip(packed.split(v, packed.kv_width()))
            .for_each(|(((out, q), k), v)| packed.forward(&rotation, q, k, v, out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let packed = &self.0;
        let rotation = Rotation::new(packed);
        let (qw, kw) = (packed.q_width(), packed.kv_width());
        let mut dq = vec![0f32; q.elem_count()];
        let (mut dk, mut dv) = (vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        with_f32(q, |q| {
            with_f32(k, |k| {
                with_f32(v, |v| {
                    with_f32(out, |out| {
                        with_f32(grad, |grad| {
                            let inputs = packed
                                .split(q, qw)
                                .into_par_iter()
                                .zip(packed.split(k, kw))
                                .zip(packed.split(v, kw))
                                .zip(packed.split(out, qw))
                                .zip(packed.split(grad, qw));
                            packed
                                .split_mut(&mut dq, qw)
                                .into_par_iter()
                                .zip(packed.split_mut(&mut dk, kw))
                                .zip(packed.split_mut(&mut dv, kw))
                                .zip(inputs)
                                .for_each(|(((dq, dk), dv), ((((q, k), v), out), grad))| {
                                    packed.backward(&rotation, [q, k, v, out, grad], [dq, dk, dv]);
                                });
                        })
                    })
                })
            })
        })?????;
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dk, k.shape(), k.device())?),
            Some(Tensor::from_vec(dv, v.shape(), v.device())?),
        ))
    }
}
