//! The requesting side: a connection, which connects on demand, and its links.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::transport::caller::{Caller, Exchange};
use enjambre_core::transport::calls::Calls;
use enjambre_core::transport::envelope;
use enjambre_core::{Activity, Endpoint, Message, MessageLimits, RequestId, TransportError};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::frame;

/// A connection to one endpoint. It outlives its links.
#[derive(Debug)]
pub(crate) struct PipeConnection {
    /// Request ids, deadlines and the end of the connection.
    caller: Caller,
    path: PathBuf,
    limits: MessageLimits,
    link: Mutex<Option<Arc<Link>>>,
}

/// One established stream.
#[derive(Debug)]
struct Link {
    /// The calls that wait for a reply.
    calls: Arc<Calls>,
    requests: mpsc::Sender<Bytes>,
    /// Limits the requests in flight.
    slots: Semaphore,
    ended: CancellationToken,
}

impl PipeConnection {
    pub(crate) fn new(endpoint: Endpoint, path: PathBuf, limits: MessageLimits) -> Self {
        Self { caller: Caller::new(endpoint, limits), path, limits, link: Mutex::new(None) }
    }

    /// Returns the current link, or establishes a new one.
    async fn link(&self) -> Result<Arc<Link>, TransportError> {
        let mut current = self.link.lock().await;
        if let Some(link) = current.as_ref().filter(|link| !link.ended.is_cancelled()) {
            return Ok(Arc::clone(link));
        }
        let endpoint = self.caller.endpoint();
        // A local attempt fails immediately, so there is no backoff between attempts.
        let stream = UnixStream::connect(&self.path).await.map_err(|error| TransportError::Unreachable {
            endpoint: endpoint.clone(),
            source: error.into(),
        })?;
        let (requests, queue) = mpsc::channel(self.limits.in_flight);
        let link = Arc::new(Link {
            calls: Calls::new(),
            requests,
            slots: Semaphore::new(self.limits.in_flight),
            // Closing or dropping the connection ends its link.
            ended: self.caller.closed().child_token(),
        });
        let activity = self.caller.activity().clone();
        tokio::spawn(Arc::clone(&link).run(stream, queue, self.limits, activity, endpoint.clone()));
        *current = Some(Arc::clone(&link));
        Ok(link)
    }
}

impl Exchange for PipeConnection {
    fn caller(&self) -> &Caller {
        &self.caller
    }

    async fn exchange(&self, id: RequestId, header: Bytes) -> Result<Message, TransportError> {
        loop {
            let link = self.link().await?;
            let _slot = tokio::select! {
                biased;
                // The link ended before the request was sent: connect again.
                () = link.ended.cancelled() => continue,
                slot = link.slots.acquire() => slot,
            };
            let Some(call) = link.calls.begin(id) else { continue };
            // If the link has ended, it fails the call.
            let _ = link.requests.send(header).await;
            return self.caller.reply(call).await;
        }
    }
}

impl Link {
    async fn run(
        self: Arc<Self>,
        mut stream: UnixStream,
        mut queue: mpsc::Receiver<Bytes>,
        limits: MessageLimits,
        activity: Activity,
        endpoint: Endpoint,
    ) {
        let (read, mut write) = stream.split();
        let send_requests = async {
            while let Some(header) = queue.recv().await {
                frame::write(&mut write, &Message { header, payload: Bytes::new() }).await?;
            }
            Ok(())
        };
        // The cause of the end is not reported: the calls get `Lost` in any case.
        let _: std::io::Result<()> = tokio::select! {
            () = self.ended.cancelled() => Ok(()),
            ended = send_requests => ended,
            ended = self.receive_replies(BufReader::new(read), &limits, &activity) => ended,
        };
        // In this order: a call that can no longer begin must find the link ended.
        self.ended.cancel();
        self.calls.fail(|| TransportError::Lost { endpoint: endpoint.clone() });
    }

    async fn receive_replies(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        limits: &MessageLimits,
        activity: &Activity,
    ) -> std::io::Result<()> {
        loop {
            let (header, payload) = frame::read_lengths(&mut from, limits).await?;
            let header = frame::read_bytes(&mut from, header, activity).await?;
            let id = envelope::id_of(&header);
            // The payload of a cancelled call is not worth the memory.
            let payload = if id.is_some_and(|id| self.calls.is_waiting(id)) {
                frame::read_bytes(&mut from, payload, activity).await?
            } else {
                frame::skip(&mut from, payload).await?;
                Bytes::new()
            };
            self.calls.deliver_to(id, Message { header, payload });
        }
    }
}
