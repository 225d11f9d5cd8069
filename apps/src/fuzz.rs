//! The fuzz targets of this crate: configuration and control messages, by name. Each is beside the decoders that it is about. See
//! `tests/fuzz/README.md`.

use crate::{config, control};

/// All targets.
const TARGETS: &[enjambre_fuzz::Target] = &[
    ("config-values", config::fuzz::values),
    ("config-file", config::fuzz::file),
    ("config-set", config::fuzz::set),
    ("control", control::fuzz::messages),
];

#[test]
fn no_target_fails() {
    enjambre_fuzz::run(TARGETS);
}
