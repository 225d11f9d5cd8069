//! A transport with faults: a wrapper that delays, drops, reorders and cuts, by chance but from a seed.
//!
//! Faults happen to calls, on the asking side; listening is passed on as it is. The chances come from one seeded
//! generator, so that a run on one thread under the paused clock can be repeated. Without faults it is the transport
//! beneath.

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

use super::envelope::RequestId;
use super::error::TransportError;
use super::{Connection, Deadline, Listener, Message, Transport};
use crate::model::endpoint::Endpoint;
use crate::model::id::PeerId;

/// How often what happens. Chances are from 0 to 1, for each call.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Each request and each reply takes at least this long.
    pub delay: Duration,
    /// And up to this much longer, at random.
    pub jitter: Duration,
    /// The chance that a request never arrives.
    pub drop_request: f64,
    /// The chance that a reply never arrives.
    pub drop_reply: f64,
    /// The chance that the connection is cut when a request is to be sent. All calls under way are lost with it.
    pub cut: f64,
    /// The chance that a request is held back, so that later ones overtake it; and the same for its reply.
    pub reorder: f64,
    /// For how long it is held back.
    pub hold: Duration,
}

#[derive(Debug)]
struct Plan {
    faults: Faults,
    random: StdRng,
    /// Where nobody gets through to.
    isolated: HashSet<Endpoint>,
    met: u64,
}

/// What happens to one call.
#[derive(Debug, Default)]
struct Fate {
    request_delay: Duration,
    reply_delay: Duration,
    drop_request: bool,
    drop_reply: bool,
    cut: bool,
    isolated: bool,
}

impl Plan {
    fn chance(&mut self, chance: f64) -> bool {
        let happens = chance > 0.0 && self.random.random_bool(chance.min(1.0));
        self.met += u64::from(happens);
        happens
    }

    fn delay(&mut self) -> Duration {
        let jitter = self.faults.jitter;
        let jitter =
            if jitter.is_zero() { jitter } else { jitter.mul_f64(self.random.random_range(0.0..=1.0)) };
        let hold = if self.chance(self.faults.reorder) { self.faults.hold } else { Duration::ZERO };
        self.faults.delay + jitter + hold
    }

    fn fate(&mut self, endpoint: &Endpoint) -> Fate {
        let faults = self.faults;
        Fate {
            isolated: self.isolated.contains(endpoint),
            request_delay: self.delay(),
            reply_delay: self.delay(),
            drop_request: self.chance(faults.drop_request),
            drop_reply: self.chance(faults.drop_reply),
            cut: self.chance(faults.cut),
        }
    }
}

/// A transport with faults in its calls.
#[derive(Debug, Clone)]
pub struct FaultTransport {
    inner: Arc<dyn Transport>,
    plan: Arc<Mutex<Plan>>,
    connections: Arc<Mutex<Vec<std::sync::Weak<Line>>>>,
}

