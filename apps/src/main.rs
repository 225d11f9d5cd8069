//! The program `enjambre` with its built-in plug-ins.

use std::process::ExitCode;

fn main() -> ExitCode {
    enjambre::App::new().main()
}
