//! What others ask of a running transfer: the parts of the file that readers wait for, and views for observers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::view::TransferView;
use crate::change::ChangeNotifier;

/// The parts that the readers of a download wait for, and the observers that wait for a view of it.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// By reader, in the order of their start.
    parts: Mutex<BTreeMap<u64, Range<u64>>>,
    observers: Mutex<Vec<oneshot::Sender<TransferView>>>,
    pub(super) changes: ChangeNotifier,
}

impl Wanted {
    /// Returns the wanted bytes of the file.
    pub(super) fn bytes(&self) -> Vec<Range<u64>> {
        self.parts.lock().values().cloned().collect()
    }

    /// Asks the transfer for a view. It sends none if it ends.
    pub(super) fn ask(&self) -> oneshot::Receiver<TransferView> {
        let (observer, view) = oneshot::channel();
        let mut observers = self.observers.lock();
        observers.retain(|observer| !observer.is_closed());
        observers.push(observer);
        drop(observers);
        self.changes.notify();
        view
    }

    pub(super) fn take_observers(&self) -> Vec<oneshot::Sender<TransferView>> {
        std::mem::take(&mut *self.observers.lock())
    }

    /// Adds a reader that waits for these bytes.
    pub(super) fn add(self: &Arc<Self>, bytes: Range<u64>) -> WantedPart {
        let mut parts = self.parts.lock();
        let reader = parts.last_key_value().map_or(0, |(last, _)| last + 1);
        parts.insert(reader, bytes);
        drop(parts);
        self.changes.notify();
        WantedPart { wanted: Arc::clone(self), reader }
    }
}

/// The part that one reader waits for, until it is dropped.
#[derive(Debug)]
pub(super) struct WantedPart {
    wanted: Arc<Wanted>,
    reader: u64,
}

impl WantedPart {
    pub(super) fn set(&self, bytes: Range<u64>) {
        self.wanted.parts.lock().insert(self.reader, bytes);
        self.wanted.changes.notify();
    }
}

impl Drop for WantedPart {
    fn drop(&mut self) {
        self.wanted.parts.lock().remove(&self.reader);
        self.wanted.changes.notify();
    }
}
