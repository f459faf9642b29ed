//! Keys and values of all sequences, in blocks of 32 tokens.
//!
//! A layer has one slab; a block in it holds, for each kv head, the keys transposed as (head_dim, 32) so that the scores
//! of 32 tokens are sums over sequential vectors, then the values as (32, head_dim rounded up to 16), and for int8 the
//! scales of the 32 keys and of the 32 values. Who owns which block is the scheduler's business.

#![allow(
    unsafe_code,
    reason = "a kernel module: zeroed pages straight from the allocator, written through pointers"
)]

use std::io;

use memmap2::MmapMut;

use super::simd::{MAX_LANES, Simd};

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: usize = 32;
/// The largest head that attention takes.
pub(crate) const MAX_HEAD_DIM: usize = 512;

/// How keys and values are kept; arithmetic is in f32 in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvType {
    F32,
    F16,
    /// A scale (the largest magnitude / 127) for each token, kv head, and key or value.
    Int8,
}

impl KvType {
    fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// Where the parts of one kv head lie in a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HeadLayout {
    pub(super) kv_type: KvType,
    pub(super) head_dim: usize,
    /// Elements from one token's value to the next: `head_dim` rounded up to whole vectors.
    pub(super) padded: usize,
    /// Bytes from the keys to the values.
    pub(super) values: usize,
    /// Bytes from the keys to the scales of the keys; those of the values follow.
    pub(super) scales: usize,
    pub(super) bytes: usize,
}

impl HeadLayout {
    pub(super) fn new(kv_type: KvType, head_dim: usize) -> Self {
        let padded = head_dim.next_multiple_of(MAX_LANES);
        let values = (head_dim * BLOCK_TOKENS * kv_type.element_bytes()).next_multiple_of(64);
        let scales = values + padded * BLOCK_TOKENS * kv_type.element_bytes();
        let bytes = scales + if kv_type == KvType::Int8 { 2 * BLOCK_TOKENS * 4 } else { 0 };
        Self { kv_type, head_dim, padded, values, scales, bytes }
    }
}

/// See the module.
pub(crate) struct KvStore {
    pub(super) layout: HeadLayout,
    pub(super) kv_heads: usize,
    n_blocks: usize,
    slabs: Vec<Slab>,
    /// For each block, the last call that wrote it and for which sequence (see [`KvStore::claim`]).
    claims: Vec<(u64, u32)>,
    calls: u64,
}

impl KvStore {
    /// Bytes that one block takes in all layers together.
    pub(crate) fn bytes_per_block(kv_type: KvType, layers: usize, kv_heads: usize, head_dim: usize) -> u64 {
        let head = HeadLayout::new(kv_type, head_dim).bytes as u64;
        head.saturating_mul(kv_heads as u64).saturating_mul(layers as u64)
    }

    /// Reserves address space for `n_blocks` blocks in each layer; memory is used from when a block is first written.
    pub(crate) fn new(
        kv_type: KvType,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        n_blocks: usize,
    ) -> Result<Self, String> {
        if head_dim == 0 || head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(2) {
            return Err(format!(
                "heads of {head_dim} dimensions (even and at most {MAX_HEAD_DIM} are supported)"
            ));
        }
        if kv_heads == 0 || u32::try_from(n_blocks).is_err() {
            return Err(format!("a KV store of {n_blocks} blocks for {kv_heads} kv heads cannot be made"));
        }
        let layout = HeadLayout::new(kv_type, head_dim);
        let failed =
            |why: &str| format!("cannot reserve {n_blocks} KV blocks in each of {layers} layers: {why}");
        let bytes = layout.bytes.checked_mul(kv_heads).and_then(|bytes| bytes.checked_mul(n_blocks));
        let bytes =
            bytes.filter(|bytes| isize::try_from(*bytes).is_ok()).ok_or_else(|| failed("too many bytes"))?;
        let slabs: io::Result<Vec<_>> = (0..layers).map(|_| Slab::new(bytes)).collect();
        let slabs = slabs.map_err(|error| failed(&error.to_string()))?;
        Ok(Self { layout, kv_heads, n_blocks, slabs, claims: vec![(0, 0); n_blocks], calls: 0 })
    }

