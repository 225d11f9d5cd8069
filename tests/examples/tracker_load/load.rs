//! The state of a load test: files, peers with sessions, and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::codec;
use enjambre_core::protocol::message::{Reply, Request, SessionProof};
use enjambre_core::transport::{Connection, Deadline, Transport};
use enjambre_core::{FileKind, KeyPair, Offer, SessionId};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::Settings;
use crate::requests::{FileRequests, announce_header, encoded_offers, name_of};

pub(crate) const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(60));
/// The published size of every file.
const FILE_SIZE: u64 = 3 << 20;

pub(crate) struct Peer {
    key: KeyPair,
    session: Mutex<SessionId>,
}

/// A filled catalogue, peers with sessions, and connections.
pub(crate) struct Load {
    pub settings: Arc<Settings>,
    pub pid: Option<u32>,
    pub connections: Vec<Arc<dyn Connection>>,
    pub peers: Vec<Peer>,
    pub ids: Vec<FileId>,
    /// Encoded requests for each file without the request id. Encoding them once leaves more CPU time to the tracker.
    pub requests: Vec<FileRequests>,
    /// The encoded offers of each announcement.
    pub chunks: Vec<Bytes>,
    /// The number of announcements of new entries so far, at most `peers * chunks`.
    pub next_new: AtomicUsize,
}

impl Load {
    pub(crate) async fn prepare(
        settings: &Arc<Settings>,
        endpoint: &Endpoint,
        pid: Option<u32>,
    ) -> Result<Self> {
        let transport = transport(endpoint.scheme())?;
        let mut connections = Vec::new();
        for _ in 0..settings.connections {
            connections.push(transport.connect(endpoint).await?);
        }
        // New files in every run, so that a running tracker has none of them.
        let run: [u8; 16] = rand::random();
        let id =
            |n: usize| FileId::from_bytes(*blake3::hash(&[&run[..], &n.to_be_bytes()].concat()).as_bytes());
        let ids: Vec<FileId> = (0..settings.files).map(id).collect();
        let mut order: Vec<FileId> = ids.clone();
        if settings.scatter == 1 {
            order.sort_unstable();
        }
        let chunks = order
            .chunks_exact(settings.offers)
            .map(|ids| {
                let offers: Vec<Offer> =
                    ids.iter().map(|id| Offer { id: *id, size: FILE_SIZE, complete: true }).collect();
                encoded_offers(&offers)
            })
            .collect();
        let peer = |_| Peer { key: KeyPair::generate(), session: Mutex::new(SessionId([0; 16])) };
        let load = Self {
            settings: Arc::clone(settings),
            pid,
            connections,
            peers: (0..settings.peers).map(peer).collect(),
            requests: ids.iter().map(FileRequests::new).collect(),
            ids,
            chunks,
            next_new: AtomicUsize::new(0),
        };
        let load = Arc::new(load);
        load.open_sessions().await?;
        load.in_parallel(settings.depth, |load, at, connection| async move {
            let Some(id) = load.ids.get(at) else { return Ok(false) };
            let session = *load.peers[at % load.peers.len()].session.lock();
            let name = name_of(id).parse()?;
            let publish = Request::Publish {
                session,
                name,
                id: *id,
                size: FILE_SIZE,
                kind: FileKind::File,
                again: None,
            };
            match call(&*connection, &publish, DEADLINE).await?.0 {
                Reply::Published { version: 1, new: true } => Ok(true),
                other => bail!("unexpected reply to publish: {other:?}"),
            }
        })
        .await?;
        // Publishing may take longer than a lease at a busy tracker.
        load.open_sessions().await?;
        Arc::try_unwrap(load).map_err(|_| anyhow::anyhow!("a task is still running"))
    }

    /// Opens the sessions of all peers, on each connection one after another: a nonce is invalid after the use of a later one.
    async fn open_sessions(self: &Arc<Self>) -> Result<()> {
        self.in_parallel(1, |load, at, connection| async move {
            match load.peers.get(at) {
                Some(peer) => open_session(&*connection, peer, at).await.map(|()| true),
                None => Ok(false),
            }
        })
        .await
    }

    /// Calls `work` with consecutive numbers, concurrently on all connections, until it returns `false`. `depth` is the number
    /// of concurrent calls per connection.
    async fn in_parallel<F, Fut>(self: &Arc<Self>, depth: usize, work: F) -> Result<()>
    where
        F: Fn(Arc<Self>, usize, Arc<dyn Connection>) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = Result<bool>> + Send,
    {
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for connection in &self.connections {
            for _ in 0..depth {
                let (load, next, connection) = (Arc::clone(self), Arc::clone(&next), Arc::clone(connection));
                tasks.spawn(async move {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if !work(Arc::clone(&load), at, Arc::clone(&connection)).await? {
                            return anyhow::Ok(());
                        }
                    }
                });
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    pub(crate) async fn announce(
        &self,
        connection: &dyn Connection,
        peer: usize,
        chunk: usize,
    ) -> Result<()> {
        let id = connection.next_id();
        let session = *self.peers[peer].session.lock();
        let header = announce_header(id, session, &self.chunks[chunk]);
        let reply = connection.call(id, header, DEADLINE).await?;
        match codec::decode_reply(&reply.header) {
            Some(Ok(Reply::Announced { unknown })) if unknown.is_empty() => Ok(()),
            other => bail!("unexpected reply to announce: {other:?}"),
        }
    }

    /// Announces entries that the tracker does not have. Returns `false` if all entries were announced.
    pub(crate) async fn announce_next(&self, connection: &dyn Connection) -> Result<bool> {
        let at = self.next_new.fetch_add(1, Ordering::Relaxed);
        let (peer, chunk) = (at % self.peers.len(), at / self.peers.len());
        if chunk >= self.chunks.len() {
            self.next_new.fetch_sub(1, Ordering::Relaxed);
            return Ok(false);
        }
        self.announce(connection, peer, chunk).await?;
        Ok(true)
    }
}

fn transport(scheme: &str) -> Result<Arc<dyn Transport>> {
    let settings = TransportSettings::default();
    match scheme {
        "zmq" => Ok(Shared::new(settings)?.zmq()),
        "tcp" => Ok(Shared::new(settings)?.tcp()),
        _ => bail!("no transport for {scheme}://"),
    }
}

pub(crate) async fn open_session(connection: &dyn Connection, peer: &Peer, at: usize) -> Result<()> {
    let Reply::OpenSession { catalogue, nonce, .. } =
        call(connection, &Request::OpenSession { proof: None }, DEADLINE).await?.0
    else {
        bail!("unexpected reply to open_session")
    };
    let endpoints = vec![format!("zmq://127.0.0.1:{}", 10_000 + at % 50_000).parse()?];
    let tracker = connection.endpoint().id();
    let signature = peer.key.sign(&SessionProof::signed_bytes(tracker, catalogue, nonce, &endpoints));
    let proof = SessionProof { key: peer.key.public(), nonce, signature, endpoints };
    match call(connection, &Request::OpenSession { proof: Some(proof) }, DEADLINE).await?.0 {
        Reply::OpenSession { grant: Some(grant), .. } => {
            *peer.session.lock() = grant.session;
            Ok(())
        }
        other => bail!("unexpected reply to open_session: {other:?}"),
    }
}
