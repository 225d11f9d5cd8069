//! The periodic tasks of a tracker: writes of renewals, and removal of expired peers and files.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::service::TrackerService;
use super::ticker::ticker;
use crate::catalogue::Task;
use enjambre_core::model::time::human;

/// The time limit of the last write of renewals.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

impl TrackerService {
    /// Writes renewals and sweeps expired entries until the shutdown, then writes the last renewals. To be run as a task
    /// alongside the service.
    pub async fn run(&self, shutdown: CancellationToken) {
        tokio::join!(
            shutdown.run_until_cancelled(self.flush_periodically()),
            shutdown.run_until_cancelled(self.sweep_periodically()),
            shutdown.run_until_cancelled(self.expire_periodically()),
        );
        match timeout(LAST_FLUSH_TIMEOUT, self.catalogue.flush(self.clock.now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "last renewals not written"),
            Err(_) => {
                tracing::warn!(timeout = %human(LAST_FLUSH_TIMEOUT), "last renewals not written: timed out");
            }
        }
    }

    async fn flush_periodically(&self) {
        let mut ticks = ticker(self.settings.flush_interval());
        loop {
            ticks.tick().await;
            if let Err(error) = self.catalogue.flush(self.clock.now()).await {
                self.metrics.failed_flushes.add(1);
                tracing::warn!(%error, "renewals not written; retrying at the next interval");
            }
        }
    }

    async fn sweep_periodically(&self) {
        if let Err(error) = self.catalogue.count().await {
            tracing::warn!(%error, "catalogue count failed");
        }
        let mut ticks = ticker(self.settings.sweep);
        loop {
            ticks.tick().await;
            if !self.take_turn(Task::Sweep, self.settings.sweep).await {
                continue;
            }
            match self.catalogue.sweep_peers(self.clock.now()).await {
                Ok(swept) => {
                    self.metrics.record_sweep(&swept);
                    tracing::debug!(swept.alive, swept.peers, swept.claims, "peers swept");
                }
                Err(error) => {
                    self.metrics.failed_sweeps.add(1);
                    tracing::warn!(%error, "peer sweep failed");
                }
            }
        }
    }

    async fn expire_periodically(&self) {
        let mut ticks = ticker(self.settings.expiry_interval());
        // Providers need time to reconnect after the start.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // The count includes the additions of other trackers.
            if let Err(error) = self.catalogue.count().await {
                tracing::warn!(%error, "catalogue count failed");
            }
            if !self.take_turn(Task::Expire, self.settings.expiry_interval()).await {
                continue;
            }
            match self.catalogue.expire_files(self.settings.file_retention, self.clock.now()).await {
                Ok(0) => {}
                Ok(files) => {
                    self.metrics.expired_files.add(files);
                    tracing::info!(files, "expired files removed");
                }
                Err(error) => tracing::warn!(%error, "file expiry failed"),
            }
        }
    }

    /// Returns whether this tracker is to do a task that the trackers of a catalogue share.
    async fn take_turn(&self, task: Task, period: Duration) -> bool {
        let turn = self.catalogue.take_turn(task, period, self.clock.now()).await;
        turn.unwrap_or_else(|error| {
            tracing::warn!(%error, %task, "task skipped: its schedule in the catalogue is unreadable");
            false
        })
    }
}
