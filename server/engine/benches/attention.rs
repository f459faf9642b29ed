//! How long attention takes per layer, and how near that is to what the machine can do.
//!
//! `cargo bench -p candela-engine --bench attention -- [--threads N] [--gbps N] [--gflops N] [WORD…]` runs the lines that
//! contain all words. Layers are rotated so that keys and values come from memory, as between the weights of a model.
//! The shares refer to the machine's read bandwidth and f32 peak (`--gbps`, `--gflops`; the defaults are those of the
//! 2-core machine that the project's other figures are from).

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a command for developers")]

use std::time::Instant;

#[expect(unreachable_pub, reason = "public in the crate that these modules are part of")]
#[allow(unused, reason = "the bench calls a part of what the engine does")]
#[path = "../src/kernels/mod.rs"]
mod kernels;

use kernels::{
    AttentionShape, BLOCK_TOKENS, Isa, KvStore, KvType, Pool, SequenceRows, attention,
    attention_bidirectional,
};

struct Machine {
    threads: usize,
    gbps: f64,
    gflops: f64,
}

fn main() {
    let mut machine = Machine { threads: 2, gbps: 47.0, gflops: 515.0 };
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().and_then(|value| value.parse().ok());
        match arg.as_str() {
            "--threads" => {
                machine.threads = value().unwrap_or_else(|| panic!("--threads needs a number")) as usize
            }
            "--gbps" => machine.gbps = value().unwrap_or_else(|| panic!("--gbps needs a number")),
            "--gflops" => machine.gflops = value().unwrap_or_else(|| panic!("--gflops needs a number")),
            // What cargo passes by itself.
            "--bench" => {}
            _ => words.push(arg),
        }
    }
    let pool = Pool::new(machine.threads).unwrap();
    println!("{:<52} {:>10} {:>8} {:>5} {:>9} {:>5}", "", "us/layer", "GB/s", "of", "GFLOP/s", "of");
    for isa in Isa::available().into_iter().rev() {
        for (model, heads, kv_heads, head_dim) in [("1b", 32, 4, 64), ("135m", 9, 3, 64)] {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let shape = AttentionShape { heads, kv_heads, head_dim, scale, window: None, softcap: None };
            for kv_type in [KvType::F16, KvType::Int8, KvType::F32] {
                for (kind, sequences, depth, n) in [
                    ("decode", 1, 512, 1),
                    ("decode", 1, 2048, 1),
                    ("decode", 1, 8192, 1),
                    ("decode", 16, 512, 1),
                    ("decode", 16, 2048, 1),
                    ("prefill", 1, 0, 256),
                    ("prefill", 1, 512, 256),
                    ("prefill", 1, 8192, 256),
                ] {
                    let name = format!("{isa:?} {model} {kv_type:?} {kind} {sequences}x{n}@{depth}");
                    if words.iter().all(|word| name.split(' ').any(|part| part.eq_ignore_ascii_case(word))) {
                        let run = Run { isa, kv_type, shape, sequences, depth, n };
                        report(&name, &machine, run.measure(&pool));
                    }
                }
            }
        }
        let name = format!("{isa:?} minilm f32 encode 32x128");
        if words.iter().all(|word| name.split(' ').any(|part| part.eq_ignore_ascii_case(word))) {
            report(&name, &machine, encode(isa, &pool));
        }
    }
}

struct Measured {
    seconds: f64,
    bytes: f64,
    flops: f64,
}

fn report(name: &str, machine: &Machine, Measured { seconds, bytes, flops }: Measured) {
    let (gbps, gflops) = (bytes / seconds / 1e9, flops / seconds / 1e9);
    println!(
        "{name:<52} {:>10.1} {gbps:>8.1} {:>4.0}% {gflops:>9.1} {:>4.0}%",
        seconds * 1e6,
        100.0 * gbps / machine.gbps,
        100.0 * gflops / machine.gflops
    );
}

struct Run {
    isa: Isa,
    kv_type: KvType,
    shape: AttentionShape,
    sequences: usize,
    depth: usize,
    n: usize,
}

impl Run {
    fn measure(&self, pool: &Pool) -> Measured {
        let Self { shape, sequences, depth, n, .. } = *self;
        let (width, out_width) =
            ((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.heads * shape.head_dim);
        let per_sequence = (depth + n).div_ceil(BLOCK_TOKENS);
        let layer_bytes = per_sequence as u64
            * sequences as u64
            * KvStore::bytes_per_block(self.kv_type, 1, shape.kv_heads, shape.head_dim);
        // Several times the last cache.
        let layers = (128_000_000 / layer_bytes).clamp(2, 400) as usize;
        let n_blocks = per_sequence * sequences;
        let mut store = KvStore::new(self.kv_type, layers, shape.kv_heads, shape.head_dim, n_blocks).unwrap();
        // Blocks of a sequence are spread over the store, as after a while of serving.
        let tables: Vec<Vec<u32>> =
            (0..sequences).map(|i| (0..per_sequence).map(|b| (b * sequences + i) as u32).collect()).collect();
        let qkv: Vec<f32> =
            (0..256.max(sequences * n) * width).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
        let mut out = vec![0.0; 256.max(sequences * n) * out_width];
        // A window of one token fills the store without the cost of attention.
        let fill = AttentionShape { window: Some(1), ..shape };
        for layer in 0..layers {
            for blocks in &tables {
                for start in (0..depth + n).step_by(256) {
                    let rows = SequenceRows { blocks, start, n: 256.min(depth + n - start), first_row: 0 };
                    attention(self.isa, pool, &mut store, layer, &fill, &[rows], &qkv, &mut out);
                }
            }
        }
        let rows: Vec<_> = tables
            .iter()
            .enumerate()
            .map(|(i, blocks)| SequenceRows { blocks, start: depth, n, first_row: i * n })
            .collect();
        let mut layer = 0;
        let seconds = median(|| {
            attention(self.isa, pool, &mut store, layer, &shape, &rows, &qkv, &mut out);
            layer = (layer + 1) % layers;
        });
        let pairs = (sequences * (n * depth + n * (n + 1) / 2)) as f64;
        Measured {
            seconds,
            bytes: layer_bytes as f64,
            flops: pairs * (4 * shape.heads * shape.head_dim) as f64,
        }
    }
}

/// A batch of 32 texts of 128 tokens through a layer of all-MiniLM-L6.
fn encode(isa: Isa, pool: &Pool) -> Measured {
    let shape = AttentionShape {
        heads: 12,
        kv_heads: 12,
        head_dim: 32,
        scale: 0.176_776_7,
        window: None,
        softcap: None,
    };
    let lens = [128; 32];
    let rows = 32 * 128;
    let qkv: Vec<f32> = (0..rows * 3 * 384).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
    let mut out = vec![0.0; rows * 384];
    let seconds = median(|| attention_bidirectional(isa, pool, &shape, &lens, &qkv, &mut out));
    Measured { seconds, bytes: (4 * rows * 4 * 384) as f64, flops: (32 * 128 * 128 * 4 * 384) as f64 }
}

/// Median of at least 15 calls and a quarter of a second.
fn median(mut call: impl FnMut()) -> f64 {
    call();
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 15 || begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
