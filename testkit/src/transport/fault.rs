//! Fault injection: a wrapper around a transport that delays, drops, reorders and duplicates messages and cuts connections.
//!
//! Faults affect calls, on the requesting side. They are chosen by one seeded random number generator, so a run on one
//! thread with the paused clock is reproducible.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use enjambre_core::{
    Connection, Deadline, Endpoint, Listener, Message, PeerId, RequestId, Transport, TransportError,
};

/// The faults to inject. Probabilities are from 0 to 1, per call.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Minimum delay of each request and each reply.
    pub delay: Duration,
    /// Maximum random delay in addition.
    pub jitter: Duration,
    /// The probability that a request is lost.
    pub drop_request: f64,
    /// The probability that a reply is lost.
    pub drop_reply: f64,
    /// The probability that the connection is cut before a request is sent. All outstanding calls are lost.
    pub cut: f64,
    /// The probability that a request is held back, so that later ones overtake it. Applies to the reply separately.
    pub reorder: f64,
    /// The duration for which a message is held back.
    pub hold: Duration,
    /// The probability that a request arrives a second time, on a separate connection and after a part of `hold`. The reply
    /// to the duplicate is dropped.
    pub duplicate: f64,
}

#[derive(Debug)]
struct Plan {
    faults: Faults,
    random: StdRng,
    isolated: HashSet<Endpoint>,
    /// The number of faults injected so far, without delays.
    injected: u64,
}

/// The faults of one call.
#[derive(Debug, Default)]
struct CallFaults {
    request_delay: Duration,
    reply_delay: Duration,
    drop_request: bool,
    drop_reply: bool,
    cut: bool,
    isolated: bool,
    /// The delay of the duplicate, if there is one.
    duplicate: Option<Duration>,
}

impl Plan {
    fn chance(&mut self, chance: f64) -> bool {
        let happens = chance > 0.0 && self.random.random_bool(chance.min(1.0));
        self.injected += u64::from(happens);
        happens
    }

    fn delay(&mut self) -> Duration {
        let jitter = self.faults.jitter;
        let jitter =
            if jitter.is_zero() { jitter } else { jitter.mul_f64(self.random.random_range(0.0..=1.0)) };
        let hold = if self.chance(self.faults.reorder) { self.faults.hold } else { Duration::ZERO };
        self.faults.delay + jitter + hold
    }

    fn choose(&mut self, endpoint: &Endpoint) -> CallFaults {
        let faults = self.faults;
        let duplicate = self.chance(faults.duplicate);
        CallFaults {
            duplicate: duplicate
                .then(|| faults.delay + faults.hold.mul_f64(self.random.random_range(0.0..=1.0))),
            isolated: self.isolated.contains(endpoint),
            request_delay: self.delay(),
            reply_delay: self.delay(),
            drop_request: self.chance(faults.drop_request),
            drop_reply: self.chance(faults.drop_reply),
            cut: self.chance(faults.cut),
        }
    }
}

/// A transport whose calls have faults.
#[derive(Debug, Clone)]
pub struct FaultTransport {
    inner: Arc<dyn Transport>,
    plan: Arc<Mutex<Plan>>,
    connections: Arc<Mutex<Vec<std::sync::Weak<Link>>>>,
}

impl FaultTransport {
    /// Wraps a transport. The seed determines when the faults occur.
    pub fn new(inner: Arc<dyn Transport>, seed: u64, faults: Faults) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let plan = Plan { faults, random, isolated: HashSet::new(), injected: 0 };
        Self { inner, plan: Arc::new(Mutex::new(plan)), connections: Arc::default() }
    }

    /// Replaces the faults.
    pub fn set(&self, faults: Faults) {
        self.plan.lock().faults = faults;
    }

    /// Cuts all connections to the endpoint and makes it unreachable until [`FaultTransport::heal`].
    pub fn isolate(&self, endpoint: &Endpoint) {
        self.plan.lock().isolated.insert(endpoint.clone());
        for link in self.connections.lock().iter().filter_map(std::sync::Weak::upgrade) {
            if link.endpoint == *endpoint {
                link.cut();
            }
        }
    }

    /// Makes the endpoint reachable again.
    pub fn heal(&self, endpoint: &Endpoint) {
        self.plan.lock().isolated.remove(endpoint);
    }

    /// The number of faults injected so far, without delays.
    pub fn injected(&self) -> u64 {
        self.plan.lock().injected
    }
}

