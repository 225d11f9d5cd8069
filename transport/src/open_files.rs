//! The limit on open files. A ZeroMQ connection needs three: the public socket and both ends of a private stream. Any other
//! connection needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The setting of the limit on open files.
pub(crate) const OPEN_FILES_SETTING: &str = "ulimit -n; LimitNOFILE of a systemd service";
/// Reserved for the rest of the program: databases, listeners, published files.
const RESERVED: u64 = 256;
/// The number of files of a ZeroMQ connection.
const PER_CONNECTION: u64 = 3;

/// Raises the soft limit on open files to the hard limit. Returns the new limit, or `None` if there is none. Called once, at
/// the start of the program.
pub fn raise_open_file_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, limit = current, "cannot raise the limit on open files");
            current
        }
    }
}

/// The number of connections that the limit on open files allows.
pub(crate) fn connections_allowed() -> usize {
    let allowed = getrlimit(Resource::Nofile)
        .current
        .map_or(u64::MAX, |limit| (limit.saturating_sub(RESERVED) / PER_CONNECTION).max(1));
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_raised_to_the_hard_limit() {
        let limit = raise_open_file_limit();
        assert_eq!(limit, getrlimit(Resource::Nofile).maximum);
        assert!(connections_allowed() >= 1);
    }
}
