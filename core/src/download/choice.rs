//! Which of the known providers to join: pure.
//!
//! Who failed least comes first. Sources, which have the whole file, and traders, which download too, take turns:
//! a source has everything, and only traders have what takes load from it.

use super::schedule::ProviderKey;

/// A provider that could be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub key: ProviderKey,
    /// How often it failed.
    pub failures: u32,
    /// Whether it says that it has the whole file.
    pub complete: bool,
}

/// The candidates in the order in which to join them; ties by their keys, which follow the random order of the tracker's
/// answers.
pub fn order(mut candidates: Vec<Candidate>) -> Vec<ProviderKey> {
    candidates.sort_unstable_by_key(|candidate| (candidate.failures, candidate.key));
    let mut ordered = Vec::with_capacity(candidates.len());
    for group in candidates.chunk_by(|a, b| a.failures == b.failures) {
        let mut sources = group.iter().filter(|candidate| candidate.complete);
        let mut traders = group.iter().filter(|candidate| !candidate.complete);
        loop {
            let pair = [sources.next(), traders.next()];
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
    fn sources_and_traders_take_turns_and_who_failed_comes_last() {
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
