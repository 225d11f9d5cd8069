//! The fuzz targets of this crate: records of damaged databases, credentials and replies of providers.
//!
//! Each target is a function next to its decoder. A test run replays the corpus in `__fuzz__/` and tries random inputs;
//! `just fuzz` runs the targets with coverage feedback.

use crate::{catalogue, download, library, membership, tracker};

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
    pattern: catalogue::fuzz::pattern,
    catalogue_records: catalogue::fuzz::records,
    claim_list: tracker::claim_list::fuzz::claim_list,
    library_records: library::fuzz::records,
    provider: download::fuzz::provider,
    invitation: membership::credentials::fuzz::invitation,
    membership: membership::credentials::fuzz::membership,
    revocations: membership::credentials::fuzz::revocations,
}
