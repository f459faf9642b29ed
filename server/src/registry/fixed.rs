//! The models of the configuration: loaded one after the other at the start, and kept.

use std::{path::Path, sync::Arc, time::SystemTime};

use candela_engine::EngineConfig;
use candela_wire::{config::ServerConfig, internal::Startup};

use super::{Registry, machine::State};
use crate::{Fatal, model, progress::Progress};

impl Registry {
    /// Loads one after the other, so that each may have all threads and the peak of memory is that of one load. Blocks.
    /// The seconds of the phases are sums over the models. Then those of the repository may begin.
    pub(crate) fn load_fixed(
        &self,
        config: &ServerConfig,
        models_dir: &Path,
        engine: &EngineConfig,
        progress: &Progress,
    ) -> Result<Startup, Fatal> {
        let mut sum = Startup::default();
        let least: Vec<u64> = match config.models.len() {
            // It may have all.
            1 => vec![0],
            _ => config.models.iter().map(|wanted| model::least_bytes(wanted, models_dir, engine)).collect(),
        };
        let reserved = self.0.options.memory_bytes.unwrap_or(0);
        let mut left = engine.memory_limit_bytes.map(|limit| limit.saturating_sub(reserved));
        for (at, wanted) in config.models.iter().enumerate() {
            let memory_limit_bytes = left.map(|left| share(left, &least[at..]));
            let engine = EngineConfig { memory_limit_bytes, ..engine.clone() };
            let (mut served, startup) =
                model::load(wanted, models_dir, &engine, progress).map_err(|failure| {
                    // Among several, the message says which one it speaks of.
                    let fatal = failure.fatal;
                    if config.models.len() == 1 {
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
            let mut book = self.0.book();
            let entry = &mut book.fixed[at];
            served.aliases = self.0.aliases_of(&entry.key);
            (entry.state, entry.bytes, entry.since) = (State::Ready, needs, SystemTime::now());
            entry.reason = String::new();
            entry.served = vec![Arc::new(served)];
            self.0.publish(&mut book);
        }
        let mut book = self.0.book();
        book.machine.set_budget(self.0.options.memory_bytes.or(left));
        book.begun = true;
        self.0.publish(&mut book);
        drop(book);
        self.begin();
        Ok(sum)
    }
}

/// What the first of these models may use of the bytes that are left: the least that it can be loaded in, and an equal
/// part of what the least of all of them leaves. Without that, its KV cache would take what the others' weights need.
fn share(left: u64, least: &[u64]) -> u64 {
    let all = least.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    let own = least.first().copied().unwrap_or(0);
    let rest = left.saturating_sub(all) / (least.len().max(1) as u64);
    match least.len() {
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
    fn the_first_model_leaves_the_others_the_least_they_need_and_a_part_of_the_rest() {
        const GIB: u64 = 1 << 30;
        assert_eq!(share(8 * GIB, &[4 * GIB]), 8 * GIB, "alone");
        // 5 of 10: 5 are left for the two.
        assert_eq!(share(10 * GIB, &[4 * GIB, GIB]), 4 * GIB + 5 * GIB / 2);
        assert_eq!(share(10 * GIB - 13 * GIB / 2, &[GIB]), 10 * GIB - 13 * GIB / 2);
        // Too little for all: each may take what it needs, and the one that finds no room says so.
        assert_eq!(share(3 * GIB, &[2 * GIB, 2 * GIB]), 2 * GIB);
        assert_eq!(share(GIB, &[2 * GIB, 2 * GIB]), GIB);
        assert_eq!(share(u64::MAX, &[u64::MAX, u64::MAX]), u64::MAX);
    }
}
