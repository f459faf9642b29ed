//! The operator on the in-memory API server: every crash, refusal and loss ends in the same state, and then nobody
//! writes. `CANDELA_PROVE=1` runs all faults at all writes; without it a seeded slice.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking and print their figures"
)]

mod faults;
mod planted;
mod rest;
mod trust;
