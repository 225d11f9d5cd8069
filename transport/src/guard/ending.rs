//! Timeouts of idle and stalled connections, and orderly closing.

use std::time::Duration;

use enjambre_core::Activity;
use enjambre_core::transport::calls::Calls;
#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::gate::RequestGate;

/// The poll interval for a socket with unread urgent data.
#[cfg(target_os = "linux")]
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until no byte has been received for this time while the connection is not busy.
pub(crate) async fn idle_timeout(activity: &Activity, limit: Duration, busy: impl Fn() -> bool) {
    loop {
        let silent = activity.silent_for();
        if silent >= limit && !busy() {
            return;
        }
        // Busy beyond the limit: poll.
        let pause = limit.checked_sub(silent).filter(|left| !left.is_zero()).unwrap_or(limit / 4);
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
    }
}

/// Waits until a request has been incomplete for this time. A remote that sends single bytes is never idle.
pub(crate) async fn request_timeout(gate: &RequestGate, limit: Duration) {
    loop {
        let left = limit.saturating_sub(gate.arriving_for().unwrap_or_default());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// Like [`idle_timeout`] for the requesting side: refuses new calls, then returns. This happens well before the remote closes the
/// connection after `limit`, so that no request is sent on a closing connection.
pub(crate) async fn retire(activity: &Activity, limit: Duration, calls: &Calls) {
    loop {
        idle_timeout(activity, limit / 2, || calls.is_busy()).await;
        if calls.retire() {
            return;
        }
    }
}

/// A stream that detects that the remote has closed it, even if unread bytes are left.
pub(crate) trait HangUp {
    /// Waits until the remote has closed the connection, while the stream is not read.
    fn hung_up(&self) -> impl Future<Output = ()> + Send;
}

/// [`HangUp::hung_up`] of a socket.
pub(super) async fn hung_up(socket: &TcpStream) {
    // The interest in urgent data also reports the end, but not readable bytes. On other systems, the end is detected by
    // the next read.
    #[cfg(target_os = "linux")]
    while let Ok(ready) = socket.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() {
            return;
        }
        // Urgent data has no meaning here and remains unread.
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
    std::future::pending::<()>().await;
}

/// Maximum duration of [`linger`].
const LINGER: Duration = Duration::from_secs(1);

/// Reads and discards bytes until the remote closes the connection, which it does at the end of its replies. Closing a
/// socket with unread bytes would reset the connection, and the last replies might be lost.
pub(crate) async fn linger<R: AsyncRead + Unpin>(from: &mut R) {
    let mut scratch = vec![0; 16 * 1024];
    let closed = async { while from.read(&mut scratch).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(LINGER, closed).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::RequestId;
    #[cfg(target_os = "linux")]
    use futures::FutureExt;
    #[cfg(target_os = "linux")]
    use socket2::SockRef;
    #[cfg(target_os = "linux")]
    use tokio::net::TcpListener;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn idle_timeout_restarts_with_bytes_and_while_busy() {
        let activity = Activity::default();
        let begin = tokio::time::Instant::now();
        let busy = || begin.elapsed() < 3 * HOUR;
        let traffic = async {
            tokio::time::sleep(HOUR / 2).await;
            activity.record();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = idle_timeout(&activity, HOUR, busy) => {}
            () = traffic => {}
        }
        assert!(begin.elapsed() >= 3 * HOUR && begin.elapsed() < 4 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn requesting_side_retires_after_half_of_the_timeout() {
        let (activity, calls) = (Activity::default(), Calls::new());
        let begin = tokio::time::Instant::now();
        let call = calls.begin(RequestId(1)).unwrap();
        let answered = async {
            tokio::time::sleep(2 * HOUR).await;
            activity.record();
            drop(call);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = retire(&activity, HOUR, &calls) => {}
            () = answered => {}
        }
        assert_eq!(begin.elapsed(), 2 * HOUR + HOUR / 2);
        assert!(calls.begin(RequestId(2)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn request_timeout_restarts_with_each_request() {
        let gate = RequestGate::new(2, 1024);
        let begin = tokio::time::Instant::now();
        let traffic = async {
            for pause in [HOUR / 2, HOUR / 3, HOUR / 4, HOUR / 5] {
                tokio::time::sleep(pause).await;
                gate.set_arriving(true);
                tokio::time::sleep(HOUR / 2).await;
                gate.set_arriving(true);
                tokio::time::sleep(HOUR / 3).await;
                gate.set_arriving(false);
            }
            gate.set_arriving(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = request_timeout(&gate, HOUR) => {}
            () = traffic => {}
        }
        assert_eq!(gate.arriving_for(), Some(HOUR));
        assert!(begin.elapsed() > 4 * HOUR, "each request restarts the timeout");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn urgent_data_does_not_affect_the_end_of_a_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let remote = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        SockRef::from(&remote).send_out_of_band(b"!").unwrap();
        SockRef::from(&remote).send(b"more").unwrap();
        // The urgent data arrived before.
        stream.readable().await.unwrap();
        assert!(hung_up(&stream).now_or_never().is_none());
        drop(remote);
        hung_up(&stream).await;
    }
}