#[async_trait]
impl Transport for FaultTransport {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn identity(&self) -> Option<PeerId> {
        self.inner.identity()
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<Vec<Endpoint>, TransportError> {
        self.inner.resolve(endpoint).await
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let inner = self.inner.connect(endpoint).await?;
        let link = Arc::new(Link {
            endpoint: endpoint.clone(),
            inner: Mutex::new((inner, CancellationToken::new())),
        });
        let mut connections = self.connections.lock();
        connections.retain(|link| link.strong_count() > 0);
        connections.push(Arc::downgrade(&link));
        Ok(Arc::new(FaultConnection {
            transport: Arc::clone(&self.inner),
            plan: Arc::clone(&self.plan),
            link,
            next_id: AtomicU64::new(1),
            closed: CancellationToken::new(),
        }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

/// The inner connection, which is replaced after a cut.
#[derive(Debug)]
struct Link {
    endpoint: Endpoint,
    inner: Mutex<(Arc<dyn Connection>, CancellationToken)>,
}

impl Link {
    fn cut(&self) {
        self.inner.lock().1.cancel();
    }
}

#[derive(Debug)]
struct FaultConnection {
    transport: Arc<dyn Transport>,
    plan: Arc<Mutex<Plan>>,
    link: Arc<Link>,
    next_id: AtomicU64,
    closed: CancellationToken,
}

impl FaultConnection {
    fn lost(&self) -> TransportError {
        TransportError::Lost { endpoint: self.link.endpoint.clone() }
    }

    /// Returns the inner connection, a new one after a cut.
    async fn inner(&self) -> Result<(Arc<dyn Connection>, CancellationToken), TransportError> {
        let (inner, cut) = self.link.inner.lock().clone();
        if !cut.is_cancelled() {
            return Ok((inner, cut));
        }
        inner.close().await;
        let new = (self.transport.connect(&self.link.endpoint).await?, CancellationToken::new());
        let mut current = self.link.inner.lock();
        // Another call may have reconnected in the meantime.
        if current.1.is_cancelled() {
            *current = new;
        }
        Ok(current.clone())
    }

    async fn exchange(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
        faults: CallFaults,
    ) -> Result<Message, TransportError> {
        if faults.isolated {
            let source = std::io::Error::from(std::io::ErrorKind::NetworkUnreachable).into();
            return Err(TransportError::Unreachable { endpoint: self.link.endpoint.clone(), source });
        }
        let (inner, cut) = self.inner().await?;
        if let Some(delay) = faults.duplicate {
            let (transport, link, header) =
                (Arc::clone(&self.transport), Arc::clone(&self.link), header.clone());
            tokio::spawn(async move {
                pause(delay).await;
                if let Ok(second) = transport.connect(&link.endpoint).await {
                    let _dropped = second.call(id, header, deadline).await;
                }
            });
        }
        let exchange = async {
            pause(faults.request_delay).await;
            if faults.cut {
                cut.cancel();
                return Err(self.lost());
            }
            if faults.drop_request {
                return self.no_reply(deadline).await;
            }
            let reply = inner.call(id, header, deadline).await;
            pause(faults.reply_delay).await;
            if faults.drop_reply && reply.is_ok() {
                return self.no_reply(deadline).await;
            }
            reply
        };
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(self.lost()),
            reply = exchange => reply,
        }
    }

    /// Waits until the deadline of a call without a reply.
    async fn no_reply(&self, deadline: Deadline) -> Result<Message, TransportError> {
        let (Deadline::Total(limit) | Deadline::Silence(limit)) = deadline;
        tokio::time::sleep(limit).await;
        Err(TransportError::Deadline { endpoint: self.link.endpoint.clone() })
    }
}

async fn pause(time: Duration) {
    // Without a delay, the calls keep their order.
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[async_trait]
impl Connection for FaultConnection {
    fn next_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    async fn call(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
    ) -> Result<Message, TransportError> {
        let faults = self.plan.lock().choose(&self.link.endpoint);
        let exchange = self.exchange(id, header, deadline, faults);
        let in_time = async {
            match deadline {
                Deadline::Total(limit) => tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                    Err(TransportError::Deadline { endpoint: self.link.endpoint.clone() })
                }),
                Deadline::Silence(_) => exchange.await,
            }
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(TransportError::Closed),
            reply = in_time => reply,
        }
    }

    fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }

    async fn close(&self) {
        self.closed.cancel();
        let inner = Arc::clone(&self.link.inner.lock().0);
        inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::subject::Subject;
    use enjambre_core::transport::envelope;
    use enjambre_core::transport::memory::MemoryNetwork;
    use enjambre_core::{Incoming, MessageLimits};

    crate::transport_conformance!(Subject {
        transport: Arc::new(FaultTransport::new(MemoryNetwork::new().transport(), 1, Faults::default())),
        endpoint: "memory://node:0".parse().unwrap(),
        limits: MessageLimits::default(),
        guard: Box::new(()),
    });

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// A connection with faults to a listener that answers every request.
    async fn pair(seed: u64, faults: Faults) -> (FaultTransport, Arc<dyn Connection>) {
        let transport = FaultTransport::new(MemoryNetwork::new().transport(), seed, faults);
        let listener = transport.bind(&"memory://node:0".parse().unwrap()).await.unwrap();
        let connection = transport.connect(listener.local_endpoint()).await.unwrap();
        tokio::spawn(async move {
            while let Ok(incoming) = listener.accept().await {
                let reply = done(&incoming);
                incoming.reply.send(reply).await.unwrap();
            }
        });
        (transport, connection)
    }

    fn done(incoming: &Incoming) -> Message {
        let header = envelope::encode_reply(Some(incoming.request.id()), &"done");
        Message { header, payload: Bytes::new() }
    }

    async fn call(connection: &Arc<dyn Connection>) -> Result<RequestId, TransportError> {
        let id = connection.next_id();
        let header = envelope::encode_request(id, &"status");
        connection.call(id, header, Deadline::Total(TIMEOUT)).await.map(|_| id)
    }

    /// The ids in the order of their replies, and the errors.
    async fn run(seed: u64, faults: Faults) -> (Vec<u64>, Vec<String>) {
        let (_transport, connection) = pair(seed, faults).await;
        let (mut replied, mut failed) = (Vec::new(), Vec::new());
        let mut calls: futures::stream::FuturesUnordered<_> = (0..50).map(|_| call(&connection)).collect();
        while let Some(result) = futures::StreamExt::next(&mut calls).await {
            match result {
                Ok(id) => replied.push(id.0),
                Err(error) => failed.push(error.to_string()),
            }
        }
        (replied, failed)
    }

    #[tokio::test(start_paused = true)]
    async fn runs_with_the_same_seed_are_equal() {
        let second = Duration::from_secs(1);
        let faults = Faults {
            jitter: second,
            drop_reply: 0.1,
            cut: 0.02,
            reorder: 0.2,
            hold: second,
            ..Faults::default()
        };
        assert_eq!(run(5, faults).await, run(5, faults).await);
        assert_ne!(run(5, faults).await, run(6, faults).await);
    }

    #[tokio::test(start_paused = true)]
    async fn reordered_calls_are_overtaken() {
        let faults = Faults { reorder: 0.3, hold: Duration::from_millis(10), ..Faults::default() };
        let (replied, failed) = run(1, faults).await;
        assert!(failed.is_empty() && replied.len() == 50 && !replied.is_sorted());
    }

    #[tokio::test(start_paused = true)]
    async fn lost_message_ends_the_call_at_its_deadline() {
        for faults in [
            Faults { drop_request: 1.0, ..Faults::default() },
            Faults { drop_reply: 1.0, ..Faults::default() },
        ] {
            let (transport, connection) = pair(1, faults).await;
            let begin = tokio::time::Instant::now();
            assert!(matches!(call(&connection).await, Err(TransportError::Deadline { .. })));
            assert_eq!(begin.elapsed(), TIMEOUT);
            transport.set(Faults::default());
            call(&connection).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn cut_loses_outstanding_calls_and_reconnects() {
        let (transport, connection) = pair(1, Faults { delay: TIMEOUT / 4, ..Faults::default() }).await;
        let outstanding = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { call(&connection).await }
        });
        tokio::task::yield_now().await;
        transport.set(Faults { cut: 1.0, ..Faults::default() });
        assert!(matches!(call(&connection).await, Err(TransportError::Lost { .. })));
        assert!(matches!(outstanding.await.unwrap(), Err(TransportError::Lost { .. })));
        transport.set(Faults::default());
        call(&connection).await.unwrap();
        assert_eq!(transport.injected(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn duplicated_request_gets_one_reply() {
        let network = MemoryNetwork::new();
        let faults = Faults { duplicate: 1.0, hold: TIMEOUT / 2, ..Faults::default() };
        let transport = FaultTransport::new(network.transport(), 1, faults);
        let listener = transport.bind(&"memory://node:0".parse().unwrap()).await.unwrap();
        let connection = transport.connect(listener.local_endpoint()).await.unwrap();
        let pending = tokio::spawn(async move { call(&connection).await });
        for _ in 0..2 {
            let incoming = listener.accept().await.unwrap();
            let reply = done(&incoming);
            incoming.reply.send(reply).await.unwrap();
        }
        pending.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn isolated_endpoint_is_unreachable_until_healed() {
        let (transport, connection) = pair(1, Faults::default()).await;
        transport.isolate(connection.endpoint());
        assert!(matches!(call(&connection).await, Err(TransportError::Unreachable { .. })));
        transport.heal(connection.endpoint());
        call(&connection).await.unwrap();
    }
}
