//! A provider that lies: it speaks the protocol well enough to be announced, and gives out what is not true. Or it tells the
//! truth about content that nobody should have.

use std::future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::id::FileId;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::layout::{PieceIndex, PieceLayout};
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::model::record::FileKind;
use enjambre_core::protocol::client::ask;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{HelloProof, Reply, Request, SessionId, Welcome};
use enjambre_core::protocol::server::{Handler, serve};
use enjambre_core::transport::dialer::Dialer;
use enjambre_core::transport::envelope::RequestId;
use enjambre_core::transport::{Connection, Deadline, Listener, PeerInfo, ReplySink};
use enjambre_transport::settings::TransportSettings;
use tokio::runtime::Runtime;

const DEADLINE: Deadline = Deadline::Total(Duration::from_secs(20));

/// What is not true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// The content of every piece; the manifest is right.
    Content,
    /// Every piece is one byte short.
    Length,
    /// The piece hashes.
    Manifest,
    /// The size of the file: one byte more than it has, also in the catalogue.
    Size,
    /// That it would answer at all when asked for a piece.
    Silence,
    /// The content of every piece: it is the right one of another file.
    OtherFile,
    /// The content of every piece but the last: it is the one before.
    OtherPiece,
    /// The size that comes with the piece hashes: another one than that of what it has.
    SizeOfManifest,
    /// That it is busy, with all but the last piece, for ever, and has time at once.
    Busy,
    /// Nothing.
    Nothing,
}

/// A provider of one file that lies about it, in this process. It is gone when this is dropped.
#[derive(Debug)]
pub struct FakeProvider {
    runtime: Option<Runtime>,
    told: Arc<AtomicUsize>,
}

impl FakeProvider {
    /// Publishes `content` under `name` at the tracker, and serves it with a lie.
    ///
    /// # Errors
    /// If the tracker cannot be reached or refuses.
    pub fn start(tracker: &str, name: &str, content: Vec<u8>, lie: Lie) -> Result<Self> {
        Self::start_with(tracker, name, content, lie, FileKind::File)
    }

    /// Publishes the list of a collection, whatever it says, and serves it as it is.
    ///
    /// # Errors
    /// As [`FakeProvider::start`].
    pub fn collection(tracker: &str, name: &str, list: Vec<u8>) -> Result<Self> {
        Self::start_with(tracker, name, list, Lie::Nothing, FileKind::Collection)
    }

    fn start_with(tracker: &str, name: &str, content: Vec<u8>, lie: Lie, kind: FileKind) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let told = Arc::new(AtomicUsize::new(0));
        runtime.block_on(announce(
            tracker.parse()?,
            name,
            kind,
            Liar::new(content, lie, Arc::clone(&told))?,
        ))?;
        Ok(Self { runtime: Some(runtime), told })
    }

    /// How many lies it has told so far.
    pub fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn announce(tracker: Endpoint, name: &str, kind: FileKind, liar: Liar) -> Result<()> {
    let settings = TransportSettings::default();
    let dialer =
        Dialer::new(vec![enjambre_transport::zmq(settings.clone())?, enjambre_transport::tcp(settings)?]);
    let listener = dialer.bind(&format!("{}://127.0.0.1:0", tracker.scheme()).parse()?).await?;
    let (id, size) = (liar.id, liar.layout.size());
    let endpoints = vec![listener.local_endpoint().clone()];
    tokio::spawn(serve(Arc::clone(&listener), Arc::new(liar)));

    let connection = dialer.connect(&tracker).await?;
    let welcome = hello(&*connection, endpoints).await?;
    let session = welcome.session;
    let publish = Request::Publish { session, name: name.parse()?, id, size, kind };
    ask(&*connection, &publish, DEADLINE).await?;
    tokio::spawn(stay_alive(connection, listener, session, Duration::from_millis(welcome.lease_ms / 3)));
    Ok(())
}

