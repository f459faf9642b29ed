//! The models of one process, in the order of its configuration. `model` of a request chooses one.

use std::{
    borrow::Cow,
    path::Path,
    sync::{Arc, OnceLock},
};

use candela_engine::EngineConfig;
use candela_wire::{config::ServerConfig, internal::Startup};
use serde::Deserialize;

use crate::{
    Fatal,
    model::{self, Served},
    progress::Progress,
};

/// At least one; each is there once it is loaded and warm.
pub(crate) struct Models(Vec<OnceLock<Served>>);

/// Which model a request turned out to ask for, for whoever is around its handler.
#[derive(Clone, Default)]
pub(crate) struct Chosen(Arc<OnceLock<String>>);

impl Chosen {
    pub(crate) fn set(&self, served: &Served) {
        // A request asks for one model, once.
        let _ = self.0.set(served.name.clone());
    }
}

impl Models {
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self(config.models.iter().map(|_| OnceLock::new()).collect())
    }

    /// Those that are loaded; all of them when the process is ready.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = &Served> {
        self.0.iter().filter_map(OnceLock::get)
    }

    pub(crate) fn are_all_loaded(&self) -> bool {
        self.0.iter().all(|model| model.get().is_some())
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Served> {
        self.loaded().find(|served| served.name == name)
    }

    /// The model of an answer: the only one, or the one that its request asked for.
    pub(crate) fn answering(&self, chosen: &Chosen) -> Option<&Served> {
        match &self.0[..] {
            [only] => only.get(),
            _ => self.named(chosen.0.get()?),
        }
    }

    /// The model that a request asks for, or `Err` with the name that none has. What is no JSON, or names none, is the
    /// first one's: its route says what is wrong with it.
    pub(crate) fn asked(&self, body: &[u8]) -> Result<Option<&Served>, String> {
        #[derive(Deserialize)]
        struct Asked<'a> {
            #[serde(borrow)]
            model: Cow<'a, str>,
        }
        if self.0.len() == 1 {
            return Ok(self.loaded().next());
        }
        match serde_json::from_slice::<Asked<'_>>(body) {
            Ok(Asked { model }) => self.named(&model).map(Some).ok_or_else(|| model.into_owned()),
            Err(_) => Ok(self.loaded().next()),
        }
    }

    /// Loads one after the other, so that each may have all threads and the peak of memory is that of one load. Blocks.
    /// The seconds of the phases are sums over the models.
    pub(crate) fn load(
        &self,
        config: &ServerConfig,
        models_dir: &Path,
        engine: &EngineConfig,
        progress: &Progress,
    ) -> Result<Startup, Fatal> {
        let mut sum = Startup::default();
        let weights: Vec<u64> =
            config.models.iter().map(|wanted| model::weight_bytes(wanted, models_dir)).collect();
        let mut left = engine.memory_limit_bytes;
        for (at, (slot, wanted)) in self.0.iter().zip(&config.models).enumerate() {
            let memory_limit_bytes = left.map(|left| share(left, &weights[at..]));
            let engine = EngineConfig { memory_limit_bytes, ..engine.clone() };
            let (served, startup) = model::load(wanted, models_dir, &engine, progress).map_err(|fatal| {
                // Among several, the message says which one it speaks of.
                if self.0.len() == 1 {
                    return fatal;
                }
                Fatal { message: format!("model `{}`: {}", wanted.served_name, fatal.message), ..fatal }
            })?;
            let needs = served.loaded.facts().memory.total_bytes();
            left = left.map(|left| left.saturating_sub(needs));
            sum = Startup {
                fetch_seconds: add(sum.fetch_seconds, startup.fetch_seconds),
                load_seconds: add(sum.load_seconds, startup.load_seconds),
                warmup_seconds: add(sum.warmup_seconds, startup.warmup_seconds),
                first_token_seconds: None,
            };
            // Each slot is set here only.
            let _ = slot.set(served);
        }
        Ok(sum)
    }
}

/// What the first of these models may use of the bytes that are left: its weights, and an equal part of what the weights
/// of all of them leave. Without that, its KV cache would take what the others' weights need.
fn share(left: u64, weights: &[u64]) -> u64 {
    // Packed, weights take a little more than in their files.
    let packed = |bytes: u64| bytes.saturating_add(bytes / 4);
    let all = weights.iter().fold(0u64, |sum, bytes| sum.saturating_add(packed(*bytes)));
    let own = weights.first().map_or(0, |bytes| packed(*bytes));
    let rest = left.saturating_sub(all) / (weights.len().max(1) as u64);
    match weights.len() {
        0 | 1 => left,
        _ => own.saturating_add(rest).min(left),
    }
}

fn add(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_model_leaves_the_others_their_weights_and_a_part_of_the_rest() {
        const GIB: u64 = 1 << 30;
        assert_eq!(share(8 * GIB, &[4 * GIB]), 8 * GIB, "alone");
        // 5 + 1.25 GiB packed of 10: 3.75 are left for the two.
        assert_eq!(share(10 * GIB, &[4 * GIB, GIB]), 5 * GIB + 15 * GIB / 8);
        assert_eq!(share(10 * GIB - (5 * GIB + 15 * GIB / 8), &[GIB]), 10 * GIB - (5 * GIB + 15 * GIB / 8));
        // Too little for all: each may take what its weights need, and the one that finds no room says so.
        assert_eq!(share(4 * GIB, &[2 * GIB, 2 * GIB]), 2 * GIB + GIB / 2);
        assert_eq!(share(GIB, &[2 * GIB, 2 * GIB]), GIB);
        assert_eq!(share(u64::MAX, &[u64::MAX, u64::MAX]), u64::MAX);
    }
}
