//! Speed of the products alone: `cargo bench -p candela-engine --bench products`. Prints, for each format and number of
//! rows, microseconds, billions of operations and gigabytes of weights per second. Few rows rotate through
//! 600 MiB of weights, so that they come from memory.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (rows, columns) in [(5632, 2048), (1536, 576)] {
        candela_engine::testing::measure_products(threads, rows, columns, &mut |line| println!("{line}"));
    }
}
