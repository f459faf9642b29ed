//! From the rows of a file to panels, and single rows back.
//!
//! A step of a panel covers 64 rows (the product's output columns) and one input if dense, else 32:
//! dense: 64 elements; blocks: 64 scales, 64 minima where the format has them, then for each group of four inputs
//! (8 bits) or eight (4 bits: the first four in the low halves) 64 times four bytes.

use half::f16;

use super::{
    matrix::{BLOCK, Line, PANEL, PackedFormat},
    raw::{RawTensor, StoredType},
};

/// 32 elements of one row in the terms of a format.
struct Block {
    scale: f32,
    /// What is taken away from each product; 0 where the format has none.
    min: f32,
    /// As they are stored: 8 bits with 128 added, 4 bits with 8 added or none.
    values: [u8; BLOCK],
}

/// Fills one panel, whose first row is `first`. Rows past the end stay zero.
pub(super) fn panel(raw: &RawTensor<'_>, format: PackedFormat, first: usize, lines: &mut [Line]) {
    let step = format.step_bytes();
    let bytes = lines.as_flattened_bytes_mut();
    let mut widened = vec![0.0; raw.columns];
    for lane in 0..PANEL.min(raw.rows - first) {
        let row = first + lane;
        let same = PackedFormat::of(raw.dtype) == format;
        match (format, raw.dtype) {
            (PackedFormat::F16 | PackedFormat::BF16, _) if same => {
                for (k, element) in raw.row(row).as_chunks::<2>().0.iter().enumerate() {
                    bytes[k * step + lane * 2..][..2].copy_from_slice(element);
                }
            }
            (PackedFormat::F32 | PackedFormat::F16 | PackedFormat::BF16, _) => {
                raw.widen_row(row, &mut widened);
                for (k, x) in widened.iter().enumerate() {
                    bytes[k * step + lane * 4..][..4].copy_from_slice(&x.to_le_bytes());
                }
            }
            (_, StoredType::Q8_0) if same => {
                for (b, block) in raw.row(row).as_chunks::<34>().0.iter().enumerate() {
                    let mut values = [0; BLOCK];
                    for (value, q) in values.iter_mut().zip(&block[2..]) {
                        *value = q ^ 0x80;
                    }
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    put(format, &mut bytes[b * step..][..step], lane, &Block { scale, min: 0.0, values });
                }
            }
            (_, StoredType::Q4_0) if same => {
                for (b, block) in raw.row(row).as_chunks::<18>().0.iter().enumerate() {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    let block = Block { scale, min: 0.0, values: halves(&block[2..]) };
                    put(format, &mut bytes[b * step..][..step], lane, &block);
                }
            }
            (_, StoredType::Q4_1) if same => {
                for (b, block) in raw.row(row).as_chunks::<20>().0.iter().enumerate() {
                    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
                    let block = Block { scale: half(0), min: -half(2), values: halves(&block[4..]) };
                    put(format, &mut bytes[b * step..][..step], lane, &block);
                }
            }
            (_, StoredType::Q4K) if same => {
                for (s, block) in raw.row(row).as_chunks::<144>().0.iter().enumerate() {
                    for b in 0..8 {
                        let at = (s * 8 + b) * step;
                        put(format, &mut bytes[at..][..step], lane, &q4k(block, b));
                    }
                }
            }
            _ => {
                raw.widen_row(row, &mut widened);
                for (b, xs) in widened.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let block = if format == PackedFormat::Int8 { round8(xs) } else { round4(xs) };
                    put(format, &mut bytes[b * step..][..step], lane, &block);
                }
            }
        }
    }
}

/// 16 bytes whose low halves are the first 16 elements.
fn halves(bytes: &[u8]) -> [u8; BLOCK] {
    let mut values = [0; BLOCK];
    for (i, byte) in bytes.iter().enumerate() {
        (values[i], values[i + 16]) = (byte & 15, byte >> 4);
    }
    values
}

/// Block `b` of eight of a Q4_K super-block. Scale and minimum are products of a 16- and a 6-bit number, stored here
/// as 16-bit floats: at most 2⁻¹¹ off, a hundredth of what 4 bits are off.
fn q4k(block: &[u8; 144], b: usize) -> Block {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let packed = &block[4..16];
    let (scale, min) = match b {
        0..4 => (packed[b] & 63, packed[b + 4] & 63),
        _ => {
            let low = packed[b + 4];
            ((low & 15) | (packed[b - 4] >> 6) << 4, (low >> 4) | (packed[b] >> 6) << 4)
        }
    };
    let mut values = [0; BLOCK];
    for (value, byte) in values.iter_mut().zip(&block[16 + b / 2 * 32..][..32]) {
        *value = if b.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
    }
    Block { scale: half(0) * f32::from(scale), min: half(2) * f32::from(min), values }
}

