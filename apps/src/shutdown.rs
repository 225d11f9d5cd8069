//! From a signal to the end of the process: asked for politely, forced after five seconds.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long an orderly end may take after a signal.
pub const LIMIT: Duration = Duration::from_secs(5);
/// What is left for the runtime and the process itself.
const RESERVE: Duration = Duration::from_millis(300);

/// A token that is cancelled by SIGINT or SIGTERM. The process ends within [`LIMIT`] after it, if need be by force;
/// a second signal forces it at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        };
        next().await;
        tracing::info!("shutting down");
        cancelled.cancel();
        // A thread, because the runtime itself may be what hangs.
        std::thread::spawn(|| {
            std::thread::sleep(LIMIT - RESERVE);
            tracing::error!("the shutdown took too long");
            std::process::exit(1);
        });
        next().await;
        tracing::error!("stopped by a second signal");
        std::process::exit(1);
    });
    Ok(token)
}
