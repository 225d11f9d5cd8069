//! Notification of committed writes.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use super::layout::{Claim, PeerNumber};
use enjambre_core::{FileId, Name};

/// Receives each write of one [`Catalogue`](super::catalogue::Catalogue) after its commit and before it is acknowledged.
///
/// Writes of other trackers on the same database are not reported.
pub trait ChangeListener: Debug + Send + Sync + 'static {
    /// The newest version of the name changed, or the name was removed.
    fn name_changed(&self, name: &Name);

    /// The entry of the file changed, or the file was removed.
    fn file_changed(&self, id: &FileId);

    /// The peer now makes this claim to the file, or withdrew it (`None`).
    fn claim_changed(&self, peer: PeerNumber, id: &FileId, claim: Option<Claim>);

    /// A peer became alive or ceased to be alive for another reason than the passing of time.
    fn liveness_changed(&self);
}

/// The listeners of a catalogue. A listener that was dropped is skipped.
#[derive(Debug, Default)]
pub(super) struct Listeners(RwLock<Vec<Weak<dyn ChangeListener>>>);

impl Listeners {
    pub(super) fn add(&self, listener: &Arc<dyn ChangeListener>) {
        let mut listeners = self.0.write();
        listeners.retain(|each| each.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    pub(super) fn notify(&self, event: impl Fn(&dyn ChangeListener)) {
        for listener in self.0.read().iter().filter_map(Weak::upgrade) {
            event(&*listener);
        }
    }
}
