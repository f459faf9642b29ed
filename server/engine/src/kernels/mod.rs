//! What the engine computes with on a CPU. Works on slices, knows nothing of models or requests.
//!
//! One rule holds for everything here: the order of the floating-point operations behind one output element depends on
//! its position and on fixed block sizes, never on how many rows a call has, how they are tiled, how a prompt was cut
//! or how many threads there are. So within one [`Isa`] the same token has the same bits in any batch.
//!
//! `unsafe` is allowed here (and in `files/mmap.rs`), each block with what it relies on.

#![allow(
    clippy::needless_range_loop,
    clippy::too_many_arguments,
    reason = "tiles of registers are arrays by index"
)]

mod attention;
mod isa;
mod kv_store;
mod matrix;
mod pack;
mod pool;
mod product;
mod raw;
mod rows;
mod shared;
mod simd;
#[cfg(test)]
mod tests;

pub(crate) use attention::{AttentionShape, SequenceRows, attention, attention_bidirectional};
pub(crate) use isa::Isa;
pub use kv_store::KvType;
pub(crate) use kv_store::{BLOCK_TOKENS, KvStore};
pub(crate) use matrix::{Linear, PackedFormat, PackedMatrix, Scratch};
pub use pool::thread_name;
pub(crate) use pool::{Pool, Pulse, is_worker};
pub(crate) use raw::{RawTensor, StoredType};
pub(crate) use rows::{
    Activation, HeadColumns, Rotation, activate, add, gated, layer_norm, rms_norm, rms_norm_heads, rope,
    softcap,
};
