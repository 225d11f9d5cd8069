//! The fuzz targets of this crate: configuration and control messages, by name. Each is beside the decoders that it is about. See
//! `tests/fuzz/README.md`.

use enjambre_fuzz::Target;
use enjambre_fuzz::form::Form;

use crate::{config, control};

/// All targets.
const TARGETS: &[Target] = &[
    Target::new("config-values", Form::Text, config::fuzz::values),
    Target::new("config-file", Form::Text, config::fuzz::file),
    Target::new("config-set", Form::Text, config::fuzz::set),
    Target::new("control", Form::Text, control::fuzz::messages),
];

#[test]
fn no_target_fails() {
    enjambre_fuzz::run(TARGETS);
}
