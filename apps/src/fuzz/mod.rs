//! The fuzz targets of this crate: configuration and control messages.
//!
//! Each target is a function next to its decoder. A test run replays the corpus in `__fuzz__/` and tries random inputs;
//! `just fuzz` runs the targets with coverage feedback.

use crate::{config, control};

/// The random inputs of a target in a test run.
const ITERATIONS: usize = 1000;

macro_rules! targets {
    ($($name:ident: $target:path,)*) => {$(
        #[test]
        fn $name() {
            bolero::check!(name = stringify!($name)).with_iterations(ITERATIONS).for_each(|input: &[u8]| $target(input));
        }
    )*};
}

targets! {
    config_values: config::fuzz::values,
    config_file: config::fuzz::file,
    config_set: config::fuzz::set,
    control: control::fuzz::messages,
}
