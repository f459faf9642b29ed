//! Types that cross a process boundary: the file the operator writes for a server, the internal status contract,
//! termination messages, OpenAI and problem+json bodies. No I/O, no business rules.

pub mod config;
pub mod encoders;
pub mod entities;
pub mod health;
pub mod internal;
pub mod native;
pub mod openai;
pub mod problem;
pub mod sse;
pub mod termination;
pub mod trust;
