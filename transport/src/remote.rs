//! One accepted connection as the answering side sees it, and the way back for its replies.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::transport::budget::{ConnectionBudget, Reservation};
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Incoming, Message, MessageLimits, PeerInfo, ReplySink, envelope};
use tokio_util::sync::CancellationToken;

use crate::guard::Guard;
use crate::guard::gate::{RequestGate, Slot};
use crate::listener::Inbox;

/// Where the replies of a connection leave it.
pub(crate) trait Outlet: Send + Sync + Sized + 'static {
    /// What has to be known of a request to answer it.
    type Way: Send + Sync + 'static;

    /// Queues a reply. It is refused once `remote.closed` is cancelled.
    fn send(
        remote: &Remote<Self>,
        way: Self::Way,
        message: Message,
        held: Held,
    ) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// The connection has ended: what the replies held that have not left is free again.
    fn forget(&self) {}
}

/// What a reply holds until it has left: its bytes of the budget, and its request's place at the gate.
#[derive(Debug)]
pub(crate) struct Held {
    _reserved: Reservation,
    _slot: Slot,
}

/// An accepted connection. Its task and every unanswered request hold it.
pub(crate) struct Remote<O> {
    info: PeerInfo,
    pub(crate) gate: Arc<RequestGate>,
    limits: MessageLimits,
    budget: ConnectionBudget,
    /// The connection is gone, or takes no more replies.
    pub(crate) closed: CancellationToken,
    pub(crate) outlet: O,
}

/// A request as it came from a stream.
pub(crate) struct Arrived<Way> {
    pub(crate) header: Bytes,
    /// With how many bytes it entered the gate.
    pub(crate) bytes: usize,
    /// Whether more than a header came.
    pub(crate) has_payload: bool,
    pub(crate) way: Way,
}

impl<O: Outlet> Remote<O> {
    /// A connection over which replies leave by the outlet.
    pub(crate) fn new(guard: &Guard, info: PeerInfo, outlet: O) -> Arc<Self> {
        let settings = &guard.settings;
        let budget = guard.budget.connection(info.address);
        Arc::new(Self {
            info,
            gate: Arc::new(RequestGate::new(settings.in_flight, settings.header)),
            limits: settings.message_limits(),
            budget,
            closed: CancellationToken::new(),
            outlet,
        })
    }

    /// Hands a request over to the listener; one that is malformed is answered here.
    pub(crate) fn receive(self: &Arc<Self>, inbox: &Inbox, arrived: Arrived<O::Way>) {
        let Arrived { header, bytes, has_payload, way } = arrived;
        let slot = Slot::new(&self.gate, bytes);
        let reply = Box::new(Reply { remote: Arc::clone(self), way, slot, reserved: None });
        let id = envelope::read(&header).and_then(|envelope| envelope.id);
        let problem = if has_payload {
            "a request has no payload"
        } else if id.is_none() {
            "the header is not a CBOR map with v and id"
        } else {
            // A listener that is gone answers nothing.
            let _ = inbox.requests.send(Incoming { header, peer: self.info.clone(), reply });
            return;
        };
        let answer = Message { header: envelope::malformed_reply(id, problem), payload: Bytes::new() };
        // Bounded by the requests in flight, and ends with the connection. In a task of its own, for there may be no
        // room for it yet.
        inbox.tasks.spawn(async move {
            let _ = reply.send(answer).await;
        });
    }
}

/// The way back for the reply to one request; dropping it ends the request.
struct Reply<O: Outlet> {
    remote: Arc<Remote<O>>,
    way: O::Way,
    slot: Slot,
    reserved: Option<Reservation>,
}

impl<O: Outlet> fmt::Debug for Reply<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("to", &self.remote.info).finish_non_exhaustive()
    }
}

#[async_trait]
impl<O: Outlet> ReplySink for Reply<O> {
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
        if self.remote.closed.is_cancelled() {
            return Err(TransportError::Closed);
        }
        match &mut self.reserved {
            Some(before) if before.bytes() > 0 => before.merge(self.remote.budget.take(bytes)),
            reserved => {
                *reserved = Some(tokio::select! {
                    biased;
                    () = self.remote.closed.cancelled() => return Err(TransportError::Closed),
                    reserved = self.remote.budget.reserve(bytes) => reserved,
                });
            }
        }
        Ok(())
    }

    async fn send(mut self: Box<Self>, message: Message) -> Result<(), TransportError> {
        let (message, fits) = self.remote.limits.fit(message);
        let bytes = message.header.len() + message.payload.len();
        let before = self.reserved.as_ref().map_or(0, Reservation::bytes);
        self.reserve(bytes.saturating_sub(before)).await?;
        let Self { remote, way, slot, reserved } = *self;
        let mut reserved = reserved.ok_or(TransportError::Closed)?;
        reserved.shrink_to(bytes);
        O::send(&remote, way, message, Held { _reserved: reserved, _slot: slot }).await?;
        fits
    }
}

/// However a connection ends, nobody waits for room for its replies any more, and those that wait to leave hold nothing.
pub(crate) struct ConnectionEnd<O: Outlet>(pub(crate) Arc<Remote<O>>);

impl<O: Outlet> Drop for ConnectionEnd<O> {
    fn drop(&mut self) {
        self.0.closed.cancel();
        self.0.outlet.forget();
    }
}
