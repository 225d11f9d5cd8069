//! The requesting side: connects at the first call, and reconnects with increasing, jittered delays.

use std::sync::Arc;

use bytes::Bytes;
use enjambre_core::runtime;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::transport::caller::{Caller, Exchange};
use enjambre_core::{Endpoint, Message, RequestId, TransportError};
use futures::future::{BoxFuture, FutureExt, Shared as SharedFuture};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::guard::disconnect::Disconnect;
use crate::guard::socket;
use crate::guard::stream::Stream;
use crate::wire::{Dialled, Link, Parts, Wire};

/// A connection attempt that several calls can wait for.
type Attempt<L> = SharedFuture<BoxFuture<'static, Result<Arc<L>, Arc<Disconnect>>>>;

#[derive(Debug)]
enum State<L> {
    Idle,
    Connecting(Attempt<L>),
    Up(Arc<L>),
    /// No attempt before this time, because of this error.
    BackedOff(Instant, Arc<Disconnect>),
}

#[derive(Debug)]
struct Current<L> {
    state: State<L>,
    backoff: Backoff,
}

impl<L> Current<L> {
    fn back_off(&mut self, error: Arc<Disconnect>) {
        self.state = State::BackedOff(Instant::now() + self.backoff.next_jittered(), error);
    }
}

#[derive(Debug)]
pub(crate) struct GuardedConnection<W: Wire> {
    parts: Arc<Parts<W>>,
    caller: Caller,
    in_flight: Semaphore,
    current: Mutex<Current<W::Link>>,
}

impl<W: Wire> GuardedConnection<W> {
    pub(crate) fn new(parts: Arc<Parts<W>>, endpoint: Endpoint) -> Self {
        let settings = &parts.guard.settings;
        let backoff = Backoff::new(settings.reconnect_first, settings.reconnect_longest);
        Self {
            in_flight: Semaphore::new(settings.in_flight),
            caller: Caller::new(endpoint, settings.message_limits()),
            parts,
            current: Mutex::new(Current { state: State::Idle, backoff }),
        }
    }

    fn unreachable(&self, error: Arc<Disconnect>) -> TransportError {
        TransportError::Unreachable { endpoint: self.caller.endpoint().clone(), source: Box::new(error) }
    }

    fn connect(&self) -> Attempt<W::Link> {
        let limit = self.parts.guard.settings.handshake_timeout;
        let (parts, endpoint) = (Arc::clone(&self.parts), self.caller.endpoint().clone());
        let (activity, kill) = (self.caller.activity().clone(), self.caller.closed().child_token());
        let connecting = async move {
            let guard = Arc::clone(&parts.guard);
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
            socket::configure(&stream, guard.settings.stall_timeout)?;
            let stream = match (&parts.security, endpoint.id()) {
                (Some(security), Some(id)) => security.connect(stream, id).await?,
                _ => Stream::Left(stream),
            };
            let metrics = Arc::clone(&parts.metrics);
            parts.wire.establish(Dialled { guard, metrics, stream, endpoint, activity, kill }).await
        };
        let closed = self.caller.closed().clone();
        // In a task, because the call that started the attempt may be abandoned while others wait for it.
        let task = runtime::spawn(async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => Err(Disconnect::Local),
                connected = tokio::time::timeout(limit, connecting) => {
                    connected.unwrap_or(Err(Disconnect::HandshakeTimeout))
                }
            }
        });
        async move { task.await.unwrap_or(Err(Disconnect::Local)).map_err(Arc::new) }.boxed().shared()
    }

    /// Returns the link, after connecting if necessary.
    async fn link(&self) -> Result<Arc<W::Link>, TransportError> {
        let attempt = {
            let mut current = self.current.lock();
            loop {
                match &current.state {
                    State::Up(link) if link.is_up() => return Ok(Arc::clone(link)),
                    // The remote answered before, so a new connection probably succeeds.
                    State::Up(link) if link.calls().was_useful() => {
                        current.backoff.reset();
                        current.state = State::Idle;
                    }
                    State::Up(_) => current.back_off(Disconnect::Closed.into()),
                    State::BackedOff(until, error) if Instant::now() < *until => {
                        return Err(self.unreachable(error.clone()));
                    }
                    State::BackedOff(..) => current.state = State::Idle,
                    State::Idle => current.state = State::Connecting(self.connect()),
                    State::Connecting(attempt) => break attempt.clone(),
                }
            }
        };
        let connected = attempt.clone().await;
        let mut current = self.current.lock();
        // The first of the waiting calls stores the result.
        if matches!(&current.state, State::Connecting(current) if current.ptr_eq(&attempt)) {
            match &connected {
                Ok(link) => current.state = State::Up(Arc::clone(link)),
                Err(error) => {
                    self.parts.metrics.end(error.end_reason());
                    current.back_off(error.clone());
                }
            }
        }
        drop(current);
        connected.map_err(|error| self.unreachable(error))
    }
}

impl<W: Wire> Exchange for GuardedConnection<W> {
    fn caller(&self) -> &Caller {
        &self.caller
    }

    async fn exchange(&self, id: RequestId, header: Bytes) -> Result<Message, TransportError> {
        loop {
            let link = self.link().await?;
            let Ok(_slot) = self.in_flight.acquire().await else { return Err(TransportError::Closed) };
            // The link may have ended before the request was sent.
            let Some(call) = link.calls().begin(id) else { continue };
            link.send(header).await;
            return self.caller.reply(call).await;
        }
    }
}
