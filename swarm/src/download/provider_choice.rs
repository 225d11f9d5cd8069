//! The order in which known providers are connected: pure.
//!
//! Providers with fewer failures come first. Among equals, complete and partial providers alternate: complete providers
//! have every piece, and partial providers take load off them.

use super::schedule::ProviderKey;

/// A provider that can be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The key of the provider.
    pub key: ProviderKey,
    /// Number of failures.
    pub failures: u32,
    /// Whether the provider claims to have the whole file.
    pub complete: bool,
}

/// Returns the candidates in the order in which to connect them. Ties are broken by key, and keys follow the random order
/// of tracker replies.
pub fn order(mut candidates: Vec<Candidate>) -> Vec<ProviderKey> {
    candidates.sort_unstable_by_key(|candidate| (candidate.failures, candidate.key));
    let mut ordered = Vec::with_capacity(candidates.len());
    for group in candidates.chunk_by(|a, b| a.failures == b.failures) {
        let mut complete = group.iter().filter(|candidate| candidate.complete);
        let mut partial = group.iter().filter(|candidate| !candidate.complete);
        loop {
            let pair = [complete.next(), partial.next()];
            let before = ordered.len();
            ordered.extend(pair.into_iter().flatten().map(|candidate| candidate.key));
            if ordered.len() == before {
                break;
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_and_partial_alternate_failed_come_last() {
        let candidate = |key, failures, complete| Candidate { key: ProviderKey(key), failures, complete };
        let all = vec![
            candidate(0, 1, true),
            candidate(1, 0, true),
            candidate(2, 0, true),
            candidate(3, 0, true),
            candidate(4, 0, false),
        ];
        let keys: Vec<_> = order(all).into_iter().map(|key| key.0).collect();
        assert_eq!(keys, [1, 4, 2, 3, 0]);
    }
}
