//! The fuzz targets of this crate: values and messages from remotes.
//!
//! Each target is a function next to its decoder. A test run replays the corpus in `__fuzz__/` and tries random inputs;
//! `just fuzz` runs the targets with coverage feedback.

use crate::{model, protocol};

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
    cbor_head: protocol::fuzz::head,
    request: protocol::fuzz::request,
    reply: protocol::fuzz::reply,
    name: model::fuzz::name,
    endpoint: model::fuzz::endpoint,
    collection: model::fuzz::collection,
    manifest: model::fuzz::manifest,
    bitmap: model::fuzz::bitmap,
}
