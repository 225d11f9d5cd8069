//! The limit on open files. A connection over ZeroMQ costs three, the public socket and both ends of a private one; a
//! plain one costs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the rest of the program needs: databases, listeners, files being published.
const KEPT_FREE: u64 = 256;
/// What the dearer kind costs.
const PER_CONNECTION: u64 = 3;

/// Raises the soft limit on open files to the hard one, and returns the limit that is in force; none where there is
/// no limit. To be called once, at the start of the program.
pub fn raise_open_file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files stays at {current:?}");
            current
        }
    }
}

/// How many connections the limit on open files allows.
pub(crate) fn connections_allowed() -> usize {
    let allowed = getrlimit(Resource::Nofile)
        .current
        .map_or(u64::MAX, |limit| (limit.saturating_sub(KEPT_FREE) / PER_CONNECTION).max(1));
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_hard_one_afterwards() {
        let limit = raise_open_file_limit();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
        assert!(connections_allowed() >= 1);
    }
}
