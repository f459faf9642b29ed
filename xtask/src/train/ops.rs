//! Fused CPU operations with hand-written gradients. candle's own elementwise operations run on one thread and
//! keep every intermediate for the backward pass; training a small model spends more time there than in matmuls.
//! Attention is in `attention.rs`. Nothing here knows the model.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

/// Rows handled by one rayon task: large enough to hide the cost of a task, small enough to balance two threads.
const ROWS: usize = 32;

/// Runs `f` over the values of a contiguous f32 CPU tensor without copying them.
pub(super) fn with_f32<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("training runs on the CPU only") };
    Ok(f(slice(storage, layout)?))
}

/// The values behind a storage that an operation was given.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("fused operations need contiguous inputs"),
    }
}

/// e^x by range reduction and a polynomial: within a few ulps of libm near 0, and the compiler can vectorise it.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
    let t = x.clamp(-87.0, 88.0) * std::f32::consts::LOG2_E;
    let shifted = t + ROUND;
    let f = (t - (shifted - ROUND)) * std::f32::consts::LN_2;
    let p = 1.0 + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f / 720.0)))));
    p * f32::from_bits(shifted.to_bits().wrapping_add(127).wrapping_shl(23))
}

/// `x / rms(x) * weight`, over the last dimension.
pub(super) struct RmsNorm {
    pub(super) eps: f32,
}

impl RmsNorm {
    fn scale(&self, row: &[f32]) -> f32 {
        1.0 / (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "train-rms-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(s1, l1)?, slice(s2, l2)?);
        let d = weight.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(d * ROWS).zip(x.par_chunks(d * ROWS)).for_each(|(y, x)| {
            for (y, x) in y.chunks_mut(d).zip(x.chunks(d)) {
                let scale = self.scale(x);
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * scale * w;
                }
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = w.elem_count();
        let (dx, dw) = with_f32(x, |x| {
            with_f32(w, |w| {
                with_f32(grad, |g| {
                    let mut dx = vec![0f32; x.len()];
                    let dw = dx
                        .par_chunks_mut(d * ROWS)
                        .zip(x.par_chunks(d * ROWS))
                        .zip(g.par_chunks(d * ROWS))
                        .map(|((dx, x), g)| {
                            let mut dw = vec![0f32; d];
                            for ((dx, x), g) in dx.chunks_mut(d).zip(x.chunks(d)).zip(g.chunks(d)) {
                                let scale = self.scale(x);
                                let dot: f32 = x.iter().zip(g).zip(w).map(|((x, g), w)| x * g * w).sum();
                                let back = scale * scale * scale * dot / d as f32;
                                for i in 0..d {
                                    dx[i] = scale * w[i] * g[i] - back * x[i];
                                    dw[i] += x[i] * scale * g[i];
                                }
                            }
                            dw
                        })
                        .reduce(|| vec![0f32; d], add);
                    (dx, dw)
                })
            })
        })???;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(Tensor::from_vec(dw, d, x.device())?)))
    }
}

fn add(mut a: Vec<f32>, b: Vec<f32>) -> Vec<f32> {
    a.iter_mut().zip(&b).for_each(|(a, b)| *a += b);
    a
}

/// `silu(gate) * up`.
pub(super) struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "train-swiglu"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (slice(s1, l1)?, slice(s2, l2)?);
        let mut y = vec![0f32; gate.len()];
        let n = 1 << 14;
        y.par_chunks_mut(n).zip(gate.par_chunks(n)).zip(up.par_chunks(n)).for_each(|((y, g), u)| {
            for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                *y = g / (1.0 + exp(-g)) * u;
            }
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = 1 << 14;
        let (dg, du) = with_f32(gate, |gate| {
            with_f32(up, |up| {
                with_f32(grad, |grad| {
                    let (mut dg, mut du) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
                    let inputs = gate.par_chunks(n).zip(up.par_chunks(n)).zip(grad.par_chunks(n));
                    dg.par_chunks_mut(n).zip(du.par_chunks_mut(n)).zip(inputs).for_each(
                        |((dg, du), ((g, u), grad))| {
                            for i in 0..g.len() {
                                let sigmoid = 1.0 / (1.0 + exp(-g[i]));
                                let silu = g[i] * sigmoid;
                                du[i] = grad[i] * silu;
                                dg[i] = grad[i] * u[i] * (sigmoid + silu * (1.0 - sigmoid));
                            }
                        },
                    );
                    (dg, du)
                })
            })
        })???;
        let back = |v| Tensor::from_vec(v, gate.shape(), gate.device());
        Ok((Some(back(dg)?), Some(back(du)?)))
    }
}

/// Weighted mean of the cross entropy of each row of logits. Rows of weight 0 cost nothing.
pub(super) struct CrossEntropy {
    pub(super) targets: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

impl CrossEntropy {
    fn total(&self) -> f32 {
        self.weights.iter().sum::<f32>().max(1e-6)
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "train-cross-entropy"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = slice(s, l)?;
        let vocab = logits.len() / self.targets.len();
        let sum: f32 = logits
            .par_chunks(vocab)
            .zip(&self.targets)
            .zip(&self.weights)
            .filter(|(_, w)| **w > 0.0)
            .map(|((row, target), w)| {
                let max = row.iter().fold(f32::MIN, |a, b| a.max(*b));
                let sum: f32 = row.iter().map(|x| exp(x - max)).sum();
                w * (sum.ln() + max - row[*target as usize])
            })
            .sum();
        Ok((CpuStorage::F32(vec![sum / self.total()]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_scalar::<f32>()? / self.total();
        let d = with_f32(logits, |values| {
            let vocab = values.len() / self.targets.len();
            let mut d = vec![0f32; values.len()];
            d.par_chunks_mut(vocab)
                .zip(values.par_chunks(vocab))
                .zip(&self.targets)
                .zip(&self.weights)
                .for_each(|(((d, row), target), w)| {
                    if *w == 0.0 {
                        return;
                    }
                    let max = row.iter().fold(f32::MIN, |a, b| a.max(*b));
                    for (d, x) in d.iter_mut().zip(row) {
                        *d = exp(x - max);
                    }
                    let factor = scale * w / d.iter().sum::<f32>();
                    d.iter_mut().for_each(|d| *d *= factor);
                    d[*target as usize] -= scale * w;
                });
            d
        })?;
        Ok(Some(Tensor::from_vec(d, logits.shape(), logits.device())?))
    }
}

#[cfg(test)]
mod tests;