/// As Q8_0: the largest becomes ±127.
fn round8(xs: &[f32; BLOCK]) -> Block {
    let most = xs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = f16::from_f32(most / 127.0).to_f32();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let values = xs.map(|x| ((x * inverse).round_ties_even().clamp(-128.0, 127.0) as i8 as u8) ^ 0x80);
    Block { scale, min: 0.0, values }
}

/// As Q4_0: the one of the largest size becomes -8.
fn round4(xs: &[f32; BLOCK]) -> Block {
    let most = xs.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    let scale = f16::from_f32(most / -8.0).to_f32();
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let values = xs.map(|x| (x * inverse + 8.5).clamp(0.0, 15.0) as u8);
    Block { scale, min: 0.0, values }
}

/// Writes a block as lane `lane` of a step.
fn put(format: PackedFormat, step: &mut [u8], lane: usize, block: &Block) {
    let (head, data) = step.split_at_mut(head_bytes(format));
    head[lane * 2..][..2].copy_from_slice(&f16::from_f32(block.scale).to_le_bytes());
    if format == PackedFormat::Int4Min {
        head[(PANEL + lane) * 2..][..2].copy_from_slice(&f16::from_f32(block.min).to_le_bytes());
    }
    match format {
        PackedFormat::Int8 => {
            for (g, four) in block.values.as_chunks::<4>().0.iter().enumerate() {
                data[(g * PANEL + lane) * 4..][..4].copy_from_slice(four);
            }
        }
        _ => {
            for (g, eight) in block.values.as_chunks::<8>().0.iter().enumerate() {
                for t in 0..4 {
                    data[(g * PANEL + lane) * 4 + t] = eight[t] | eight[t + 4] << 4;
                }
            }
        }
    }
}

/// Bytes of scales and minima in front of a step's elements.
#[inline(always)]
pub(super) const fn head_bytes(format: PackedFormat) -> usize {
    match format {
        PackedFormat::Int8 | PackedFormat::Int4 => PANEL * 2,
        PackedFormat::Int4Min => PANEL * 4,
        _ => 0,
    }
}

/// What is taken from a stored value to have its meaning.
#[inline(always)]
pub(super) const fn offset(format: PackedFormat) -> i32 {
    match format {
        PackedFormat::Int8 => 128,
        PackedFormat::Int4 => 8,
        _ => 0,
    }
}

/// Lane `lane` of a panel in f32.
pub(super) fn unpack_row(format: PackedFormat, lines: &[Line], lane: usize, out: &mut [f32]) {
    let step = format.step_bytes();
    let bytes = lines.as_flattened_bytes();
    let steps = bytes.chunks_exact(step);
    let half = |step: &[u8], at: usize| f16::from_le_bytes([step[at * 2], step[at * 2 + 1]]).to_f32();
    match format {
        PackedFormat::F32 => {
            for (out, step) in out.iter_mut().zip(steps) {
                *out = f32::from_bits(u32::from_le_bytes(*step[lane * 4..].first_chunk().expect("a lane")));
            }
        }
        PackedFormat::F16 => out.iter_mut().zip(steps).for_each(|(out, step)| *out = half(step, lane)),
        PackedFormat::BF16 => {
            for (out, step) in out.iter_mut().zip(steps) {
                let bits = u16::from_le_bytes([step[lane * 2], step[lane * 2 + 1]]);
                *out = half::bf16::from_bits(bits).to_f32();
            }
        }
        PackedFormat::Int8 | PackedFormat::Int4 | PackedFormat::Int4Min => {
            for (out, step) in out.chunks_mut(BLOCK).zip(steps) {
                let (scale, data) = (half(step, lane), &step[head_bytes(format)..]);
                let min = if format == PackedFormat::Int4Min { half(step, PANEL + lane) } else { 0.0 };
                for (i, out) in out.iter_mut().enumerate() {
                    let value = match format {
                        PackedFormat::Int8 => data[(i / 4 * PANEL + lane) * 4 + i % 4],
                        _ => data[(i / 8 * PANEL + lane) * 4 + i % 4] >> (i / 4 % 2 * 4) & 15,
                    };
                    *out = scale * (i32::from(value) - offset(format)) as f32 - min;
                }
            }
        }
    }
}

/// A panel's bytes.
trait AsBytes {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8];
}

impl AsBytes for [Line] {
    #[expect(unsafe_code, reason = "lines are bytes")]
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding, and bytes have no alignment.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * 64) }
    }

    #[expect(unsafe_code, reason = "lines are bytes")]
    fn as_flattened_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; every byte is a valid one.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * 64) }
    }
}