    pub(super) fn layers(&self) -> usize {
        self.slabs.len()
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// Bytes from one block of a layer to the next; a block holds `kv_heads` heads of `layout.bytes`.
    pub(super) fn block_stride(&self) -> usize {
        self.layout.bytes * self.kv_heads
    }

    /// The start of a layer's block 0. Writing through it needs the store borrowed mutably.
    pub(super) fn slab(&mut self, layer: usize) -> *mut u8 {
        self.slabs[layer].map.as_mut_ptr()
    }

    /// Makes sure that the sequences of a call neither write the same block nor read one that another writes, which
    /// would be a data race: `sequences` yields for each its block table and the part of it that is written.
    ///
    /// # Panics
    /// Where they do, or name a block out of range: faults of the scheduler.
    pub(super) fn claim<'a>(
        &mut self,
        sequences: impl Iterator<Item = (&'a [u32], std::ops::Range<usize>)> + Clone,
    ) {
        self.calls += 1;
        for (index, (blocks, written)) in (0u32..).zip(sequences.clone()) {
            for id in &blocks[written] {
                let claim =
                    self.claims.get_mut(*id as usize).expect("block ids are below the number of blocks");
                assert!(
                    claim.0 != self.calls,
                    "two sequences write the KV block {id}, or one names it twice"
                );
                *claim = (self.calls, index);
            }
        }
        for (index, (blocks, _)) in (0u32..).zip(sequences) {
            for id in blocks {
                let claim = self.claims.get(*id as usize).expect("block ids are below the number of blocks");
                assert!(
                    claim.0 != self.calls || claim.1 == index,
                    "a sequence reads the KV block {id} of another"
                );
            }
        }
    }
}

/// Zeroed memory from the system, of which only what is touched counts.
struct Slab {
    map: MmapMut,
}

impl Slab {
    fn new(bytes: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(bytes.max(1))?;
        // Blocks are read from all over a slab, and a page of 4 KiB holds half of one: without larger ones each read
        // would wait for the page tables first. Where the system has none, it works all the same.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }
}

/// Writes the key and value of one token into slot `slot` of a kv head's part of a block.
///
/// # Safety
/// `head` points to `layout.bytes` writable bytes that nobody else touches, aligned to 4; `key` and `value` point to
/// `layout.head_dim` readable floats each; `slot < BLOCK_TOKENS`.
#[inline(always)]
pub(super) unsafe fn write_token<S: Simd>(
    s: S,
    layout: &HeadLayout,
    head: *mut u8,
    slot: usize,
    key: *const f32,
    value: *const f32,
) {
    let n = layout.head_dim;
    // SAFETY: all offsets are within the parts that `HeadLayout` lays out; the scratch has room for the largest head.
    unsafe {
        let values = head.add(layout.values);
        match layout.kv_type {
            KvType::F32 => {
                let keys = head.cast::<f32>().add(slot);
                for d in 0..n {
                    *keys.add(d * BLOCK_TOKENS) = *key.add(d);
                }
                std::ptr::copy_nonoverlapping(value, values.cast::<f32>().add(slot * layout.padded), n);
            }
            KvType::F16 => {
                let mut half = [0u16; MAX_HEAD_DIM];
                narrow(s, key, n, &mut half);
                let keys = head.cast::<u16>().add(slot);
                for (d, x) in half.iter().enumerate().take(n) {
                    *keys.add(d * BLOCK_TOKENS) = *x;
                }
                narrow(s, value, n, &mut half);
                std::ptr::copy_nonoverlapping(
                    half.as_ptr(),
                    values.cast::<u16>().add(slot * layout.padded),
                    n,
                );
            }
            KvType::Int8 => {
                let mut bytes = [0i8; MAX_HEAD_DIM];
                let scales = head.add(layout.scales).cast::<f32>().add(slot);
                *scales = quantise(std::slice::from_raw_parts(key, n), &mut bytes);
                let keys = head.cast::<i8>().add(slot);
                for (d, x) in bytes.iter().enumerate().take(n) {
                    *keys.add(d * BLOCK_TOKENS) = *x;
                }
                *scales.add(BLOCK_TOKENS) = quantise(std::slice::from_raw_parts(value, n), &mut bytes);
                std::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    values.cast::<i8>().add(slot * layout.padded),
                    n,
                );
            }
        }
    }
}

/// # Safety
/// `n <= MAX_HEAD_DIM` floats are readable at `from`.
#[inline(always)]
unsafe fn narrow<S: Simd>(s: S, from: *const f32, n: usize, to: &mut [u16; MAX_HEAD_DIM]) {
    let whole = n - n % S::LANES;
    // SAFETY: by the contract; the last vector, if not whole, is written to scratch of a vector's size.
    unsafe {
        for d in (0..whole).step_by(S::LANES) {
            s.store_f16(to.as_mut_ptr().add(d), s.load(from.add(d)));
        }
        if whole < n {
            let mut rest = [0u16; MAX_LANES];
            s.store_f16(rest.as_mut_ptr(), s.load_first(from.add(whole), n - whole));
            to[whole..n].copy_from_slice(&rest[..n - whole]);
        }
    }
}

/// Returns the scale; not finite where a number is not, so that it shows in what attention gives.
#[inline(always)]
fn quantise(from: &[f32], to: &mut [i8; MAX_HEAD_DIM]) -> f32 {
    let mut largest = 0.0f32;
    for x in from {
        largest = if x.abs() > largest || x.is_nan() { x.abs() } else { largest };
        if largest.is_nan() {
            return f32::NAN;
        }
    }
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    for (x, byte) in from.iter().zip(to) {
        // In -127..=127; the cast saturates in any case.
        *byte = (x * inverse).round_ties_even() as i8;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests;
