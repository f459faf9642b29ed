//! Choosing the next token from logits. Never sorts the whole vocabulary.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::SamplingParams;

/// State of one sequence's sampling.
pub(crate) struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// How often each token occurs in the output.
    output_counts: HashMap<u32, u32>,
    /// Tokens of the prompt, for the repetition penalty.
    prompt: Vec<u32>,
}

/// Why no token could be chosen.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the model computed {0} as a logit; its weights are damaged or overflow f32")]
pub(crate) struct BadLogit(f32);

impl Sampler {
    pub(crate) fn new(params: SamplingParams, prompt: &[u32]) -> Self {
        let rng = match params.seed {
            Some(seed) => ChaCha8Rng::seed_from_u64(seed),
            None => ChaCha8Rng::from_rng(&mut rand::rng()),
        };
        let mut unique = Vec::new();
        if params.repetition_penalty != 1.0 {
            unique = prompt.to_vec();
            unique.sort_unstable();
            unique.dedup();
        }
        Self { params, rng, output_counts: HashMap::new(), prompt: unique }
    }

    /// Chooses a token and remembers it; `logits` are changed by the penalties.
    pub(crate) fn sample(&mut self, logits: &mut [f32]) -> Result<u32, BadLogit> {
        if let Some(bad) = logits.iter().find(|x| x.is_nan() || **x == f32::INFINITY) {
            return Err(BadLogit(*bad));
        }
        self.adjust(logits);
        let id = if self.params.temperature == 0.0 { argmax(logits) } else { self.draw(logits) };
        *self.output_counts.entry(id).or_default() += 1;
        Ok(id)
    }

