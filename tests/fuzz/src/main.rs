//! One fuzz target with libFuzzer, the one that the variable `ENJAMBRE_FUZZ_TARGET` names. `tests/fuzz/run` builds and starts
//! it.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod driver;

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("this is built and started by tests/fuzz/run");
    std::process::exit(2);
}
