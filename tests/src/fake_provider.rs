//! An in-process provider that publishes a file and misbehaves when peers download it, or that serves malformed content
//! correctly.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::protocol::client::call;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request, SessionGrant, SessionProof};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::{
    Connection, Deadline, Dialer, Endpoint, FileId, FileKind, KeyPair, Listener, PeerInfo, PieceIndex,
    PieceLayout, ReplySink, RequestId, SessionId,
};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Runtime;

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(20));

/// The misbehavior of a [`FakeProvider`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehavior {
    /// Sends wrong content in every piece, with a correct manifest.
    Content,
    /// Sends every piece one byte short.
    Length,
    /// Sends wrong piece hashes.
    Manifest,
    /// Publishes and sends a file size that is one byte too large.
    Size,
    /// Never replies to piece requests.
    Silence,
    /// Sends the pieces of another file of the same size.
    OtherFile,
    /// Sends the preceding piece for every piece except the last.
    OtherPiece,
    /// Sends a file size that is one byte too small with the piece hashes.
    ManifestSize,
    /// Replies `busy` with a retry time of zero to requests for every piece except the last.
    Busy,
    /// Replies correctly.
    None,
}

/// A provider of one file. Dropping it stops the provider.
#[derive(Debug)]
pub struct FakeProvider {
    runtime: Option<Runtime>,
    count: Arc<AtomicUsize>,
}

impl FakeProvider {
    /// Publishes `content` under `name` at the tracker and serves it.
    ///
    /// # Errors
    /// Returns an error if the tracker cannot be reached or refuses the publication.
    pub fn start(tracker: &str, name: &str, content: Vec<u8>, misbehavior: Misbehavior) -> Result<Self> {
        Self::start_with(tracker, name, content, misbehavior, FileKind::File)
    }

    /// Publishes an encoded collection, valid or not, and serves it correctly.
    ///
    /// # Errors
    /// Returns the errors of [`FakeProvider::start`].
    pub fn collection(tracker: &str, name: &str, list: Vec<u8>) -> Result<Self> {
        Self::start_with(tracker, name, list, Misbehavior::None, FileKind::Collection)
    }

    fn start_with(
        tracker: &str,
        name: &str,
        content: Vec<u8>,
        misbehavior: Misbehavior,
        kind: FileKind,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let count = Arc::new(AtomicUsize::new(0));
        runtime.block_on(announce(
            tracker.parse()?,
            name,
            kind,
            MisbehavingProvider::new(content, misbehavior, Arc::clone(&count))?,
        ))?;
        Ok(Self { runtime: Some(runtime), count })
    }

