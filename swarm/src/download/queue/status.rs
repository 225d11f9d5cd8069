//! The list of downloads: the queue, and the downloads of commands and HTTP clients.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::state::{DownloadQueue, Inner, RunPhase, State};
use crate::download::activity::ActiveDownload;
use crate::download::request::{Phase, Progress};
use crate::library::{DownloadRecord, DownloadState};
use enjambre_core::{FileId, FileKind, Name, UnixMillis};

/// The stage of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Waits until fewer downloads are running.
    Queued,
    /// Searches providers, or waits for the next attempt.
    Searching,
    /// Content arrives.
    Active,
    /// Paused by the user.
    Paused,
    /// Waits for free space on the disk.
    DiskFull,
    /// All content is stored.
    Complete,
    /// Failed, and is not tried again.
    Failed,
}

/// A download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadStatus {
    /// The id of the file or directory.
    pub id: FileId,
    /// The name. Unknown for some downloads of HTTP clients.
    pub name: Option<Name>,
    /// The kind: a claim until the content is known.
    pub kind: FileKind,
    /// The size in bytes: a claim until it is proven.
    pub size: u64,
    /// The stored bytes.
    pub done: u64,
    /// The stage.
    pub stage: Stage,
    /// The last failure.
    pub error: Option<String>,
    /// Received bytes per second over a few seconds.
    pub rate: u64,
    /// Number of connected providers.
    pub providers: u32,
    /// The position among the entries that are not finished; `None` for others.
    pub position: Option<usize>,
    /// The time at which the download was added.
    pub added_ms: UnixMillis,
    /// Whether a command or an HTTP client downloads the file, and not the queue.
    pub is_command: bool,
}

impl DownloadStatus {
    /// The time to completion at the current rate.
    pub fn eta(&self) -> Option<Duration> {
        let rest = self.size.checked_sub(self.done)?;
        (self.stage == Stage::Active && self.rate > 0).then(|| Duration::from_secs(rest.div_ceil(self.rate)))
    }

    fn of_command(active: &ActiveDownload) -> Self {
        let Progress { done, total, providers, phase } = active.progress;
        Self {
            id: active.id,
            name: active.name.clone(),
            kind: active.kind,
            size: total,
            done,
            stage: stage(phase),
            error: None,
            rate: active.rate,
            providers,
            position: None,
            added_ms: active.started_ms,
            is_command: true,
        }
    }
}

const fn stage(phase: Phase) -> Stage {
    match phase {
        Phase::Searching => Stage::Searching,
        Phase::Fetching => Stage::Active,
        Phase::DiskFull => Stage::DiskFull,
    }
}

/// What an observer of the list has seen.
#[derive(Debug, Default)]
pub struct QueueSubscription {
    version: Option<u64>,
    progress: Vec<watch::Receiver<Progress>>,
}

impl DownloadQueue {
    /// Lists the entries that are not finished in the order in which they start, then the downloads of commands, then the
    /// finished entries in the order in which they finished.
    pub fn list(&self) -> Vec<DownloadStatus> {
        let active = self.0.downloader.active().into_iter();
        let mut active: BTreeMap<FileId, ActiveDownload> = active.map(|active| (active.id, active)).collect();
        let mut list = Vec::new();
        let mut finished = Vec::new();
        let state = self.0.state.lock();
        for (id, record) in state.entries.iter() {
            let position = (!record.state.is_finished()).then_some(list.len());
            let status = self.0.status(&state, *id, record, active.remove(id), position);
            if position.is_some() { list.push(status) } else { finished.push(status) }
        }
        drop(state);
        let mut commands: Vec<_> = active.values().map(DownloadStatus::of_command).collect();
        commands.sort_by_key(|command| command.added_ms);
        list.extend(commands);
        list.extend(finished);
        list
    }

    /// Returns one download of the list.
    pub fn get(&self, id: &FileId) -> Option<DownloadStatus> {
        self.list().into_iter().find(|status| status.id == *id)
    }

    /// Waits until the list or the progress of a download changes. Returns at once in the first call.
    pub async fn changed(&self, subscription: &mut QueueSubscription) {
        let QueueSubscription { version, progress } = subscription;
        if let Some(seen) = *version {
            let mut progress: FuturesUnordered<_> =
                progress.iter_mut().map(|updates| updates.changed()).collect();
            tokio::select! {
                () = self.0.changes.wait_until(|| self.0.changes.version() != seen) => {}
                Some(_) = progress.next() => {}
            }
        }
        *version = Some(self.0.changes.version());
        *progress = self.0.downloader.progress();
    }
}

impl Inner {
    fn status(
        &self,
        state: &State,
        id: FileId,
        record: &DownloadRecord,
        active: Option<ActiveDownload>,
        position: Option<usize>,
    ) -> DownloadStatus {
        let mut status = DownloadStatus {
            id,
            name: Some(record.name.clone()),
            kind: record.kind,
            size: record.size,
            done: self.stored_bytes(&id, record),
            stage: Stage::Queued,
            error: None,
            rate: 0,
            providers: 0,
            position,
            added_ms: record.added_ms,
            is_command: false,
        };
        status.stage = match &record.state {
            DownloadState::Queued => Stage::Queued,
            DownloadState::Paused => Stage::Paused,
            DownloadState::Complete => Stage::Complete,
            DownloadState::Failed(error) => {
                status.error = Some(error.clone());
                Stage::Failed
            }
        };
        let Some(run) = state.runs.get(&id).filter(|_| status.stage == Stage::Queued) else { return status };
        let Progress { done, total, providers, phase } = run.progress();
        status.error.clone_from(&run.error);
        if total > 0 {
            (status.done, status.size) = (done, total);
        }
        match run.phase {
            RunPhase::Ready => {}
            RunPhase::Delayed => status.stage = Stage::Searching,
            RunPhase::Active => {
                (status.stage, status.providers) = (stage(phase), providers);
                status.rate = active.map_or(0, |active| active.rate);
            }
        }
        if status.stage == Stage::Active {
            status.error = None;
        }
        status
    }

    /// Returns the stored bytes of a file, or for a directory those at its last interruption.
    pub(super) fn stored_bytes(&self, id: &FileId, record: &DownloadRecord) -> u64 {
        match self.library().entry(id) {
            _ if record.state == DownloadState::Complete => record.size,
            Some(entry) if entry.kind != FileKind::Collection => entry.stored_bytes(),
            _ => record.done,
        }
    }
}