impl FaultTransport {
    /// The transport beneath with these faults, by chances that follow from the seed.
    pub fn new(inner: Arc<dyn Transport>, seed: u64, faults: Faults) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let plan = Plan { faults, random, isolated: HashSet::new(), met: 0 };
        Self { inner, plan: Arc::new(Mutex::new(plan)), connections: Arc::default() }
    }

    /// Other faults from now on.
    pub fn set(&self, faults: Faults) {
        self.plan.lock().faults = faults;
    }

    /// Cuts all connections to the endpoint and lets no call through to it, until [`FaultTransport::heal`].
    pub fn isolate(&self, endpoint: &Endpoint) {
        self.plan.lock().isolated.insert(endpoint.clone());
        for line in self.connections.lock().iter().filter_map(std::sync::Weak::upgrade) {
            if line.endpoint == *endpoint {
                line.cut();
            }
        }
    }

    /// Lets calls through to the endpoint again.
    pub fn heal(&self, endpoint: &Endpoint) {
        self.plan.lock().isolated.remove(endpoint);
    }

    /// How many faults have happened, delays not counted.
    pub fn met(&self) -> u64 {
        self.plan.lock().met
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

    async fn connect(&self, endpoint: &Endpoint) -> Result<Arc<dyn Connection>, TransportError> {
        let inner = self.inner.connect(endpoint).await?;
        let line = Arc::new(Line {
            endpoint: endpoint.clone(),
            inner: Mutex::new((inner, CancellationToken::new())),
        });
        let mut connections = self.connections.lock();
        connections.retain(|line| line.strong_count() > 0);
        connections.push(Arc::downgrade(&line));
        Ok(Arc::new(FaultConnection {
            transport: Arc::clone(&self.inner),
            plan: Arc::clone(&self.plan),
            line,
            next_id: AtomicU64::new(1),
            closed: CancellationToken::new(),
        }))
    }

    async fn bind(&self, endpoint: &Endpoint) -> Result<Arc<dyn Listener>, TransportError> {
        self.inner.bind(endpoint).await
    }
}

/// The connection beneath, which is replaced after it was cut.
#[derive(Debug)]
struct Line {
    endpoint: Endpoint,
    inner: Mutex<(Arc<dyn Connection>, CancellationToken)>,
}

impl Line {
    fn cut(&self) {
        self.inner.lock().1.cancel();
    }
}

#[derive(Debug)]
struct FaultConnection {
    transport: Arc<dyn Transport>,
    plan: Arc<Mutex<Plan>>,
    line: Arc<Line>,
    next_id: AtomicU64,
    closed: CancellationToken,
}

impl FaultConnection {
    fn lost(&self) -> TransportError {
        TransportError::Lost { endpoint: self.line.endpoint.clone() }
    }

    /// The connection beneath, a new one where the last was cut.
    async fn inner(&self) -> Result<(Arc<dyn Connection>, CancellationToken), TransportError> {
        let (inner, cut) = self.line.inner.lock().clone();
        if !cut.is_cancelled() {
            return Ok((inner, cut));
        }
        inner.close().await;
        let new = (self.transport.connect(&self.line.endpoint).await?, CancellationToken::new());
        let mut current = self.line.inner.lock();
        // Another call may have been faster.
        if current.1.is_cancelled() {
            *current = new;
        }
        Ok(current.clone())
    }

    async fn carry(
        &self,
        id: RequestId,
        header: Bytes,
        deadline: Deadline,
        fate: Fate,
    ) -> Result<Message, TransportError> {
        if fate.isolated {
            let source = std::io::Error::from(std::io::ErrorKind::NetworkUnreachable).into();
            return Err(TransportError::Unreachable { endpoint: self.line.endpoint.clone(), source });
        }
        let (inner, cut) = self.inner().await?;
        let exchange = async {
            pause(fate.request_delay).await;
            if fate.cut {
                cut.cancel();
                return Err(self.lost());
            }
            if fate.drop_request {
                return self.nothing(deadline).await;
            }
            let reply = inner.call(id, header, deadline).await;
            pause(fate.reply_delay).await;
            if fate.drop_reply && reply.is_ok() {
                return self.nothing(deadline).await;
            }
            reply
        };
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(self.lost()),
            reply = exchange => reply,
        }
    }

    /// What a call gets whose reply does not come.
    async fn nothing(&self, deadline: Deadline) -> Result<Message, TransportError> {
        let (Deadline::Total(limit) | Deadline::Silence(limit)) = deadline;
        tokio::time::sleep(limit).await;
        Err(TransportError::Deadline { endpoint: self.line.endpoint.clone() })
    }
}

