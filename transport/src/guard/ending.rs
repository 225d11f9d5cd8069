//! When a connection has been quiet for too long, and how it ends in order.

use std::time::Duration;

use enjambre_core::transport::calls::{Activity, Calls};
#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::gate::RequestGate;

/// How often a connection is looked at over which urgent bytes came.
#[cfg(target_os = "linux")]
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Returns when nothing was heard for so long while nothing was going on.
pub(crate) async fn idle(activity: &Activity, limit: Duration, busy: impl Fn() -> bool) {
    loop {
        let silent = activity.silent_for();
        if silent >= limit && !busy() {
            return;
        }
        // Busy beyond the limit: look again now and then.
        let pause = limit.checked_sub(silent).filter(|left| !left.is_zero()).unwrap_or(limit / 4);
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
    }
}

/// Returns when a request has been coming in for so long and is not whole: who sends a byte now and then is never quiet.
pub(crate) async fn dawdling(gate: &RequestGate, limit: Duration) {
    loop {
        let left = limit.saturating_sub(gate.arriving_for().unwrap_or_default());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// The same as [`idle`] for the asking side: returns when no call can begin any more. That is well before the remote, which waits
/// for `limit`, closes the connection, so that no request crosses its closing.
pub(crate) async fn retire(activity: &Activity, limit: Duration, calls: &Calls) {
    loop {
        idle(activity, limit / 2, || calls.is_busy()).await;
        if calls.retire() {
            return;
        }
    }
}

/// A stream that tells when the remote has closed it, however much is left to be read.
pub(crate) trait HangUp {
    /// Returns when the remote has closed the connection. For the time in which nothing is read from it.
    fn hung_up(&self) -> impl Future<Output = ()> + Send;
}

/// [`HangUp::hung_up`] of a socket.
pub(super) async fn hung_up(socket: &TcpStream) {
    // Waiting for what is urgent tells of the end, too, and not of bytes that can be read. Where that cannot be
    // waited for, the end is noticed once reading goes on.
    #[cfg(target_os = "linux")]
    while let Ok(ready) = socket.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() {
            return;
        }
        // Urgent bytes mean nothing here. They stay, so this looks again at leisure.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
    std::future::pending::<()>().await;
}

/// How long [`linger`] waits for the remote to close.
const LINGER: Duration = Duration::from_secs(1);

/// Reads what the remote still sends and drops it until the remote closes, which it does when it sees the end of what
/// is sent to it. Closing with unread bytes would reset the connection, and what was sent last might not arrive.
pub(crate) async fn linger<R: AsyncRead + Unpin>(from: &mut R) {
    let mut scratch = vec![0; 16 * 1024];
    let closed = async { while from.read(&mut scratch).await.is_ok_and(|read| read > 0) {} };
    // Who does not close by then has no part in an orderly end.
    let _ = tokio::time::timeout(LINGER, closed).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::transport::envelope::RequestId;
    #[cfg(target_os = "linux")]
    use futures::FutureExt;
    #[cfg(target_os = "linux")]
    use socket2::SockRef;
    #[cfg(target_os = "linux")]
    use tokio::net::TcpListener;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn idle_time_runs_from_the_last_bytes_and_not_while_busy() {
        let activity = Activity::default();
        let begin = tokio::time::Instant::now();
        let busy = || begin.elapsed() < 3 * HOUR;
        let traffic = async {
            tokio::time::sleep(HOUR / 2).await;
            activity.heard();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = idle(&activity, HOUR, busy) => {}
            () = traffic => {}
        }
        assert!(begin.elapsed() >= 3 * HOUR && begin.elapsed() < 4 * HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_leaves_after_half_of_the_time_and_not_while_a_call_is_under_way() {
        let (activity, calls) = (Activity::default(), Calls::new());
        let begin = tokio::time::Instant::now();
        let call = calls.begin(RequestId(1)).unwrap();
        let answered = async {
            tokio::time::sleep(2 * HOUR).await;
            activity.heard();
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
    async fn a_request_has_as_long_as_it_may_take_whenever_it_begins() {
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
            () = dawdling(&gate, HOUR) => {}
            () = traffic => {}
        }
        assert_eq!(gate.arriving_for(), Some(HOUR));
        assert!(begin.elapsed() > 4 * HOUR, "each of them began anew");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn urgent_bytes_are_neither_an_end_nor_in_the_way_of_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let remote = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        SockRef::from(&remote).send_out_of_band(b"!").unwrap();
        SockRef::from(&remote).send(b"more").unwrap();
        // What is urgent came before it.
        stream.readable().await.unwrap();
        assert!(hung_up(&stream).now_or_never().is_none());
        drop(remote);
        hung_up(&stream).await;
    }
}
