//! The project's own tools: `cargo run --release -p xtask -- COMMAND`. Each command is one module.

mod check;
mod demo;
mod generate;
mod image;
mod load;
mod prove;
mod train;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Candela's build and maintenance tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the files that are generated from code: CRDs, RBAC, reference tables.
    Gen(generate::Args),
    /// Fail if a generated file differs from the code, a file is too long or belongs to no crate.
    Check(generate::Args),
    /// Train the demo model, `builtin://demo`.
    TrainDemo(train::Args),
    /// Build OCI images without a Docker daemon.
    Image(image::Args),
    /// Streamed completions from many clients at once, timed: the load of `make bench-server`.
    BenchLoad(load::Args),
    /// A cluster, Candela in it, two models and a chat, on this machine.
    Demo(demo::Args),
    /// Run the long proofs that are not yet kept under `docs/proofs/` for the present sources.
    Prove(prove::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes are for the reader, a backtrace would be for us.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Gen(args) => generate::run(args),
        Command::Check(args) => {
            check::tree()?;
            generate::check(args)
        }
        Command::TrainDemo(args) => train::run(args),
        Command::Image(args) => image::run(args),
        Command::BenchLoad(args) => load::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Prove(args) => prove::run(args),
    }
}
