//! What holds a download up that the library cannot go on with: a full disk, or a database that is being reopened.
//!
//! A full disk is waited for as long as it takes, since whoever has the disk is told of it. What else may pass by
//! itself is waited for as long as for somebody who has the missing pieces, and is then an error.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::progress::{Phase, Progress};
use super::wanted::Parts;
use crate::library::error::LibraryError;

/// How long to wait before what could not be done is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// For how long further downloads that have to wait are no news.
const NEWS: Duration = Duration::from_secs(60);

/// A wait for the library.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    since: Instant,
    /// When it is tried again.
    pub(super) until: Instant,
    /// There is no room on the disk.
    pub(super) full: bool,
}

impl Hold {
    /// The wait after this error, which may go on one before; the error itself where waiting makes no sense.
    pub(super) fn after(
        before: Option<Self>,
        error: LibraryError,
        parts: &Parts,
    ) -> Result<Self, LibraryError> {
        let now = Instant::now();
        let full = matches!(error, LibraryError::Full { .. });
        // Only what does not pass by itself has a limit, and room that came back begins a new wait.
        let since = before.filter(|hold| hold.full == full).map_or(now, |hold| hold.since);
        if !full && (!error.is_temporary() || now >= since + parts.settings.patience) {
            return Err(error);
        }
        if before.is_none_or(|hold| hold.full != full) {
            parts.note_hold(&error);
        }
        Ok(Self { since, until: now + PAUSE, full })
    }
}

impl Parts {
    /// Logs that downloads have to wait: once, however many they are. Who waits for one is told by its progress.
    fn note_hold(&self, error: &LibraryError) {
        let before = self.held.lock().replace(Instant::now());
        if before.is_none_or(|before| before.elapsed() >= NEWS) {
            tracing::info!(%error, "downloads wait");
        }
    }
}

/// Does something with the library, again and again for as long as the disk is full, and tells by the progress that it is.
pub(super) async fn with_room<T, F: Future<Output = Result<T, LibraryError>>>(
    parts: &Parts,
    progress: &watch::Sender<Progress>,
    mut attempt: impl FnMut() -> F,
) -> Result<T, LibraryError> {
    let mut hold = None;
    let before = progress.borrow().phase;
    loop {
        let error = match attempt().await {
            Ok(done) => {
                if hold.is_some() {
                    progress.send_modify(|progress| progress.phase = before);
                }
                return Ok(done);
            }
            Err(error) => error,
        };
        let next = Hold::after(hold, error, parts)?;
        hold = Some(next);
        if next.full {
            progress.send_modify(|progress| progress.phase = Phase::DiskFull);
        }
        sleep(PAUSE).await;
    }
}
