//! The `splitconv` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    converter::cli::main()
}
