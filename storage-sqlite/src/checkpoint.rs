//! Checkpoints that truncate the log of records if overlapping readers prevent SQLite from restarting it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use enjambre_core::model::time::human;
use enjambre_core::runtime::backoff::Backoff;
use rusqlite::Connection;

/// The log size in bytes from which a commit is followed by a checkpoint. With the largest group the log stays below 64 MiB.
pub(crate) const TRUNCATE_LOG: u64 = 40 * 1024 * 1024;
/// The wait of a statement for another process that reads.
pub(crate) const BUSY: Duration = Duration::from_secs(2);
/// The wait of a checkpoint for readers, up to two times. Readers of this process take milliseconds.
const CHECKPOINT_BUSY: Duration = Duration::from_millis(250);
/// The delay of the next checkpoint if readers have blocked one. It doubles each time.
const MIN_DELAY: Duration = Duration::from_secs(5);
/// The maximum delay of the next checkpoint.
const MAX_DELAY: Duration = Duration::from_secs(5 * 60);

/// Checkpoints with a backoff: commits wait for them, and a reader of another process may block them for hours.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    log: PathBuf,
    /// The time of the next checkpoint, after one that was blocked.
    pub(crate) next: Option<Instant>,
    delay: Backoff,
}

impl Checkpoints {
    pub(crate) fn new(log: PathBuf) -> Self {
        Self { log, next: None, delay: Backoff::new(MIN_DELAY, MAX_DELAY) }
    }

    pub(crate) fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// Runs a checkpoint if the log is long.
    pub(crate) fn limit_log(&mut self, connection: &Connection) {
        if self.log_length() >= TRUNCATE_LOG {
            self.run(connection);
        }
    }

    /// Writes the log to the database and truncates it, unless readers have blocked that recently.
    pub(crate) fn run(&mut self, connection: &Connection) {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let outcome = truncate(connection);
        if matches!(outcome, Ok(true)) {
            self.next = None;
            self.delay.reset();
            return;
        }
        let delay = self.delay.next_delay();
        self.next = Some(Instant::now() + delay);
        let (log, bytes, delay) = (self.log.display(), self.log_length(), human(delay));
        match outcome {
            Err(error) => {
                tracing::warn!(%log, bytes, %delay, %error, "truncating the database log failed; will retry");
            }
            Ok(_) => tracing::warn!(
                %log, bytes, %delay,
                "database log grows: another process, for example a backup, reads the database for a long time; end it"
            ),
        }
    }
}

/// Returns whether the log was truncated. Readers with an older view of the database prevent that.
fn truncate(connection: &Connection) -> rusqlite::Result<bool> {
    connection.busy_timeout(CHECKPOINT_BUSY)?;
    let is_blocked = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
    connection.busy_timeout(BUSY)?;
    Ok(!is_blocked?)
}
