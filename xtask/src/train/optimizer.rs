//! Muon for the matrices inside the layers, AdamW for the embedding and the norms. Muon replaces a matrix's momentum
//! by the nearest orthogonal one (five Newton-Schulz steps); at this size it needs roughly half the tokens of AdamW.

use std::collections::HashMap;

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

const MOMENTUM: f64 = 0.95;
const ADAM_BETAS: (f64, f64) = (0.9, 0.97);
/// Weight decay per unit of learning rate, on matrices only.
const DECAY: f64 = 0.05;

/// Learning rates of one step.
#[derive(Clone, Copy)]
pub(super) struct Rates {
    pub(super) muon: f64,
    pub(super) adam: f64,
}

/// Running averages by parameter name, saved with a checkpoint.
#[derive(Default)]
pub(super) struct Optimizer {
    pub(super) state: HashMap<String, Tensor>,
}

impl Optimizer {
    /// Updates every parameter; returns the gradient's norm before clipping. `grads` are in the parameters' order.
    pub(super) fn step(
        &mut self,
        parameters: &[(String, &Var)],
        grads: &[Tensor],
        step: usize,
        rates: Rates,
    ) -> Result<f32> {
        let mut square = 0f32;
        for grad in grads {
            square += grad.sqr()?.sum_all()?.to_scalar::<f32>()?;
        }
        let norm = square.sqrt();
        let clip = f64::from((1.0 / (norm + 1e-6)).min(1.0));
        let (matrices, others): (Vec<_>, Vec<_>) =
            parameters.iter().zip(grads).partition(|((name, _), _)| name.ends_with("_proj.weight"));
        for ((name, var), grad) in others {
            self.adam(name, var, &(grad * clip)?, step, rates.adam)?;
        }
        let state = &self.state;
        let momenta: Vec<(String, Tensor)> = matrices
            .into_par_iter()
            .map(|((name, var), grad)| {
                let key = format!("momentum.{name}");
                let momentum = muon(var, state.get(&key), &(grad * clip)?, rates.muon)?;
                Ok((key, momentum))
            })
            .collect::<Result<_>>()?;
        self.state.extend(momenta);
        Ok(norm)
    }

    fn adam(&mut self, name: &str, var: &Var, grad: &Tensor, step: usize, rate: f64) -> Result<()> {
        let (b1, b2) = ADAM_BETAS;
        let mut average = |key: String, beta: f64, new: Tensor| -> Result<Tensor> {
            let new = (new * (1.0 - beta))?;
            let value = match self.state.get(&key) {
                Some(old) => ((old * beta)? + new)?,
                None => new,
            };
            self.state.insert(key, value.clone());
            Ok(value)
        };
        let mean = average(format!("mean.{name}"), b1, grad.clone())?;
        let square = average(format!("square.{name}"), b2, grad.sqr()?)?;
        let t = step as i32 + 1;
        let mean = (mean / (1.0 - b1.powi(t)))?;
        let root = ((square / (1.0 - b2.powi(t)))?.sqrt()? + 1e-8)?;
        var.set(&(var.as_detached_tensor() - ((mean / root)? * rate)?)?)
    }
}

/// Moves one matrix and returns its new momentum.
fn muon(var: &Var, momentum: Option<&Tensor>, grad: &Tensor, rate: f64) -> Result<Tensor> {
    let momentum = match momentum {
        Some(m) => ((m * MOMENTUM)? + grad)?,
        None => grad.clone(),
    };
    let update = orthogonal(&(grad + (&momentum * MOMENTUM)?)?)?;
    // Weights are [in, out]: a layer that widens gets larger steps, so that its output moves as far.
    let (n_in, n_out) = var.dims2()?;
    let scale = (n_out as f64 / n_in as f64).max(1.0).sqrt();
    var.set(&((var.as_detached_tensor() * (1.0 - rate * DECAY))? - (update * (rate * scale))?)?)?;
    Ok(momentum)
}

/// Newton-Schulz iteration towards the orthogonal matrix nearest to `g`; the coefficients are Muon's published ones.
fn orthogonal(g: &Tensor) -> Result<Tensor> {
    let (a, b, c) = (3.4445, -4.7750, 2.0315);
    let (rows, cols) = g.dims2()?;
    let wide = if rows > cols { g.t()?.contiguous()? } else { g.contiguous()? };
    let norm = f64::from(wide.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt() + 1e-7;
    let mut x = (wide / norm)?;
    for _ in 0..5 {
        let gram = x.matmul(&x.t()?)?;
        let poly = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + poly.matmul(&x)?)?;
    }
    if rows > cols { x.t()?.contiguous() } else { Ok(x) }
}
