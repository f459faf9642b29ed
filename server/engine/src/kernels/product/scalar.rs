//! The path of any CPU, and the one that the others are compared with.

use std::ops::Range;

use half::{bf16, f16};

use super::{
    super::{
        matrix::{BLOCK, Line, PANEL, PackedFormat},
        pack::{head_bytes, offset},
    },
    Epilogue, Quantized,
};

fn bytes(panel: &[Line]) -> impl Fn(usize) -> u8 {
    move |at| panel[at / 64].0[at % 64]
}

pub(super) fn dense(
    format: PackedFormat,
    panel: &[Line],
    x: &[f32],
    columns: usize,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    let byte = bytes(panel);
    let mut weights = [0.0; PANEL];
    let mut all = vec![[0.0f32; PANEL]; rows.len()];
    for k in 0..columns {
        for (lane, weight) in weights.iter_mut().enumerate() {
            let half = || {
                let at = k * format.step_bytes() + lane * 2;
                u16::from_le_bytes([byte(at), byte(at + 1)])
            };
            *weight = match format {
                PackedFormat::F16 => f16::from_bits(half()).to_f32(),
                PackedFormat::BF16 => bf16::from_bits(half()).to_f32(),
                _ => {
                    let at = k * format.step_bytes() + lane * 4;
                    f32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])
                }
            };
        }
        for (row, sums) in rows.clone().zip(&mut all) {
            let x = x[row * columns + k];
            for (sum, weight) in sums.iter_mut().zip(&weights) {
                *sum = x.mul_add(*weight, *sum);
            }
        }
    }
    for (row, sums) in rows.zip(&all) {
        epilogue.store(row, sums);
    }
}

pub(super) fn blocks(
    format: PackedFormat,
    panel: &[Line],
    x: &Quantized,
    rows: Range<usize>,
    epilogue: &Epilogue<'_>,
) {
    let byte = bytes(panel);
    let n_blocks = x.blocks();
    let mut all = vec![[0.0f32; PANEL]; rows.len()];
    for b in 0..n_blocks {
        let head = b * format.step_bytes();
        let data = head + head_bytes(format);
        let half = |at: usize| f16::from_le_bytes([byte(at), byte(at + 1)]).to_f32();
        for lane in 0..PANEL {
            let scale = half(head + lane * 2);
            let min = if format == PackedFormat::Int4Min { half(head + (PANEL + lane) * 2) } else { 0.0 };
            let mut weights = [0i32; BLOCK];
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = match format {
                    PackedFormat::Int8 => byte(data + (i / 4 * PANEL + lane) * 4 + i % 4).into(),
                    _ => {
                        let pair = byte(data + (i / 8 * PANEL + lane) * 4 + i % 4);
                        i32::from(pair >> (i / 4 % 2 * 4) & 15)
                    }
                };
            }
            for (row, sums) in rows.clone().zip(&mut all) {
                let at = row * n_blocks + b;
                let values = &x.values[at * BLOCK..][..BLOCK];
                let dot: i32 = weights.iter().zip(values).map(|(w, v)| w * i32::from(*v)).sum();
                let dot = dot - offset(format) * x.sums[at];
                sums[lane] = (dot as f32).mul_add(scale * x.scales[at], sums[lane]);
                if format == PackedFormat::Int4Min {
                    sums[lane] = (-min).mul_add(x.scales[at] * x.sums[at] as f32, sums[lane]);
                }
            }
        }
    }
    for (row, sums) in rows.zip(&all) {
        epilogue.store(row, sums);
    }
}
