//! The program under load that lasts: more than it can do, hours of short requests, clients that hang up.
//! `CANDELA_PROVE=1` asks for the long variants, which `make prove` runs and keeps.

#![expect(clippy::print_stdout, reason = "the figures of a run are read in its output")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod disconnects;
mod overload;
mod program;
mod soak;

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

/// Figures of two tests that share the cores would be of neither.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// What the slice in `make test` asks for, or what the proof does.
fn slice_or_proof<T>(slice: T, proof: T) -> T {
    if std::env::var_os("CANDELA_PROVE").is_some() { proof } else { slice }
}

/// The middle one; what a single odd sample says does not count.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

const PATIENCE: Duration = Duration::from_secs(60);