async fn hello(connection: &dyn Connection, endpoints: Vec<Endpoint>) -> Result<Welcome> {
    let pair = KeyPair::generate();
    let (reply, _) = ask(connection, &Request::Hello { proof: None }, DEADLINE).await?;
    let Reply::Hello { catalogue, nonce, .. } = reply else { bail!("no nonce: {reply:?}") };
    let signature = pair.sign(&HelloProof::signed_bytes(catalogue, nonce, &endpoints));
    let proof = HelloProof { key: pair.public(), nonce, signature, endpoints };
    let (reply, _) = ask(connection, &Request::Hello { proof: Some(proof) }, DEADLINE).await?;
    let Reply::Hello { welcome, .. } = reply else { bail!("no welcome: {reply:?}") };
    welcome.context("the tracker gave no session")
}

/// Renews the lease for as long as the runtime lives; holds the listener for as long.
async fn stay_alive(
    connection: Arc<dyn Connection>,
    _listener: Arc<dyn Listener>,
    session: SessionId,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        if ask(&*connection, &Request::Renew { session, known: None }, DEADLINE).await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct Liar {
    id: FileId,
    content: Vec<u8>,
    /// Of the size that is claimed.
    layout: PieceLayout,
    hashes: Vec<u8>,
    lie: Lie,
    told: Arc<AtomicUsize>,
}

impl Liar {
    fn new(content: Vec<u8>, lie: Lie, told: Arc<AtomicUsize>) -> Result<Self> {
        let id = FileId::from_bytes(*blake3::hash(&content).as_bytes());
        let truth = PieceLayout::new(content.len() as u64)?;
        let hashes = truth
            .pieces()
            .flat_map(|piece| {
                let start = truth.offset(piece) as usize;
                hash_piece(truth, piece, &content[start..start + truth.len(piece)])
            })
            .collect();
        let layout = if lie == Lie::Size { PieceLayout::new(truth.size() + 1)? } else { truth };
        Ok(Self { id, content, layout, hashes, lie, told })
    }

    fn lied(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    async fn piece(&self, index: u32) -> Result<Bytes, ErrorReply> {
        let not_found = || ErrorReply::new(ErrorCode::NotFound, "no such piece");
        let piece = self.layout.piece(index).ok_or_else(not_found)?;
        let is_last = Some(piece) == self.layout.last();
        if is_last && matches!(self.lie, Lie::OtherPiece | Lie::Busy) {
            // It proves the size: without it nothing else is asked for.
            return Ok(self.content_of(piece).into());
        }
        self.lied();
        let mut bytes = self.content_of(piece);
        match self.lie {
            Lie::Content => bytes.iter_mut().for_each(|byte| *byte ^= 0x55),
            Lie::Length => bytes.truncate(bytes.len() - 1),
            // As it is in the file that has all of this one backwards.
            Lie::OtherFile => {
                let start = self.layout.offset(piece) as usize;
                let backwards = self.content.iter().rev().skip(start).take(bytes.len());
                bytes = backwards.copied().collect();
            }
            Lie::OtherPiece => {
                let other = self.layout.piece(if index == 0 { 1 } else { index - 1 });
                bytes = self.content_of(other.ok_or_else(not_found)?);
            }
            Lie::Busy => return Err(ErrorReply::new(ErrorCode::Busy, "busy").retry_after(Duration::ZERO)),
            Lie::Silence => future::pending().await,
            Lie::Manifest | Lie::Size | Lie::SizeOfManifest | Lie::Nothing => {}
        }
        Ok(bytes.into())
    }

    /// Of the size that is claimed.
    fn content_of(&self, piece: PieceIndex) -> Vec<u8> {
        let mut bytes = self.content[self.layout.offset(piece) as usize..].to_vec();
        bytes.resize(self.layout.len(piece), 0);
        bytes
    }
}

#[async_trait]
impl Handler for Liar {
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
                if self.lie == Lie::Manifest {
                    self.lied();
                    hashes.iter_mut().for_each(|byte| *byte ^= 0x55);
                }
                let mut size = size;
                if self.lie == Lie::SizeOfManifest {
                    self.lied();
                    size -= 1;
                }
                Ok((Reply::Manifest { size }, hashes.into()))
            }
            Request::Have { id, .. } if id == self.id => {
                Ok((Reply::Have { size, complete: true }, Bytes::new()))
            }
            Request::Piece { id, index, .. } if id == self.id => Ok((Reply::Piece, self.piece(index).await?)),
            Request::Cancel { .. } => Ok((Reply::Done, Bytes::new())),
            _ => Err(ErrorReply::new(ErrorCode::NotFound, "not here")),
        }
    }
}
