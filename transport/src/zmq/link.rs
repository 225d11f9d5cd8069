//! The requesting side of an established connection: a guarded stream and its own DEALER.
//!
//! The guard detects the end of the connection. The DEALER is discarded with the link.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use enjambre_core::transport::calls::Calls;
use enjambre_core::transport::metrics::TransportMetrics;
use enjambre_core::{Activity, Endpoint, Message, TransportError, runtime};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use zeromq::{DealerRecvHalf, DealerSendHalf, DealerSocket, SocketRecv, SocketSend, ZmqMessage};

use super::inner::InnerListener;
use crate::guard::disconnect::Disconnect;
use crate::guard::frame::Direction;
use crate::guard::handshake::{SocketInfo, shake_hands};
use crate::guard::splice::{self, Inbound, MAX_PONGS, Payloads};
use crate::guard::stream::{self, Stream};
use crate::guard::{Guard, ending};
use crate::wire::{Dialled, Link, MAX_UNMATCHED};

/// Maximum wait after the end of the connection for replies that the guard has already forwarded to the crate.
const LAST_REPLIES: Duration = Duration::from_secs(2);

pub(crate) struct ZmqLink {
    calls: Arc<Calls>,
    sender: tokio::sync::Mutex<Option<DealerSendHalf>>,
    /// Ends the link.
    kill: CancellationToken,
    /// Cancelled when the guard forwards no further replies.
    ended: CancellationToken,
    passed: AtomicU64,
    payloads: Payloads,
}

impl fmt::Debug for ZmqLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZmqLink").field("ended", &self.ended.is_cancelled()).finish_non_exhaustive()
    }
}

impl Inbound for ZmqLink {
    fn payloads(&self) -> Option<&Payloads> {
        Some(&self.payloads)
    }

    fn passed(&self, messages: u64) {
        self.passed.fetch_add(messages, Ordering::AcqRel);
    }
}

impl Link for ZmqLink {
    fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    fn is_up(&self) -> bool {
        !self.calls.is_over() && !self.ended.is_cancelled() && !self.kill.is_cancelled()
    }

    async fn send(&self, header: Bytes) {
        let mut sender = self.sender.lock().await;
        let sent = match sender.as_mut() {
            Some(sender) => sender.send(ZmqMessage::from(header)).await.is_ok(),
            None => false,
        };
        if !sent {
            self.kill.cancel();
        }
    }
}

impl ZmqLink {
    /// Performs the handshake, and starts the transfer of messages until `kill` is cancelled.
    pub(super) async fn establish(
        inner_listener: &InnerListener,
        dialled: Dialled,
    ) -> Result<Arc<Self>, Disconnect> {
        let Dialled { guard, metrics, stream: mut public, endpoint, activity, kill } = dialled;
        let dealer = SocketInfo { socket_type: "DEALER", identity: b"" };
        shake_hands(&mut public, dealer, &["ROUTER"]).await?;
        let to_crate = SocketInfo { socket_type: "ROUTER", identity: b"" };
        let (dealer, inner) = inner_listener.connect::<DealerSocket>(to_crate, "DEALER").await?;
        let (sender, receiver) = dealer.split();
        // One payload is queued, one is being read, and one is being delivered.
        let (to, payloads) = mpsc::channel(1);
        let link = Arc::new(Self {
            calls: Calls::new(),
            sender: tokio::sync::Mutex::new(Some(sender)),
            kill,
            ended: CancellationToken::new(),
            passed: AtomicU64::new(0),
            payloads: Payloads { pool: guard.buffers.clone(), to },
        });
        runtime::spawn(Arc::clone(&link).transfer(guard, metrics, endpoint.clone(), public, inner, activity));
        runtime::spawn(Arc::clone(&link).receive(endpoint, receiver, payloads));
        Ok(link)
    }

    async fn transfer(
        self: Arc<Self>,
        guard: Arc<Guard>,
        metrics: Arc<TransportMetrics>,
        endpoint: Endpoint,
        mut public: Stream,
        mut inner: UnixStream,
        activity: Activity,
    ) {
        let open = metrics.outbound.enter();
        let settings = &guard.settings;
        let direction = Direction::Replies {
            header: settings.header as u64,
            payload: settings.payload as u64,
            frames: settings.frames,
        };
        let (pong_sender, mut pongs) = mpsc::channel(MAX_PONGS);
        let timeout = settings.stall_timeout;
        // Sent bytes count for the idle timeout, but not for the silence of the remote.
        let traffic = Activity::default();
        let reason = {
            let (mut from_public, mut to_public) = stream::split(&mut public, &metrics);
            let (mut from_inner, mut to_inner) = inner.split();
            let inbound = splice::inbound(
                &mut from_public,
                &mut to_inner,
                direction,
                &*self,
                &activity,
                &pong_sender,
                timeout,
            );
            let outbound =
                splice::outbound(&mut from_inner, &mut to_public, &(), &traffic, &mut pongs, timeout);
            tokio::select! {
                biased;
                () = self.kill.cancelled() => Disconnect::Local,
                ended = inbound => ended.err().unwrap_or(Disconnect::Closed),
                ended = outbound => ended.err().unwrap_or(Disconnect::Closed),
                () = ending::retire(&traffic, settings.idle_timeout, &self.calls) => Disconnect::IdleTimeout,
            }
        };
        // Before the inner stream closes: the crate must not see its end first.
        self.ended.cancel();
        drop((public, open));
        guard.log.record(&metrics, &endpoint, &reason);
        // Complete replies are still in the inner stream, for the receiving task.
        tokio::select! {
            () = self.kill.cancelled() => {}
            () = tokio::time::sleep(2 * LAST_REPLIES) => {}
        }
        drop(inner);
    }

    async fn receive(
        self: Arc<Self>,
        endpoint: Endpoint,
        mut dealer: DealerRecvHalf,
        mut payloads: mpsc::Receiver<Bytes>,
    ) {
        let mut received = 0;
        loop {
            let message = tokio::select! {
                biased;
                () = self.kill.cancelled() => break,
                message = dealer.recv() => message,
                () = self.ended.cancelled() => {
                    if received >= self.passed.load(Ordering::Acquire) {
                        break;
                    }
                    match tokio::time::timeout(LAST_REPLIES, dealer.recv()).await {
                        Ok(message) => message,
                        Err(_) => break,
                    }
                }
            };
            let Ok(message) = message else { break };
            received += 1;
            let mut frames = message.into_vecdeque();
            let header = frames.pop_front().unwrap_or_default();
            let payload = match frames.pop_front() {
                None => Bytes::new(),
                // An empty frame marks its position. The payload comes from the guard.
                Some(_) => tokio::select! {
                    biased;
                    () = self.kill.cancelled() => break,
                    Some(payload) = payloads.recv() => payload,
                    () = self.ended.cancelled() => break,
                },
            };
            // A message with more frames is not a reply. It is dropped and counted.
            let header = if frames.is_empty() { header } else { Bytes::new() };
            if self.calls.deliver(Message { header, payload }) > MAX_UNMATCHED {
                break;
            }
        }
        self.calls.fail(|| TransportError::Lost { endpoint: endpoint.clone() });
        self.kill.cancel();
        self.sender.lock().await.take();
    }
}
