//! Writes the log back into the database beside the writer, on a thread and a connection of its own.
//!
//! A checkpoint syncs the log, copies it into the database and syncs that. On the writer's thread the disk would rest
//! while the writer works, and the writer while the disk does. It is a passive one, which waits for nobody and
//! which nobody waits for; what the writer adds meanwhile is left to the next.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use enjambre_core::storage::error::StorageError;
use rusqlite::Connection;

/// After how many bytes that were written the log is written back.
const STEP: usize = 4 * 1024 * 1024;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    nudge: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Held while it is at work.
    turn: Arc<Mutex<()>>,
    written: usize,
}

impl Checkpointer {
    /// Starts the thread on a connection that nobody else uses.
    pub(crate) fn start(connection: Connection, path: PathBuf) -> Result<Self, StorageError> {
        let (nudge, nudged) = sync_channel(1);
        let turn = Arc::new(Mutex::new(()));
        let own = Arc::clone(&turn);
        let thread = std::thread::Builder::new()
            .name("sqlite-log".to_owned())
            .spawn(move || run(&connection, &path, &nudged, &own))
            .map_err(|error| StorageError::backend("start a thread", error))?;
        Ok(Self { nudge: Some(nudge), thread: Some(thread), turn, written: 0 })
    }

    /// Waits until it is not at work, and keeps it from beginning. There can be one checkpoint at a time, and SQLite
    /// refuses another without waiting.
    pub(crate) fn rest(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes were committed.
    pub(crate) fn committed(&mut self, bytes: usize) {
        self.written += bytes;
        // Where it is at work and has been told already, it is told again the next time.
        if self.written >= STEP
            && let Some(nudge) = &self.nudge
            && nudge.try_send(()).is_ok()
        {
            self.written = 0;
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.nudge = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(connection: &Connection, path: &Path, nudged: &Receiver<()>, turn: &Mutex<()>) {
    while nudged.recv().is_ok() {
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let done = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        if let Err(error) = done {
            // The writer meets what is wrong as well, and tells.
            tracing::debug!(database = %path.display(), %error, "the log could not be written back");
        }
    }
}
