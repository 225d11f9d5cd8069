//! The program `enjambre` with the plug-ins that it brings along.

use std::process::ExitCode;

fn main() -> ExitCode {
    enjambre::App::stock().main()
}
