//! Exchange of pieces and bitmaps between peers that download the same file.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::world::{Behavior, MIB, Node, World};
use crate::download::provider::{self, ProviderError};
use crate::download::request::DownloadRequest;
use crate::download::schedule::PieceRequest;
use crate::download::settings::DownloadSettings;
use crate::library::entry::NewFile;
use crate::library::file::LibraryFile;
use crate::library::output::Destination;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::protocol::message::HaveWait;
use enjambre_core::{Connection, Deadline, Dialer, FileKind, PeerId, Provider};

/// The upload limit of a slow provider in bytes per second.
const RATE: u64 = 4 * MIB as u64;

fn slow() -> BandwidthLimit {
    BandwidthLimit::new(std::num::NonZeroU64::new(RATE))
}

const SILENCE: Deadline = Deadline::Silence(Duration::from_secs(20));

async fn dial(world: &World, node: &Node) -> Arc<dyn Connection> {
    Dialer::new(vec![world.network.transport()]).connect(&node.provider.endpoints[0]).await.unwrap()
}

async fn file_of(world: &World, node: &Node) -> Arc<LibraryFile> {
    node.library.open_file(&world.manifest.id()).await.unwrap().unwrap()
}

async fn write(world: &World, node: &Node, piece: u32) {
    let layout = world.manifest.layout();
    let piece = layout.piece(piece).unwrap();
    let start = layout.offset(piece) as usize;
    let content = Bytes::copy_from_slice(&world.content[start..start + layout.len(piece)]);
    file_of(world, node).await.write_pieces(vec![(piece, content)]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn long_poll_replies_on_change_or_timeout() {
    let world = World::new(2 * MIB);
    let node = world.provider("trader", Behavior::Honest, |piece| piece < 3).await;
    let connection = dial(&world, &node).await;
    let id = world.manifest.id();
    let request =
        |known, timeout_ms| provider::have(&*connection, id, Some(HaveWait { known, timeout_ms }), SILENCE);
    let start = Instant::now();
    assert_eq!(request(2, 5000).await.unwrap().1.count(), 3);
    assert!(start.elapsed() < Duration::from_millis(100), "pieces had changed already");
    assert_eq!(request(3, 700).await.unwrap().1.count(), 3);
    let waited = start.elapsed();
    assert!((700..900).contains(&waited.as_millis()), "{waited:?}");
    let (reply, ()) = tokio::join!(request(3, 5000), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&world, &node, 5).await;
    });
    assert_eq!(reply.unwrap().1.count(), 4);
    let waited = start.elapsed() - waited;
    assert!((1000..1100).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn excess_long_polls_get_immediate_reply() {
    let world = World::new(2 * MIB);
    let node = world.provider("trader", Behavior::Honest, |piece| piece < 3).await;
    let connection = dial(&world, &node).await;
    let id = world.manifest.id();
    let wait = Some(HaveWait { known: 3, timeout_ms: 5000 });
    let start = Instant::now();
    let requests = (0..20).map(|_| async {
        provider::have(&*connection, id, wait, SILENCE).await.unwrap();
        start.elapsed() < Duration::from_secs(1)
    });
    let at_once = futures::future::join_all(requests).await.into_iter().filter(|at_once| *at_once).count();
    assert_eq!(at_once, 12);
}

#[tokio::test(start_paused = true)]
async fn super_seeding_sends_each_piece_once() {
    let world = World::new(MIB);
    let node = world.provider("source", Behavior::Honest, |_| true).await;
    let connection = dial(&world, &node).await;
    let (id, layout) = (world.manifest.id(), world.manifest.layout());
    let request = |index, super_seed| {
        let request = PieceRequest { piece: layout.piece(index).unwrap(), super_seed };
        provider::piece(&*connection, connection.next_id(), id, request, SILENCE)
    };
    request(2, true).await.unwrap();
    let Err(ProviderError::AlreadySent(sent)) = request(2, true).await else { panic!("sent twice") };
    assert_eq!(&sent[..], &[0b0100]);
    request(2, false).await.unwrap();
    for index in [0, 1, 3] {
        request(index, true).await.unwrap();
    }
    request(2, true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn simultaneous_peers_take_one_copy_from_source() {
    let world = World::new(32 * MIB);
    let source = world.node_with("source", Behavior::Honest, DownloadSettings::default(), slow()).await;
    world.fill(&source, |_| true).await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let node = world.node(name, Behavior::Honest, DownloadSettings::default()).await;
        world.providers.list.lock().push(node.provider.clone());
        nodes.push(node);
    }
    let start = Instant::now();
    let downloads: Vec<_> = nodes.iter().map(|node| node.downloader.get(world.request())).collect();
    for download in &downloads {
        download.wait().await.unwrap();
    }
    for node in &nodes {
        world.assert_complete(node).await;
    }
    let copies = source.sent_bytes() as f64 / (32 * MIB) as f64;
    assert!(copies < 1.15, "the provider sent {copies} copies");
    let ratio = start.elapsed().as_secs_f64() / (32.0 * MIB as f64 / RATE as f64);
    assert!(ratio < 1.15, "the download took {ratio} times the time for one copy");
}

#[tokio::test(start_paused = true)]
async fn always_changing_provider_is_polled_rarely() {
    let world = World::new(64 * MIB);
    let changing = world.provider("changing", Behavior::ClaimsNewPieces, |_| true).await;
    let source = world.node_with("source", Behavior::Honest, DownloadSettings::default(), slow()).await;
    world.fill(&source, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let start = Instant::now();
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let asked = f64::from(changing.seeder.haves.load(Relaxed)) / start.elapsed().as_secs_f64();
    assert!((2.0..=110.0).contains(&asked), "{asked} requests per second");
}

#[tokio::test(start_paused = true)]
async fn already_sent_provider_is_polled_rarely() {
    let world = World::new(64 * MIB);
    let refuser = world.provider("refuser", Behavior::AlreadySent, |_| true).await;
    world.provider("trader", Behavior::Honest, |piece| piece == 255).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let file = NewFile { name: None, kind: FileKind::File, member_of: None };
    node.library.create(world.manifest.clone(), file, Destination::Library).await.unwrap();
    let download = node.downloader.get(world.request());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = refuser.seeder.refused.load(Relaxed);
    assert!((17..=120).contains(&refused), "{refused} requests");
    drop(download);
}

#[tokio::test(start_paused = true)]
async fn unreachable_providers_do_not_block_new_one() {
    let world = World::new(MIB);
    for number in 0..1000_u32 {
        let endpoints = vec![format!("memory://unreachable{number}:1").parse().unwrap()];
        let peer = PeerId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let provider = Provider { peer, endpoints, size: MIB as u64, complete: true };
        world.providers.list.lock().push(provider);
    }
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.request());
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.provider("honest", Behavior::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn single_piece_file_uses_few_providers() {
    let world = World::new(200 * 1024);
    let mut sources = Vec::new();
    for number in 0..8 {
        sources.push(world.provider(&format!("source{number}"), Behavior::Honest, |_| true).await);
    }
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let request = DownloadRequest { accepted_sizes: 200 * 1024..=200 * 1024, ..world.request() };
    node.downloader.get(request).wait().await.unwrap();
    world.assert_complete(&node).await;
    let asked: u32 = sources.iter().map(|source| source.seeder.haves.load(Relaxed)).sum();
    assert!(asked <= 2, "{asked} providers were used");
}
