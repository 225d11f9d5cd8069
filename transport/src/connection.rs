//! The asking side: dials when it is used, and again with growing, jittered pauses.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::transport::caller::Caller;
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::error::TransportError;
use enjambre_core::transport::{Connection, Deadline, Message};
use futures::future::{BoxFuture, FutureExt, Shared as SharedFuture};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::guard::cutoff::CutOff;
use crate::guard::socket;
use crate::guard::stream::Stream;
use crate::wire::{Dialled, Link, Parts, Wire};

/// Why dialling failed; the same for all calls that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct DialError(Arc<CutOff>);

type Dialling<L> = SharedFuture<BoxFuture<'static, Result<Arc<L>, DialError>>>;

#[derive(Debug)]
enum State<L> {
    /// Not connected, and free to dial.
    Idle,
    Dialling(Dialling<L>),
    Up(Arc<L>),
    /// No dialling before this time, and why.
    Pausing(Instant, DialError),
}

#[derive(Debug)]
struct Current<L> {
    state: State<L>,
    /// Attempts since the last that led to a reply.
    failures: u32,
}

#[derive(Debug)]
pub(crate) struct GuardedConnection<W: Wire> {
    parts: Parts<W>,
    caller: Caller,
    in_flight: Semaphore,
    current: Mutex<Current<W::Link>>,
}

impl<W: Wire> GuardedConnection<W> {
    pub(crate) fn new(parts: Parts<W>, endpoint: Endpoint) -> Self {
        let settings = &parts.guard.settings;
        Self {
            in_flight: Semaphore::new(settings.in_flight),
            caller: Caller::new(endpoint, settings.message_limits()),
            parts,
            current: Mutex::new(Current { state: State::Idle, failures: 0 }),
        }
    }

    fn unreachable(&self, error: DialError) -> TransportError {
        TransportError::Unreachable { endpoint: self.caller.endpoint().clone(), source: Box::new(error) }
    }

    fn pause(&self, failures: u32) -> Duration {
        let settings = &self.parts.guard.settings;
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = settings.reconnect_first.saturating_mul(factor).min(settings.reconnect_longest);
        // Half of it at least, so that many who lost the same remote do not come back at once.
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    fn dial(&self) -> Dialling<W::Link> {
        let limit = self.parts.guard.settings.handshake;
        let (Parts { guard, wire, security }, endpoint) =
            (self.parts.clone(), self.caller.endpoint().clone());
        let (activity, kill) = (self.caller.activity().clone(), self.caller.closed().child_token());
        let dialling = async move {
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
            socket::tune(&stream, guard.settings.stalled)?;
            let stream = match (security, endpoint.id()) {
                (Some(security), Some(id)) => security.connect(stream, id).await?,
                _ => Stream::Plain(stream),
            };
            wire.dialled(Dialled { guard, stream, endpoint, activity, kill }).await
        };
        let closed = self.caller.closed().clone();
        // In a task of its own: the call that began it may be dropped, and others wait for it, too.
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = closed.cancelled() => Err(CutOff::Local),
                dialled = tokio::time::timeout(limit, dialling) => {
                    dialled.unwrap_or(Err(CutOff::HandshakeTimeout))
                }
            }
        });
        async move {
            let ended = |_| Err(CutOff::Local);
            task.await.unwrap_or_else(ended).map_err(|reason| DialError(Arc::new(reason)))
        }
        .boxed()
        .shared()
    }

    /// The link, dialled where there is none.
    async fn link(&self) -> Result<Arc<W::Link>, TransportError> {
        let dialling = {
            let mut current = self.current.lock();
            loop {
                match &current.state {
                    State::Up(link) if link.is_up() => return Ok(Arc::clone(link)),
                    // It worked before, so dialling again is likely to work at once.
                    State::Up(link) if link.calls().was_good() => {
                        *current = Current { state: State::Idle, failures: 0 };
                    }
                    State::Up(_) => {
                        current.failures = current.failures.saturating_add(1);
                        let until = Instant::now() + self.pause(current.failures);
                        current.state = State::Pausing(until, DialError(Arc::new(CutOff::Closed)));
                    }
                    State::Pausing(until, error) if Instant::now() < *until => {
                        return Err(self.unreachable(error.clone()));
                    }
                    State::Pausing(..) => current.state = State::Idle,
                    State::Idle => current.state = State::Dialling(self.dial()),
                    State::Dialling(dialling) => break dialling.clone(),
                }
            }
        };
        let dialled = dialling.clone().await;
        let mut current = self.current.lock();
        // The first of those who waited enters the result.
        if matches!(&current.state, State::Dialling(current) if current.ptr_eq(&dialling)) {
            current.state = match &dialled {
                Ok(link) => State::Up(Arc::clone(link)),
                Err(error) => {
                    current.failures = current.failures.saturating_add(1);
                    State::Pausing(Instant::now() + self.pause(current.failures), error.clone())
                }
            };
        }
        drop(current);
        dialled.map_err(|error| self.unreachable(error))
    }

    async fn exchange(&self, id: RequestId, header: Bytes) -> Result<Message, TransportError> {
        loop {
            let link = self.link().await?;
            let Ok(_slot) = self.in_flight.acquire().await else { return Err(TransportError::Closed) };
            // Ended meanwhile, before anything was sent: look again.
            let Some(call) = link.calls().begin(id) else { continue };
            link.send(header).await;
            return self.caller.reply(call).await;
        }
    }
}

#[async_trait]
impl<W: Wire> Connection for GuardedConnection<W> {
    fn next_id(&self) -> RequestId {
        self.caller.next_id()
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        self.caller.call(header.len(), deadline, self.exchange(id, header)).await
    }

    fn endpoint(&self) -> &Endpoint {
        self.caller.endpoint()
    }

    async fn close(&self) {
        self.caller.close();
    }
}
