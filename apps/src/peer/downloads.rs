//! The commands for the download queue.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enjambre_control::{
    Download, DownloadDetail, DownloadList, DownloadOrigin, DownloadSource, Event, Events, Failure,
    PieceCells,
};
use enjambre_core::FileId;
use enjambre_swarm::download::queue::{DownloadStatus, NewDownload, QueueError, QueueSubscription};
use enjambre_swarm::download::view::Source;
use tokio::time::sleep;

use super::{Node, Reach};
use crate::find::{Found, check_whole, default_name, find};

/// Minimum time between two events with the downloads.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn downloads(&self) -> Event {
        let downloads = self.downloads.list().into_iter().map(|status| self.line(status)).collect();
        Event::Downloads(DownloadList { downloads })
    }

    /// Sends the list of downloads whenever it changes.
    pub(super) async fn watch_downloads(&self, events: &Events) {
        let mut subscription = QueueSubscription::default();
        loop {
            self.downloads.changed(&mut subscription).await;
            events.send(self.downloads()).await;
            sleep(WATCH_INTERVAL).await;
        }
    }

    /// Sends a download of the queue.
    async fn send_download(&self, id: FileId, events: &Events) -> Result<(), Failure> {
        events.send(Event::Download(self.download(id)?)).await;
        Ok(())
    }

    fn download(&self, id: FileId) -> Result<Download, Failure> {
        let status = self.downloads.get(&id).ok_or_else(|| QueueError::NotFound(id.to_string()))?;
        Ok(self.line(status))
    }

    pub(super) async fn show_download(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let id = match self.downloads.find(query) {
            Ok(id) | Err(QueueError::Command(id)) => id,
            Err(error) => return Err(error.into()),
        };
        let details = self.downloads.details(&id).await;
        let pieces = details.pieces.map(|map| {
            let (count, map) = (map.count, STANDARD.encode(map.cells));
            PieceCells { count, map }
        });
        let sources = details.sources.into_iter().map(source).collect();
        let detail = DownloadDetail { download: self.download(id)?, sources, pieces };
        events.send(Event::DownloadDetail(detail)).await;
        Ok(())
    }

    pub(super) async fn start_download(&self, query: &str, events: &Events) -> Result<(), Failure> {
        check_whole(query)?;
        let Found { id, name, kind, size, warning } =
            find(&self.services.library, &self.trackers, query).await?;
        if let Some(warning) = warning {
            events.warn(warning).await;
        }
        if self.reach != Reach::Daemon {
            events.warn("no peer is running; the download starts with `enjambre peer`").await;
        }
        let new = self.downloads.add(NewDownload { id, name, kind, size }).await?;
        events.send(Event::DownloadStarted { download: self.download(id)?, new }).await;
        Ok(())
    }

    pub(super) async fn pause_download(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let id = self.downloads.find(query)?;
        self.downloads.pause(id).await?;
        self.send_download(id, events).await
    }

    pub(super) async fn resume_download(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let id = self.downloads.find(query)?;
        self.downloads.resume(id).await?;
        self.send_download(id, events).await
    }

    pub(super) async fn cancel_download(&self, query: &str, keep: bool) -> Result<(), Failure> {
        let id = self.downloads.find(query)?;
        Ok(self.downloads.cancel(id, keep).await?)
    }

    pub(super) async fn move_download(
        &self,
        query: &str,
        position: u64,
        events: &Events,
    ) -> Result<(), Failure> {
        let id = self.downloads.find(query)?;
        self.downloads.move_to(id, usize::try_from(position).unwrap_or(usize::MAX)).await?;
        self.send_download(id, events).await
    }

    fn line(&self, status: DownloadStatus) -> Download {
        let eta_seconds = status.eta().map(|eta| eta.as_secs());
        let DownloadStatus { id, kind, size, done, rate, providers, added_ms, .. } = status;
        let known = || self.services.library.entry(&id)?.name.or_else(|| default_name(&id));
        Download {
            id,
            name: status.name.or_else(known).map_or_else(|| id.short(), |name| name.to_string()),
            kind,
            size,
            done,
            state: status.stage,
            error: status.error,
            rate,
            eta_seconds,
            providers,
            position: status.position.map(|position| position as u64),
            added_ms,
            origin: if status.is_command { DownloadOrigin::Command } else { DownloadOrigin::Api },
        }
    }
}

fn source(source: Source) -> DownloadSource {
    let Source { peer, endpoint, rate, received_bytes, state } = source;
    DownloadSource { peer, endpoint, rate, received_bytes, state }
}
