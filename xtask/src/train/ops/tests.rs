//! The hand-written gradients against finite differences, through the whole network.

#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::model::{Batch, Config, Model};

fn tiny() -> (Model, Batch) {
    let config = Config {
        hidden: 16,
        intermediate: 24,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 4,
        ..Config::demo(32)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let model = Model::new(config, &mut rng).unwrap();
    // Zero-initialised projections would hide the gradients behind them.
    for (_, var) in model.parameters() {
        let noise: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-0.3..0.3)).collect();
        let noise = candle_core::Tensor::from_vec(noise, var.shape(), var.device()).unwrap();
        var.set(&(var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
    let mut draw = |n: usize| (0..n).map(|_| rng.random_range(0..32)).collect::<Vec<u32>>();
    let (tokens, targets) = (draw(13), draw(13));
    let weights = (0..13).map(|i| [1.0, 0.0, 0.3][i % 3]).collect();
    (model, Batch { tokens, targets, weights, lengths: vec![5, 1, 7] })
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (model, batch) = tiny();
    let grads = model.loss(&batch).unwrap().backward().unwrap();
    for (name, var) in model.parameters() {
        let grad = grads.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let loss_with = |values: Vec<f32>| {
            var.set(&candle_core::Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
            f64::from(model.loss(&batch).unwrap().to_scalar::<f32>().unwrap())
        };
        // The steepest entry: there the difference stands furthest above f32 rounding.
        let at = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).unwrap();
        let step = 3e-3;
        let moved = |by: f32| {
            let mut values = values.clone();
            values[at] += by;
            values
        };
        let measured = (loss_with(moved(step)) - loss_with(moved(-step))) / f64::from(2.0 * step);
        loss_with(values.clone());
        let error = (measured - f64::from(grad[at])).abs();
        assert!(error < 0.02 * measured.abs() + 2e-4, "{name}: {measured} measured, {} computed", grad[at]);
    }
}

#[test]
fn packed_dialogues_do_not_see_each_other() {
    let (model, batch) = tiny();
    let together = model.hidden(&batch.tokens, &batch.lengths).unwrap().to_vec2::<f32>().unwrap();
    let alone = model.hidden(&batch.tokens[6..], &[7]).unwrap().to_vec2::<f32>().unwrap();
    for (a, b) in together[6..].iter().flatten().zip(alone.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
}

#[test]
fn the_polynomial_exponential_is_exact_to_f32_rounding() {
    for i in -8000..8000 {
        let x = i as f32 / 100.0;
        // Rounding x * log2(e) moves the result by up to |x| ulps' worth.
        assert!((super::exp(x) / x.exp() - 1.0).abs() < 2e-7 * (1.0 + x.abs()), "at {x}");
    }
}