    /// Returns the number of requests to which the provider has misbehaved.
    pub fn misbehavior_count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn announce(
    tracker: Endpoint,
    name: &str,
    kind: FileKind,
    provider: MisbehavingProvider,
) -> Result<()> {
    let settings = TransportSettings::default();
    let dialer = Dialer::new(vec![Shared::new(settings.clone())?.zmq(), Shared::new(settings)?.tcp()]);
    let listener = dialer.bind(&format!("{}://127.0.0.1:0", tracker.scheme()).parse()?).await?;
    let (id, size) = (provider.id, provider.layout.size());
    let endpoints = vec![listener.local_endpoint().clone()];
    tokio::spawn(serve(Arc::clone(&listener), Arc::new(provider)));

    let connection = dialer.connect(&tracker).await?;
    let grant = open_session(&*connection, endpoints).await?;
    let session = grant.session;
    let publish = Request::Publish { session, name: name.parse()?, id, size, kind, again: None };
    call(&*connection, &publish, DEADLINE).await?;
    tokio::spawn(renew_lease(connection, listener, session, Duration::from_millis(grant.lease_ms / 3)));
    Ok(())
}

async fn open_session(connection: &dyn Connection, endpoints: Vec<Endpoint>) -> Result<SessionGrant> {
    let pair = KeyPair::generate();
    let (reply, _) = call(connection, &Request::OpenSession { proof: None }, DEADLINE).await?;
    let Reply::OpenSession { catalogue, nonce, .. } = reply else {
        bail!("reply without a nonce: {reply:?}")
    };
    let tracker = connection.endpoint().id();
    let signature = pair.sign(&SessionProof::signed_bytes(tracker, catalogue, nonce, &endpoints));
    let proof = SessionProof { key: pair.public(), nonce, signature, endpoints };
    let (reply, _) = call(connection, &Request::OpenSession { proof: Some(proof) }, DEADLINE).await?;
    let Reply::OpenSession { grant, .. } = reply else { bail!("unexpected reply: {reply:?}") };
    grant.context("the tracker did not grant a session")
}

/// Renews the lease and keeps the listener open until the runtime shuts down.
async fn renew_lease(
    connection: Arc<dyn Connection>,
    _listener: Arc<dyn Listener>,
    session: SessionId,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        if call(&*connection, &Request::Renew { session, membership: None }, DEADLINE).await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct MisbehavingProvider {
    id: FileId,
    content: Vec<u8>,
    /// The layout for the claimed file size.
    layout: PieceLayout,
    hashes: Vec<u8>,
    misbehavior: Misbehavior,
    count: Arc<AtomicUsize>,
}

impl MisbehavingProvider {
    fn new(content: Vec<u8>, misbehavior: Misbehavior, count: Arc<AtomicUsize>) -> Result<Self> {
        let id = FileId::from_bytes(*blake3::hash(&content).as_bytes());
        let actual = PieceLayout::new(content.len() as u64)?;
        let hashes = actual
            .pieces()
            .flat_map(|piece| {
                let start = actual.offset(piece) as usize;
                hash_piece(actual, piece, &content[start..start + actual.len(piece)])
            })
            .collect();
        let layout =
            if misbehavior == Misbehavior::Size { PieceLayout::new(actual.size() + 1)? } else { actual };
        Ok(Self { id, content, layout, hashes, misbehavior, count })
    }

    fn count_misbehavior(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    async fn piece(&self, index: u32) -> Result<Bytes, ErrorReply> {
        let not_found = || ErrorReply::new(ErrorCode::NotFound, "no such piece");
        let piece = self.layout.piece(index).ok_or_else(not_found)?;
        let is_last = Some(piece) == self.layout.last();
        if is_last && matches!(self.misbehavior, Misbehavior::OtherPiece | Misbehavior::Busy) {
            // A valid last piece proves the file size. Without it, downloaders request no other piece.
            return Ok(self.content_of(piece).into());
        }
        self.count_misbehavior();
        let mut bytes = self.content_of(piece);
        match self.misbehavior {
            Misbehavior::Content => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
            Misbehavior::Length => bytes.truncate(bytes.len() - 1),
            // The other file contains the bytes of this one in reverse order.
            Misbehavior::OtherFile => {
                let start = self.layout.offset(piece) as usize;
                let reversed = self.content.iter().rev().skip(start).take(bytes.len());
                bytes = reversed.copied().collect();
            }
            Misbehavior::OtherPiece => {
                let other = self.layout.piece(if index == 0 { 1 } else { index - 1 });
                bytes = self.content_of(other.ok_or_else(not_found)?);
            }
            Misbehavior::Busy => {
                return Err(ErrorReply::new(ErrorCode::Busy, "busy").retry_after(Duration::ZERO));
            }
            Misbehavior::Silence => future::pending().await,
            Misbehavior::Manifest | Misbehavior::Size | Misbehavior::ManifestSize | Misbehavior::None => {}
        }
        Ok(bytes.into())
    }

    /// Returns a piece in the layout of the claimed size, padded with zeros.
    fn content_of(&self, piece: PieceIndex) -> Vec<u8> {
        let mut bytes = self.content[self.layout.offset(piece) as usize..].to_vec();
        bytes.resize(self.layout.len(piece), 0);
        bytes
    }
}

#[async_trait]
impl Handler for MisbehavingProvider {
    async fn handle(
        &self,
        _id: RequestId,
        request: Request,
        _peer: &PeerInfo,
        _sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let size = self.layout.size();
        match request {
            Request::Manifest { id, first } if id == self.id => {
                let mut hashes = self.hashes.get(first as usize * 32..).unwrap_or_default().to_vec();
                if self.misbehavior == Misbehavior::Manifest {
                    self.count_misbehavior();
                    hashes.iter_mut().for_each(|byte| *byte ^= 0x55);
                }
                let mut size = size;
                if self.misbehavior == Misbehavior::ManifestSize {
                    self.count_misbehavior();
                    size -= 1;
                }
                Ok((Reply::Manifest { size }, hashes.into()))
            }
            Request::Have { id, .. } if id == self.id => {
                Ok((Reply::Have { size, complete: true }, Bytes::new()))
            }
            Request::Piece { id, index, .. } if id == self.id => Ok((Reply::Piece, self.piece(index).await?)),
            Request::Cancel { .. } => Ok((Reply::Done, Bytes::new())),
            _ => Err(ErrorReply::new(ErrorCode::NotFound, "not found")),
        }
    }
}
