//! Graceful shutdown after a signal, forced after five seconds.

use std::time::Duration;

use enjambre_control::Status;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Maximum duration of a graceful shutdown.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Time after the first signal in which further ones are ignored. Some senders repeat it: `timeout` signals the process and
/// its group, a terminal the whole group.
const REPEAT: Duration = Duration::from_millis(500);
/// Share of [`LIMIT`] reserved for the end of the runtime and of the process.
const RESERVE: Duration = Duration::from_millis(300);

/// Returns a token that SIGINT or SIGTERM cancels. The process exits within [`LIMIT`] after that signal, forcibly if
/// necessary. A second signal exits immediately, unless it follows at once.
pub(crate) fn on_signal() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        };
        next().await;
        let first = Instant::now();
        tracing::info!("shutting down");
        cancelled.cancel();
        // A thread, because the runtime itself can hang.
        std::thread::spawn(|| {
            std::thread::sleep(LIMIT - RESERVE);
            tracing::error!("graceful shutdown timed out");
            std::process::exit(1);
        });
        while first.elapsed() < REPEAT {
            next().await;
        }
        tracing::error!("second signal received, exiting immediately");
        std::process::exit(Status::Interrupted as i32);
    });
    Ok(token)
}
