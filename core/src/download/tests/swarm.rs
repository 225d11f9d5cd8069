//! What peers tell each other while they download the same file.

use super::*;
use crate::download::source;
use crate::library::file::LibraryFile;
use crate::protocol::message::HaveWait;
use crate::transport::{Connection, Deadline};

/// What a slow source sends in a second.
const RATE: u64 = 4 * MIB as u64;

fn slow() -> RateLimit {
    RateLimit::new(std::num::NonZeroU64::new(RATE))
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
async fn who_waits_for_news_hears_of_it_at_once_and_is_answered_without_any_in_time() {
    let world = World::new(2 * MIB);
    let node = world.source("trader", Manner::Honest, |piece| piece < 3).await;
    let connection = dial(&world, &node).await;
    let id = world.manifest.id();
    let ask = |known, millis| source::have(&*connection, id, Some(HaveWait { known, millis }), SILENCE);
    let begun = tokio::time::Instant::now();
    assert_eq!(ask(2, 5000).await.unwrap().1.count(), 3);
    assert!(begun.elapsed() < Duration::from_millis(100), "there was news already");
    assert_eq!(ask(3, 700).await.unwrap().1.count(), 3);
    let waited = begun.elapsed();
    assert!((700..900).contains(&waited.as_millis()), "{waited:?}");
    let (answer, ()) = tokio::join!(ask(3, 5000), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        write(&world, &node, 5).await;
    });
    assert_eq!(answer.unwrap().1.count(), 4);
    let waited = begun.elapsed() - waited;
    assert!((1000..1100).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn too_many_who_wait_on_a_connection_are_answered_at_once() {
    let world = World::new(2 * MIB);
    let node = world.source("trader", Manner::Honest, |piece| piece < 3).await;
    let connection = dial(&world, &node).await;
    let id = world.manifest.id();
    let wait = Some(HaveWait { known: 3, millis: 5000 });
    let begun = tokio::time::Instant::now();
    let asked = (0..20).map(|_| async {
        source::have(&*connection, id, wait, SILENCE).await.unwrap();
        begun.elapsed() < Duration::from_secs(1)
    });
    let at_once = futures::future::join_all(asked).await.into_iter().filter(|at_once| *at_once).count();
    assert_eq!(at_once, 12);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_asked_sparingly_gives_each_piece_once() {
    let world = World::new(MIB);
    let node = world.source("source", Manner::Honest, |_| true).await;
    let connection = dial(&world, &node).await;
    let (id, layout) = (world.manifest.id(), world.manifest.layout());
    let ask = |index, sparing| {
        let question = Question { piece: layout.piece(index).unwrap(), sparing };
        source::piece(&*connection, connection.next_id(), id, question, SILENCE)
    };
    ask(2, true).await.unwrap();
    let Err(source::Fault::Elsewhere(given)) = ask(2, true).await else { panic!("it gave it twice") };
    assert_eq!(&given[..], &[0b0100]);
    ask(2, false).await.unwrap();
    for index in [0, 1, 3] {
        ask(index, true).await.unwrap();
    }
    ask(2, true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn peers_that_begin_together_take_little_more_than_one_copy_from_a_slow_source() {
    let world = World::new(32 * MIB);
    let source = world.node_with("source", Manner::Honest, DownloadSettings::default(), slow()).await;
    world.fill(&source, |_| true).await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let node = world.node(name, Manner::Honest, DownloadSettings::default()).await;
        world.directory.providers.lock().push(node.provider.clone());
        nodes.push(node);
    }
    let begun = tokio::time::Instant::now();
    let downloads: Vec<_> = nodes.iter().map(|node| node.downloader.get(world.wanted())).collect();
    for download in &downloads {
        download.wait().await.unwrap();
    }
    for node in &nodes {
        world.assert_complete(node).await;
    }
    let copies = source.seeder.seeder.sent() as f64 / (32 * MIB) as f64;
    assert!(copies < 1.15, "the source sent {copies} copies");
    let ratio = begun.elapsed().as_secs_f64() / (32.0 * MIB as f64 / RATE as f64);
    assert!(ratio < 1.15, "it took {ratio} times what one copy takes");
}

#[tokio::test(start_paused = true)]
async fn who_always_has_news_is_not_asked_all_the_time() {
    let world = World::new(64 * MIB);
    let boaster = world.source("boaster", Manner::Boasts, |_| true).await;
    let source = world.node_with("source", Manner::Honest, DownloadSettings::default(), slow()).await;
    world.fill(&source, |_| true).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let begun = tokio::time::Instant::now();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let asked = f64::from(boaster.seeder.haves.load(Relaxed)) / begun.elapsed().as_secs_f64();
    assert!((2.0..=110.0).contains(&asked), "it was asked {asked} times a second");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_gave_everything_to_others_is_not_asked_all_the_time() {
    let world = World::new(64 * MIB);
    let refuser = world.source("refuser", Manner::Refuses, |_| true).await;
    world.source("trader", Manner::Honest, |piece| piece == 255).await;
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let file = NewFile { name: None, kind: FileKind::File, member_of: None };
    node.library.create(world.manifest.clone(), file, Destination::Library).await.unwrap();
    let download = node.downloader.get(world.wanted());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let refused = refuser.seeder.refused.load(Relaxed);
    assert!((17..=120).contains(&refused), "it was asked {refused} times");
    drop(download);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_that_are_away_do_not_keep_out_who_comes_later() {
    let world = World::new(MIB);
    for number in 0..1000_u32 {
        let endpoints = vec![format!("memory://away{number}:1").parse().unwrap()];
        let peer = PeerId::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let provider = Provider { peer, endpoints, size: MIB as u64, complete: true };
        world.directory.providers.lock().push(provider);
    }
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.wanted());
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.source("honest", Manner::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_of_one_piece_is_not_asked_of_everybody() {
    let world = World::new(200 * 1024);
    let mut sources = Vec::new();
    for number in 0..8 {
        sources.push(world.source(&format!("source{number}"), Manner::Honest, |_| true).await);
    }
    let node = world.node("reader", Manner::Honest, DownloadSettings::default()).await;
    let wanted = Wanted { proven_size: Some(200 * 1024), ..world.wanted() };
    node.downloader.get(wanted).wait().await.unwrap();
    world.assert_complete(&node).await;
    let asked: u32 = sources.iter().map(|source| source.seeder.haves.load(Relaxed)).sum();
    assert!(asked <= 2, "{asked} were asked");
}
