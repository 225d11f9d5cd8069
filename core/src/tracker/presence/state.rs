//! What the workers of a presence share: which of them speaks for which catalogue, with which session, and what is
//! to be sent.

use std::collections::HashSet;

use crate::machine::HashMap;
use crate::model::endpoint::Endpoint;
use crate::model::id::FileId;
use crate::model::record::Offer;
use crate::protocol::message::{CatalogueId, SessionId, Welcome};

/// With more changes than this everything is announced anew instead.
const MAX_CHANGES: usize = 10_000;

/// What a worker is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Dials, or says hello.
    #[default]
    Starting,
    /// Has a session that works.
    Connected,
    /// Another worker speaks for the same catalogue.
    Standby,
    /// Waits to try again.
    Failed,
}

/// The state of one worker, which is about one tracker.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkerState {
    pub(super) phase: Phase,
    pub(super) catalogue: Option<CatalogueId>,
    pub(super) last_error: Option<String>,
}

/// One catalogue, as this peer knows it.
#[derive(Debug, Default)]
pub(super) struct CatalogueState {
    /// The worker that speaks for the peer.
    pub(super) active: Option<usize>,
    pub(super) welcome: Option<Welcome>,
    /// Whether everything that was offered when the session began was announced within it.
    pub(super) announced: bool,
    /// Whether somebody met a tracker that does not answer: its worker is to look.
    pub(super) suspect: bool,
    /// What is to be sent within the session: an offer, or that there is none any more.
    changes: HashMap<FileId, Option<Offer>>,
    /// Offers of files that the catalogue does not know: to be made again, since their publisher may come.
    unknown: HashMap<FileId, Offer>,
}

impl CatalogueState {
    /// Remembers a change for the session that there is. Without one there is nothing to do: a session begins with
    /// everything.
    pub(super) fn change(&mut self, id: FileId, offer: Option<Offer>) {
        if self.welcome.is_none() {
            return;
        }
        self.changes.insert(id, offer);
        if self.changes.len() > MAX_CHANGES {
            self.end_session();
        }
    }

    /// The changes so far, at most `limit`, and not yet taken out.
    pub(super) fn some_changes(&self, limit: usize) -> Vec<(FileId, Option<Offer>)> {
        self.changes.iter().take(limit).map(|(id, offer)| (*id, *offer)).collect()
    }

    /// The catalogue knows those of the offers that are not in `unknown`.
    pub(super) fn announced(&mut self, offers: &[Offer], unknown: &HashSet<FileId>) {
        for offer in offers {
            if !unknown.contains(&offer.id) {
                self.unknown.remove(&offer.id);
            } else if self.unknown.len() < MAX_CHANGES {
                self.unknown.insert(offer.id, *offer);
            }
        }
    }

    /// The offers of files that the catalogue does not know.
    pub(super) fn unknown(&self) -> Vec<Offer> {
        self.unknown.values().copied().collect()
    }

    /// These changes were sent; what changed again in the meantime stays.
    pub(super) fn sent(&mut self, changes: &[(FileId, Option<Offer>)]) {
        for (id, offer) in changes {
            if self.changes.get(id) == Some(offer) {
                self.changes.remove(id);
            }
            if offer.is_none() {
                self.unknown.remove(id);
            }
        }
    }

    pub(super) fn begin_session(&mut self, welcome: Welcome) {
        self.end_session();
        self.welcome = Some(welcome);
    }

    pub(super) fn end_session(&mut self) {
        self.changes.clear();
        self.unknown.clear();
        self.welcome = None;
        self.announced = false;
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.welcome.as_ref().map(|welcome| welcome.session)
    }

    /// What other peers are told of where this one is.
    pub(super) fn told(&self) -> &[Endpoint] {
        self.welcome.as_ref().map_or(&[], |welcome| &welcome.endpoints)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) workers: Vec<WorkerState>,
    pub(super) catalogues: HashMap<CatalogueId, CatalogueState>,
    /// Grows whenever the outbox has something new.
    pub(super) outbox: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn welcome() -> Welcome {
        Welcome { session: SessionId([1; 16]), lease_ms: 1, endpoints: Vec::new(), membership: None }
    }

    #[test]
    fn changes_are_kept_until_they_were_sent_as_they_are() {
        let id = FileId::from_bytes([1; 32]);
        let offer = |complete| Some(Offer { id, size: 1, complete });
        let mut state = CatalogueState::default();
        state.change(id, offer(false));
        assert!(state.some_changes(10).is_empty(), "without a session there is nothing to change");
        state.begin_session(welcome());
        state.change(id, offer(false));
        let sent = state.some_changes(10);
        state.change(id, offer(true));
        state.sent(&sent);
        assert_eq!(state.some_changes(10), [(id, offer(true))]);
    }

    #[test]
    fn too_many_changes_end_the_session_instead_of_growing() {
        let mut state = CatalogueState::default();
        state.begin_session(welcome());
        for n in 0..=u32::try_from(MAX_CHANGES).unwrap() {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            state.change(FileId::from_bytes(id), None);
        }
        assert!(state.session().is_none() && state.some_changes(1).is_empty());
    }
}
