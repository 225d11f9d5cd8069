//! Running downloads as users see them. A file is one activity, and so is a directory with its members.
//!
//! Transfers record the verified bytes of each provider here; all else is computed on request.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::arrival_rate::ArrivalRate;
use super::request::Progress;
use crate::change::ChangeNotifier;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::{Endpoint, FileId, FileKind, Name, PeerId, UnixMillis};

/// A running download.
#[derive(Debug, Clone)]
pub struct ActiveDownload {
    /// The id of the file or directory.
    pub id: FileId,
    /// The name, if the requester knows it.
    pub name: Option<Name>,
    /// The claimed kind.
    pub kind: FileKind,
    /// The progress, over all members of a directory.
    pub progress: Progress,
    /// Received bytes per second over a few seconds.
    pub rate: u64,
    /// The time of the start.
    pub started_ms: UnixMillis,
}

/// The running downloads by id.
#[derive(Debug, Default)]
pub(super) struct Activities {
    by_id: Mutex<BTreeMap<FileId, Weak<Activity>>>,
    /// Notified when a download starts or ends.
    pub(super) changes: Arc<ChangeNotifier>,
}

impl Activities {
    /// Returns the activity of a download, which exists until everything that downloads this id has dropped it.
    pub(super) fn enter(&self, id: FileId) -> Arc<Activity> {
        let mut all = self.by_id.lock();
        if let Some(activity) = all.get(&id).and_then(Weak::upgrade) {
            return activity;
        }
        all.retain(|_, activity| activity.strong_count() > 0);
        let activity = Arc::new(Activity {
            id,
            since: Instant::now(),
            started_ms: SystemClock.now(),
            requests: Mutex::default(),
            delivered: Mutex::default(),
            changes: Arc::clone(&self.changes),
        });
        all.insert(id, Arc::downgrade(&activity));
        drop(all);
        self.changes.notify();
        activity
    }

    pub(super) fn get(&self, id: &FileId) -> Option<Arc<Activity>> {
        self.by_id.lock().get(id).and_then(Weak::upgrade)
    }

    /// Returns all running downloads in the order of their ids.
    pub(super) fn all(&self) -> Vec<Arc<Activity>> {
        self.by_id.lock().values().filter_map(Weak::upgrade).collect()
    }
}

/// Everything that is downloaded under one id.
#[derive(Debug)]
pub(super) struct Activity {
    pub(super) id: FileId,
    since: Instant,
    started_ms: UnixMillis,
    requests: Mutex<Vec<ShownRequest>>,
    delivered: Mutex<BTreeMap<PeerId, Delivered>>,
    changes: Arc<ChangeNotifier>,
}

/// A request whose progress can be shown.
#[derive(Debug)]
struct ShownRequest {
    name: Option<Name>,
    kind: FileKind,
    progress: watch::Receiver<Progress>,
}

impl ShownRequest {
    /// Whether the sender of the progress still exists.
    fn is_running(&self) -> bool {
        self.progress.has_changed().is_ok()
    }
}

/// What a provider has delivered.
#[derive(Debug, Clone)]
pub(super) struct Delivered {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) bytes: u64,
    rate: ArrivalRate,
}

impl Activity {
    /// Shows this progress, unless an earlier request is running, which includes this one.
    pub(super) fn show(&self, name: Option<Name>, kind: FileKind, progress: watch::Receiver<Progress>) {
        let mut requests = self.requests.lock();
        requests.retain(ShownRequest::is_running);
        requests.push(ShownRequest { name, kind, progress });
    }

    /// Records verified bytes from a provider.
    pub(super) fn deliver(&self, peer: PeerId, bytes: u64, endpoint: impl FnOnce() -> Option<Endpoint>) {
        let mut delivered = self.delivered.lock();
        let provider = delivered.entry(peer).or_insert_with(|| Delivered {
            endpoint: endpoint(),
            bytes: 0,
            rate: ArrivalRate::new(Default::default()),
        });
        provider.bytes += bytes;
        provider.rate.add(bytes as f64, self.since.elapsed());
    }

    /// Returns what each provider has delivered, and its rate in bytes per second.
    pub(super) fn delivered(&self) -> Vec<(PeerId, Delivered, u64)> {
        let now = self.since.elapsed();
        let delivered = self.delivered.lock();
        let with_rate = |(peer, delivered): (&PeerId, &Delivered)| {
            (*peer, delivered.clone(), delivered.rate.per_second(now) as u64)
        };
        delivered.iter().map(with_rate).collect()
    }

    /// Returns the progress of the first running request.
    pub(super) fn progress(&self) -> Option<watch::Receiver<Progress>> {
        let requests = self.requests.lock();
        Some(requests.iter().find(|request| request.is_running())?.progress.clone())
    }

    pub(super) fn describe(&self) -> Option<ActiveDownload> {
        let now = self.since.elapsed();
        let rate: f64 = self.delivered.lock().values().map(|provider| provider.rate.per_second(now)).sum();
        let requests = self.requests.lock();
        let shown = requests.iter().find(|request| request.is_running())?;
        Some(ActiveDownload {
            id: self.id,
            name: requests.iter().find_map(|request| request.name.clone()),
            kind: shown.kind,
            progress: *shown.progress.borrow(),
            rate: rate as u64,
            started_ms: self.started_ms,
        })
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.changes.notify();
    }
}
