//! Graceful shutdown after a signal, forced after five seconds.

use std::task::Poll;
use std::time::Duration;

use enjambre_control::Status;
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
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
    let mut signals = stream::poll_fn(move |context| match interrupt.poll_recv(context) {
        Poll::Pending => terminate.poll_recv(context),
        received => received,
    });
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("shutting down");
        cancelled.cancel();
        // A thread, because the runtime itself can hang.
        std::thread::spawn(|| {
            std::thread::sleep(LIMIT - RESERVE);
            tracing::error!("graceful shutdown timed out");
            std::process::exit(1);
        });
        second_signal(signals).await;
        tracing::error!("second signal received, exiting immediately");
        std::process::exit(Status::Interrupted as i32);
    });
    Ok(token)
}

/// Waits for a signal after [`REPEAT`]. A signal that arrived before is ignored, even if it is seen late, for example because
/// stderr was blocked.
async fn second_signal(mut signals: impl Stream<Item = ()> + Unpin) {
    sleep(REPEAT).await;
    while signals.next().now_or_never().flatten().is_some() {}
    signals.next().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeated_signal_is_ignored_even_if_it_is_seen_late() {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let mut second = Box::pin(second_signal(stream::poll_fn(move |context| receiver.poll_recv(context))));
        assert!(futures::poll!(&mut second).is_pending());
        sender.send(()).unwrap();
        tokio::time::advance(2 * REPEAT).await;
        assert!(futures::poll!(&mut second).is_pending());
        sender.send(()).unwrap();
        tokio::time::timeout(REPEAT, second).await.expect("the second signal is seen");
    }
}
