//! `candela-server`: see `candela_server::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    candela_server::cli::main()
}
