//! The fuzz targets of this crate: what strangers send and what a damaged disk gives back, by name. Each is beside the
//! decoders that it is about. See `tests/fuzz/README.md`.

use crate::{catalogue, download, library, model, protocol};

/// All targets.
const TARGETS: &[enjambre_fuzz::Target] = &[
    ("cbor-head", protocol::fuzz::head),
    ("request", protocol::fuzz::request),
    ("reply", protocol::fuzz::reply),
    ("name", model::fuzz::name),
    ("endpoint", model::fuzz::endpoint),
    ("collection", model::fuzz::collection),
    ("manifest", model::fuzz::manifest),
    ("bitmap", model::fuzz::bitmap),
    ("pattern", catalogue::fuzz::pattern),
    ("catalogue-records", catalogue::fuzz::records),
    ("catalogue-mark", catalogue::fuzz::mark),
    ("catalogue-old", catalogue::fuzz::old),
    ("remembered", catalogue::fuzz::remembered),
    ("library-records", library::fuzz::records),
    ("library-mark", library::fuzz::mark),
    ("provider", download::fuzz::provider),
];

#[test]
fn no_target_fails() {
    enjambre_fuzz::run(TARGETS);
}
