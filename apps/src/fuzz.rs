//! The fuzz targets of this crate: configuration and control messages, by name. Each is beside the decoders that it is about. See
//! `tests/fuzz/README.md`.

use crate::{config, control};

/// All targets.
pub const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("config-values", config::fuzz::values),
    ("config-file", config::fuzz::file),
    ("config-set", config::fuzz::set),
    ("control", control::fuzz::messages),
];

#[cfg(test)]
mod tests {
    #[test]
    fn no_target_fails() {
        enjambre_fuzz::run(super::TARGETS);
    }
}
