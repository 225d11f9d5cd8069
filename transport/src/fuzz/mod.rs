//! The fuzz targets of this crate: bytes from unauthenticated remotes.
//!
//! Each target is a function next to its decoder. A test run replays the corpus in `__fuzz__/` and tries random inputs;
//! `just fuzz` runs the targets with coverage feedback.

use crate::{guard, tcp};

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
    zmtp_greeting: guard::fuzz::greeting,
    zmtp_requests: guard::fuzz::requests,
    zmtp_replies: guard::fuzz::replies,
    tcp_preface: tcp::fuzz::preface,
    tcp_frames: tcp::fuzz::frames,
}