    fn adjust(&self, logits: &mut [f32]) {
        let params = &self.params;
        let repetition = params.repetition_penalty;
        if repetition != 1.0 {
            let seen = self.prompt.iter().chain(self.output_counts.keys().filter(|id| {
                // Once per token, whether it is in prompt, output or both.
                self.prompt.binary_search(id).is_err()
            }));
            for &id in seen {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
                }
            }
        }
        if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
            for (&id, &count) in &self.output_counts {
                if let Some(x) = logits.get_mut(id as usize) {
                    *x -= params.presence_penalty + params.frequency_penalty * count as f32;
                }
            }
        }
        for &(id, bias) in &params.logit_bias {
            if let Some(x) = logits.get_mut(id as usize) {
                *x += bias;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let best = argmax(logits);
        let highest = logits[best as usize];
        // Unnormalised weights relative to the likeliest token, so the largest is 1 and none overflows.
        let temperature = self.params.temperature;
        let weight = |x: f32| ((x - highest) / temperature).exp();
        let filtered = self.params.top_k != 0 || self.params.top_p < 1.0 || self.params.min_p > 0.0;
        let mut candidates: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .map(|(id, &x)| (id as u32, weight(x)))
            .filter(|&(_, w)| w > 0.0 && w >= self.params.min_p)
            .collect();
        if filtered {
            self.keep_likeliest(&mut candidates);
        }
        let total: f64 = candidates.iter().map(|&(_, w)| f64::from(w)).sum();
        let mut left = self.rng.random::<f64>() * total;
        for &(id, w) in &candidates {
            left -= f64::from(w);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a sliver behind the last candidate.
        candidates.last().map_or(best, |&(id, _)| id)
    }

    /// Cuts to `top_k` and `top_p`, likeliest first, sorting only as far as needed.
    fn keep_likeliest(&self, candidates: &mut Vec<(u32, f32)>) {
        // Ties go to the lower id, so that the result does not depend on how the selection works.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let top_k = self.params.top_k as usize;
        if top_k != 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        if self.params.top_p >= 1.0 {
            candidates.sort_unstable_by(order);
            return;
        }
        let total: f64 = candidates.iter().map(|&(_, w)| f64::from(w)).sum();
        let target = total * f64::from(self.params.top_p);
        let (mut mass, mut sorted) = (0.0, 0);
        while sorted < candidates.len() {
            // Most often the first few dozen tokens hold the mass; else look at eight times as many.
            let end = (sorted * 8).max(64).min(candidates.len());
            if end < candidates.len() {
                candidates[sorted..].select_nth_unstable_by(end - sorted - 1, order);
            }
            candidates[sorted..end].sort_unstable_by(order);
            for i in sorted..end {
                mass += f64::from(candidates[i].1);
                if mass >= target {
                    candidates.truncate(i + 1);
                    return;
                }
            }
            sorted = end;
        }
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Log-probability of `id`, and the `n` likeliest ids with theirs, likeliest first.
pub(crate) fn logprobs(logits: &[f32], id: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - highest).exp()).sum();
    let normaliser = highest + sum.ln() as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = n.min(ids.len());
    if n == 0 {
        ids.clear();
    } else {
        ids.select_nth_unstable_by(n - 1, order);
        ids.truncate(n);
        ids.sort_unstable_by(order);
    }
    let top = ids.into_iter().map(|id| (id, logits[id as usize] - normaliser)).collect();
    (logits[id as usize] - normaliser, top)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(params: &SamplingParams, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(params.clone(), &[]);
        (0..n).map(|_| sampler.sample(&mut logits.to_vec()).unwrap()).collect()
    }

    fn seeded(seed: u64) -> SamplingParams {
        SamplingParams { seed: Some(seed), ..SamplingParams::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(ids(&SamplingParams::greedy(), &[0.0, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 100) as f32 / 25.0).collect();
        for params in [
            seeded(1),
            SamplingParams { top_p: 0.7, ..seeded(1) },
            SamplingParams { top_k: 40, min_p: 0.1, temperature: 1.5, ..seeded(1) },
        ] {
            let first = ids(&params, &logits, 50);
            assert_eq!(first, ids(&params, &logits, 50));
            assert_ne!(first, ids(&SamplingParams { seed: Some(2), ..params }, &logits, 50));
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.5, 0.3, 0.2; 20,000 draws have a standard deviation below 0.0036.
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let drawn = ids(&seeded(7), &logits, 20_000);
        for (id, p) in [(0, 0.5), (1, 0.3), (2, 0.2)] {
            let share = drawn.iter().filter(|&&d| d == id).count() as f64 / 20_000.0;
            assert!((share - p).abs() < 0.018, "{id}: {share}");
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        let kept = |params: SamplingParams| {
            let mut all = ids(&params, &logits, 500);
            all.sort_unstable();
            all.dedup();
            all
        };
        assert_eq!(kept(SamplingParams { top_k: 2, ..seeded(1) }), [0, 1]);
        assert_eq!(kept(SamplingParams { top_p: 0.65, ..seeded(1) }), [0, 1]);
        assert_eq!(kept(SamplingParams { top_p: 0.75, ..seeded(1) }), [0, 1, 2]);
        assert_eq!(kept(SamplingParams { min_p: 0.4, ..seeded(1) }), [0, 1, 2]);
        assert_eq!(kept(seeded(1)), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_over_a_large_flat_vocabulary_agrees_with_a_full_sort() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5000) as f32 / 5000.0).collect();
        let sampler = Sampler::new(SamplingParams { top_p: 0.5, ..seeded(1) }, &[]);
        let mut kept: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| x.exp())).collect();
        let mut expected = kept.clone();
        sampler.keep_likeliest(&mut kept);
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        expected.truncate(kept.len());
        assert_eq!(kept, expected);
        let (mass, total): (f32, f32) =
            (kept.iter().map(|k| k.1).sum(), logits.iter().map(|x| x.exp()).sum());
        assert!((mass / total - 0.5).abs() < 0.001);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = SamplingParams::greedy();
        let presence = SamplingParams { presence_penalty: 0.6, ..greedy.clone() };
        assert_eq!(ids(&presence, &[1.0, 0.5, 0.0], 3), [0, 1, 0]);
        let frequency = SamplingParams { frequency_penalty: 0.3, ..greedy.clone() };
        assert_eq!(ids(&frequency, &[1.0, 0.5, 0.0], 4), [0, 0, 1, 0]);
        let bias = SamplingParams { logit_bias: vec![(0, -100.0)], ..greedy.clone() };
        assert_eq!(ids(&bias, &[1.0, 0.5], 1), [1]);
        let mut repetition = Sampler::new(SamplingParams { repetition_penalty: 4.0, ..greedy }, &[0]);
        assert_eq!(repetition.sample(&mut [1.0, 0.5]), Ok(1), "0 is in the prompt");
        assert_eq!(repetition.sample(&mut [1.0, 0.5]), Ok(0), "both are seen now");
    }

    #[test]
    fn damaged_logits_are_an_error() {
        let mut sampler = Sampler::new(SamplingParams::greedy(), &[]);
        assert!(sampler.sample(&mut [0.0, f32::NAN]).is_err());
        assert!(sampler.sample(&mut [0.0, f32::INFINITY]).is_err());
    }

    #[test]
    fn log_probabilities_add_up() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln() + 5.0).collect();
        let (chosen, top) = logprobs(&logits, 2, 2);
        assert!((chosen - 0.2f32.ln()).abs() < 1e-5);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
        assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-5);
    }
}
