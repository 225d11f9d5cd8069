//! An accepted connection as the answering side sees it, and the sinks for its replies.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::runtime;
use enjambre_core::transport::budget::{ConnectionBudget, ReplyReservation, Reservation};
use enjambre_core::transport::envelope;
use enjambre_core::{EncodedRequest, Incoming, Message, MessageLimits, PeerInfo, ReplySink, TransportError};
use tokio_util::sync::CancellationToken;

use crate::guard::Guard;
use crate::guard::gate::{RequestGate, Slot};
use crate::wire::Inbox;

/// The queue of the replies of a connection.
pub(crate) trait Outlet: Send + Sync + Sized + 'static {
    /// The routing data that a reply takes over from its request.
    type Route: Send + Sync + 'static;

    /// Queues a reply. Fails once `remote.closed` is cancelled.
    fn send(
        remote: &Remote<Self>,
        route: Self::Route,
        message: Message,
        permit: ReplyPermit,
    ) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Drops the queued replies and their permits after the end of the connection.
    fn clear(&self) {}
}

/// The resources that a reply holds until it is sent: reserved bytes, and the slot of its request.
#[derive(Debug)]
pub(crate) struct ReplyPermit {
    _reserved: Reservation,
    _slot: Slot,
}

/// An accepted connection. Shared by its task and its outstanding requests.
pub(crate) struct Remote<O> {
    info: PeerInfo,
    pub(crate) gate: Arc<RequestGate>,
    limits: MessageLimits,
    budget: Arc<ConnectionBudget>,
    /// Cancelled when the connection has ended or accepts no further replies.
    pub(crate) closed: CancellationToken,
    pub(crate) outlet: O,
}

impl<O: Outlet> Remote<O> {
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

    /// Passes a request to the listener, or answers it if its header is invalid or it has a payload. The bytes of the header
    /// have passed the gate.
    pub(crate) fn receive(
        self: &Arc<Self>,
        inbox: &Inbox,
        header: Bytes,
        has_payload: bool,
        route: O::Route,
    ) {
        let slot = Slot::new(&self.gate, header.len());
        let reply =
            Box::new(Reply { remote: Arc::clone(self), route, slot, reserved: ReplyReservation::default() });
        let parsed = if has_payload {
            Err(envelope::malformed_reply(envelope::id_of(&header), "a request has no payload"))
        } else {
            EncodedRequest::parse(header)
        };
        match parsed {
            Ok(request) => {
                // Fails if the listener was dropped.
                let _ = inbox.requests.send(Incoming { request, peer: self.info.clone(), reply });
            }
            Err(header) => {
                // In a task, because the reply may have to wait for budget. Bounded by the outstanding requests, and ends
                // with the connection.
                let refusal = Message { header, payload: Bytes::new() };
                runtime::spawn_in(&inbox.tasks, async move { drop(reply.send(refusal).await) });
            }
        }
    }
}

/// The sink for the reply to a request. Dropping it frees the slot of the request.
struct Reply<O: Outlet> {
    remote: Arc<Remote<O>>,
    route: O::Route,
    slot: Slot,
    reserved: ReplyReservation,
}

impl<O: Outlet> fmt::Debug for Reply<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("to", &self.remote.info).finish_non_exhaustive()
    }
}

#[async_trait]
impl<O: Outlet> ReplySink for Reply<O> {
    async fn reserve(&mut self, bytes: usize) -> Result<(), TransportError> {
        self.reserved.reserve(&self.remote.budget, &self.remote.closed, bytes).await
    }

    async fn send(self: Box<Self>, message: Message) -> Result<(), TransportError> {
        let Self { remote, route, slot, reserved } = *self;
        let (message, fits) = remote.limits.fit(message);
        let reserved = reserved.complete(&remote.budget, &remote.closed, &message).await?;
        O::send(&remote, route, message, ReplyPermit { _reserved: reserved, _slot: slot }).await?;
        fits
    }
}

/// Closes a connection when dropped: wakes all waiting reservations and drops the queued replies.
pub(crate) struct CloseOnDrop<O: Outlet>(pub(crate) Arc<Remote<O>>);

impl<O: Outlet> Drop for CloseOnDrop<O> {
    fn drop(&mut self) {
        self.0.closed.cancel();
        self.0.outlet.clear();
    }
}