async fn pause(time: Duration) {
    // Without a delay the order of the calls stays as it is.
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
        let fate = self.plan.lock().fate(&self.line.endpoint);
        let carried = self.carry(id, header, deadline, fate);
        let in_time = async {
            match deadline {
                Deadline::Total(limit) => tokio::time::timeout(limit, carried).await.unwrap_or_else(|_| {
                    Err(TransportError::Deadline { endpoint: self.line.endpoint.clone() })
                }),
                Deadline::Silence(_) => carried.await,
            }
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(TransportError::Closed),
            reply = in_time => reply,
        }
    }

    fn endpoint(&self) -> &Endpoint {
        &self.line.endpoint
    }

    async fn close(&self) {
        self.closed.cancel();
        let inner = Arc::clone(&self.line.inner.lock().0);
        inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::MessageLimits;
    use crate::transport::conformance::Subject;
    use crate::transport::envelope;
    use crate::transport::memory::MemoryNetwork;

    crate::transport_conformance!(Subject {
        transport: Arc::new(FaultTransport::new(MemoryNetwork::new().transport(), 1, Faults::default())),
        endpoint: "memory://node:0".parse().unwrap(),
        limits: MessageLimits::default(),
        guard: Box::new(()),
    });

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A connection with faults to a listener that answers everything.
    async fn pair(seed: u64, faults: Faults) -> (FaultTransport, Arc<dyn Connection>) {
        let transport = FaultTransport::new(MemoryNetwork::new().transport(), seed, faults);
        let listener = transport.bind(&"memory://node:0".parse().unwrap()).await.unwrap();
        let connection = transport.connect(listener.local_endpoint()).await.unwrap();
        tokio::spawn(async move {
            while let Ok(incoming) = listener.accept().await {
                let reply = Message { header: incoming.header, payload: Bytes::new() };
                incoming.reply.send(reply).await.unwrap();
            }
        });
        (transport, connection)
    }

    async fn call(connection: &Arc<dyn Connection>) -> Result<RequestId, TransportError> {
        let id = connection.next_id();
        let header = envelope::malformed_reply(Some(id), "");
        connection.call(id, header, Deadline::Total(PATIENCE)).await.map(|_| id)
    }

    /// The ids in the order of their replies, and what else came.
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
    async fn a_run_is_repeated_from_its_seed() {
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
    async fn held_back_calls_are_overtaken() {
        let faults = Faults { reorder: 0.3, hold: Duration::from_millis(10), ..Faults::default() };
        let (replied, failed) = run(1, faults).await;
        assert!(failed.is_empty() && replied.len() == 50 && !replied.is_sorted());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_or_reply_ends_with_the_deadline() {
        for faults in [
            Faults { drop_request: 1.0, ..Faults::default() },
            Faults { drop_reply: 1.0, ..Faults::default() },
        ] {
            let (transport, connection) = pair(1, faults).await;
            let begin = tokio::time::Instant::now();
            assert!(matches!(call(&connection).await, Err(TransportError::Deadline { .. })));
            assert_eq!(begin.elapsed(), PATIENCE);
            transport.set(Faults::default());
            call(&connection).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_loses_what_is_under_way_and_the_connection_comes_back() {
        let (transport, connection) = pair(1, Faults { delay: PATIENCE / 4, ..Faults::default() }).await;
        let under_way = tokio::spawn({
            let connection = Arc::clone(&connection);
            async move { call(&connection).await }
        });
        tokio::task::yield_now().await;
        transport.set(Faults { cut: 1.0, ..Faults::default() });
        assert!(matches!(call(&connection).await, Err(TransportError::Lost { .. })));
        assert!(matches!(under_way.await.unwrap(), Err(TransportError::Lost { .. })));
        transport.set(Faults::default());
        call(&connection).await.unwrap();
        assert_eq!(transport.met(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_isolated_endpoint_is_unreachable_until_healed() {
        let (transport, connection) = pair(1, Faults::default()).await;
        transport.isolate(connection.endpoint());
        assert!(matches!(call(&connection).await, Err(TransportError::Unreachable { .. })));
        transport.heal(connection.endpoint());
        call(&connection).await.unwrap();
    }
}
