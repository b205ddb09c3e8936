//! The `simplon` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    simplon::cli::main()
}
