//! The way of pieces through a node, without the network: the library takes them in, the seeder reads them out.
//!
//! `cargo bench -p enjambre-core --bench pieces`

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use divan::Bencher;
use divan::counter::BytesCount;
use enjambre_core::model::manifest::hash_piece;
use enjambre_core::protocol::message::Request;
use enjambre_core::protocol::server::Handler;
use enjambre_core::{
    ConnectionHandle, ConnectionId, FileKind, Manifest, Memory, Message, PeerInfo, PieceIndex, PieceLayout,
    ReplySink, RequestId, TransportError,
};
use enjambre_swarm::library::content::ContentStore;
use enjambre_swarm::library::entry::NewFile;
use enjambre_swarm::library::file::LibraryFile;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::library::output::Destination;
use enjambre_swarm::rate_limit::bandwidth::BandwidthLimit;
use enjambre_swarm::seeder::Seeder;
use futures::stream::{self, StreamExt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SIZE: usize = 128 << 20;
/// As many pieces as a download hands over at once, and as many batches at a time on two cores.
const BATCH: usize = 4;
const BATCHES: usize = 2;
/// Pieces that one connection has in preparation.
const PREPARED: usize = 3;

fn main() {
    divan::main();
}

/// A library over storage in memory, with content in plain files.
struct Place {
    runtime: Runtime,
    folder: TempDir,
    library: Arc<Library>,
}

fn place() -> Place {
    let runtime = Runtime::new().expect("a runtime");
    // In the build's folder: the temporary one of the system may be in memory.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder");
    let content = ContentStore::Files(folder.path().join("content"));
    let opening = Library::open(Arc::new(Memory::new()), content);
    let library = runtime.block_on(opening).expect("the library opens");
    Place { runtime, folder, library }
}

/// Content and what proves it.
struct Content {
    pieces: Vec<(PieceIndex, Bytes)>,
    manifest: Manifest,
}

fn content() -> Content {
    let layout = PieceLayout::new(SIZE as u64).expect("it is a size");
    let piece = |piece: PieceIndex| (piece, Bytes::from(vec![piece.get() as u8; layout.len(piece)]));
    let pieces: Vec<_> = layout.pieces().map(piece).collect();
    let hashes = pieces.iter().map(|(piece, content)| hash_piece(layout, *piece, content)).collect();
    let manifest = Manifest::from_hashes(layout, hashes).expect("a hash for each piece");
    Content { pieces, manifest }
}

impl Place {
    async fn create(&self, manifest: Manifest, to_file: bool) -> Arc<LibraryFile> {
        let destination = match to_file {
            true => {
                Destination::Path { path: self.folder.path().join("file"), executable: false, force: true }
            }
            false => Destination::Library,
        };
        let new = NewFile { name: None, kind: FileKind::File, member_of: None };
        self.library.create(manifest, new, destination).await.expect("it begins")
    }
}

async fn take_in(file: &Arc<LibraryFile>, pieces: &[(PieceIndex, Bytes)]) {
    stream::iter(pieces.chunks(BATCH))
        .map(|batch| async {
            let wrong = file.write_pieces(batch.to_vec()).await.expect("there is room");
            assert!(wrong.is_empty(), "they are right");
        })
        .buffer_unordered(BATCHES)
        .collect::<()>()
        .await;
    file.finish(false).await.expect("it is whole");
}

/// Hashes and writes every piece of a file, as a download does.
#[divan::bench(args = ["content files", "file of the user"], sample_count = 5, sample_size = 1)]
fn take_in_128_mib(bencher: Bencher<'_, '_>, to: &str) {
    let content = content();
    bencher
        .counter(BytesCount::new(SIZE))
        .with_inputs(|| {
            let place = place();
            let creating = place.create(content.manifest.clone(), to == "file of the user");
            let file = place.runtime.block_on(creating);
            (place, file)
        })
        .bench_local_refs(|(place, file)| place.runtime.block_on(take_in(file, &content.pieces)));
}

/// Discards replies.
#[derive(Debug)]
struct Asker;

#[async_trait]
impl ReplySink for Asker {
    async fn reserve(&mut self, _bytes: usize) -> Result<(), TransportError> {
        Ok(())
    }

    async fn send(self: Box<Self>, _message: Message) -> Result<(), TransportError> {
        Ok(())
    }
}

/// Reads every piece of a file in the page cache, as one connection asks for them.
#[divan::bench(args = ["content files", "file of the user"], sample_count = 20, sample_size = 1)]
fn seed_128_mib(bencher: Bencher<'_, '_>, from: &str) {
    let (place, content) = (place(), content());
    let id = content.manifest.id();
    let count = content.pieces.len() as u32;
    place.runtime.block_on(async {
        let file = place.create(content.manifest, from == "file of the user").await;
        take_in(&file, &content.pieces).await;
    });
    let upload = Arc::new(BandwidthLimit::new(None));
    let seeder = Arc::new(Seeder::new(Arc::clone(&place.library), upload));
    let peer = PeerInfo {
        connection: ConnectionId::next(),
        handle: ConnectionHandle::default(),
        address: None,
        identity: None,
    };
    bencher.counter(BytesCount::new(SIZE)).bench_local(|| {
        let pieces = stream::iter(0..count).map(|index| {
            let (seeder, peer) = (Arc::clone(&seeder), peer.clone());
            // Each request is a task of its own, as it is behind a listener.
            tokio::spawn(async move {
                let request = Request::Piece { id, index, super_seed: false };
                let answer = seeder.handle(RequestId(index.into()), request, &peer, &mut Asker).await;
                answer.expect("the piece is here").1.len()
            })
        });
        let read = place.runtime.block_on(
            pieces
                .buffer_unordered(PREPARED)
                .fold(0, |sum, len| async move { sum + len.expect("the task ends well") }),
        );
        assert_eq!(read, SIZE);
    });
}
