//! Downloads from honest and misbehaving providers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::world::{Behavior, MIB, World, reaches};
use crate::download::error::DownloadError;
use crate::download::provider;
use crate::download::request::DownloadRequest;
use crate::download::schedule::PieceRequest;
use crate::download::settings::DownloadSettings;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::{Deadline, Dialer, Memory};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

#[tokio::test(start_paused = true)]
async fn file_of_other_than_accepted_size_is_not_stored() {
    let world = World::new(3 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let request = DownloadRequest { accepted_sizes: MIB as u64..=MIB as u64, ..world.request() };
    let error = node.downloader.get(request).wait().await.unwrap_err();
    assert!(matches!(&*error, DownloadError::NoProviders { .. }), "{error}");
    assert!(node.library.entry(&world.manifest.id()).is_none());
    assert_eq!(source.seeder.manifests.load(Relaxed), 0, "no hashes are fetched");
}

#[tokio::test(start_paused = true)]
async fn size_limit_applies_to_a_file_that_is_stored_in_part() {
    let world = World::new(3 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let DownloadRequest { file, destination, .. } = world.request();
    drop(node.library.create(world.manifest.clone(), file, destination).await.unwrap());
    let request = DownloadRequest { accepted_sizes: 0..=MIB as u64, ..world.request() };
    let error = node.downloader.get(request).wait().await.unwrap_err();
    assert!(matches!(*error, DownloadError::TooLarge { .. }), "{error}");
    assert_eq!(source.sent_bytes(), 0);
}

#[tokio::test(start_paused = true)]
async fn file_that_is_too_large_fails_once_its_size_is_proven() {
    let world = World::new(3 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    world.provider("bad", Behavior::Inflates, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let request = DownloadRequest { accepted_sizes: 0..=MIB as u64, ..world.request() };
    let error = node.downloader.get(request).wait().await.unwrap_err();
    let size = 3 * MIB as u64;
    assert!(matches!(*error, DownloadError::TooLarge { size: proven, .. } if proven == size), "{error}");
    assert!(node.library.entry(&world.manifest.id()).is_none());
    assert!(source.sent_bytes() < MIB as u64, "{}", source.sent_bytes());
}

#[tokio::test(start_paused = true)]
async fn files_of_all_sizes_complete() {
    for size in [0, 1, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 17] {
        let world = World::new(size);
        world.provider("source", Behavior::Honest, |_| true).await;
        let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
        node.downloader.get(world.request()).wait().await.unwrap();
        world.assert_complete(&node).await;
    }
}

#[tokio::test(start_paused = true)]
async fn partial_providers_complement_each_other() {
    let world = World::new(6 * MIB);
    let even = world.provider("even", Behavior::Honest, |piece| piece % 2 == 0).await;
    let odd = world.provider("odd", Behavior::Honest, |piece| piece % 2 == 1).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(even.sent_bytes() + odd.sent_bytes(), 6 * MIB as u64, "no piece is sent twice");
}

#[tokio::test(start_paused = true)]
async fn misbehaving_provider_does_not_fail_download() {
    for behavior in [Behavior::Corrupt, Behavior::Inflates, Behavior::Busy, Behavior::Silent] {
        let world = World::new(5 * MIB + 3);
        world.provider("bad", behavior, |_| true).await;
        let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
        let download = node.downloader.get(world.request());
        // An honest provider is added after a while.
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.provider("honest", Behavior::Honest, |_| true).await;
        download.wait().await.unwrap();
        world.assert_complete(&node).await;
    }
}

#[tokio::test(start_paused = true)]
async fn budget_bounds_unwritten_bytes() {
    let world = World::new(20 * MIB);
    let first = world.provider("first", Behavior::Honest, |_| true).await;
    let second = world.provider("second", Behavior::Honest, |_| true).await;
    let sent = || first.sent_bytes() + second.sent_bytes();
    let content = Arc::new(FaultyStorage::new(Arc::new(Memory::new()), 1));
    let settings = DownloadSettings { budget_bytes: 4 * MIB, ..DownloadSettings::default() };
    let node =
        world.node_on("reader", Behavior::Honest, settings, BandwidthLimit::new(None), content.clone()).await;
    let download = node.downloader.get(world.request());
    // Now the windows of the providers exceed the budget.
    reaches(&download, 8 * MIB as u64).await;
    content.add(Operation::Commit, When::Always, Fault::Delay(Duration::from_secs(30)));
    tokio::time::sleep(Duration::from_secs(20)).await;
    let unwritten = sent() - download.progress().borrow().done;
    assert_eq!(unwritten, settings.budget_bytes as u64);
    content.clear();
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    // Pieces may be requested twice at the end.
    assert!(sent() >= 20 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn dead_provider_is_replaced() {
    let world = World::new(20 * MIB);
    let first = world.provider("first", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.request());
    reaches(&download, 4 * MIB as u64).await;
    first.die().await;
    world.providers.list.lock().clear();
    world.provider("second", Behavior::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn missing_provider_fails_after_timeout_keeping_pieces() {
    let world = World::new(4 * MIB);
    world.provider("half", Behavior::Honest, |piece| piece >= 8).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let start = Instant::now();
    let error = node.downloader.get(world.request()).wait().await.unwrap_err();
    assert!(matches!(*error, DownloadError::NoProviders { .. }), "{error}");
    let timeout = DownloadSettings::default().provider_timeout;
    assert!(start.elapsed() >= timeout && start.elapsed() < timeout + Duration::from_secs(10));
    let file = node.library.open_file(&world.manifest.id()).await.unwrap().unwrap();
    assert_eq!(file.have_count(), 8);
    // The rest comes from another provider, and no piece is fetched twice.
    let rest = world.provider("rest", Behavior::Honest, |piece| piece < 8).await;
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(rest.sent_bytes(), 2 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn requests_for_same_file_share_one_download() {
    let world = World::new(8 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let first = node.downloader.get(world.request());
    let second = node.downloader.get(world.request());
    // The second waiter still gets the file.
    reaches(&first, MIB as u64).await;
    drop(first);
    second.wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(source.sent_bytes(), 8 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn download_without_waiters_stops_keeping_pieces() {
    let world = World::new(20 * MIB);
    let source = world.provider("source", Behavior::Honest, |_| true).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.request());
    let mut progress = download.progress();
    reaches(&download, 2 * MIB as u64).await;
    drop(download);
    // The end of the transfer drops the progress sender.
    while progress.changed().await.is_ok() {}
    let file = node.library.open_file(&world.manifest.id()).await.unwrap().unwrap();
    let had = u64::from(file.have_count()) * 256 * 1024;
    assert!(had >= 2 * MIB as u64 && !file.is_complete());
    let sent = source.sent_bytes();
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(source.sent_bytes() - sent, 20 * MIB as u64 - had, "no stored piece is fetched again");
}

#[tokio::test(start_paused = true)]
async fn tiny_budget_still_completes() {
    let world = World::new(4 * MIB);
    world.provider("a", Behavior::Honest, |_| true).await;
    world.provider("b", Behavior::Honest, |_| true).await;
    let settings = DownloadSettings { budget_bytes: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Behavior::Honest, settings).await;
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn downloads_share_last_budget_permit() {
    let node_world = World::new(1);
    let settings = DownloadSettings { budget_bytes: 4 * MIB, ..DownloadSettings::default() };
    let node = node_world.node("reader", Behavior::Honest, settings).await;
    // Other transfers use all of the budget but the share of one piece.
    let held = Arc::clone(&node.downloader.context.budget).try_acquire_many_owned(15 * 256).unwrap();
    let mut sources = Vec::new();
    let mut downloads = Vec::new();
    for number in 0..4 {
        let mut world = World::new(2 * MIB + number);
        world.network = node_world.network.clone();
        sources.push(world.provider(&format!("source{number}"), Behavior::Honest, |_| true).await);
        downloads.push((node.downloader.get(world.request()), world));
    }
    for (download, world) in downloads {
        download.wait().await.unwrap();
        world.assert_complete(&node).await;
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn silent_providers_do_not_withhold_piece() {
    let world = World::new(5 * 256 * 1024);
    // They reply to all requests but those for pieces, so their connections are never silent.
    world.provider("one", Behavior::Silent, |piece| piece != 3).await;
    world.provider("two", Behavior::Silent, |piece| piece != 2).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    let download = node.downloader.get(world.request());
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.provider("honest", Behavior::Honest, |_| true).await;
    tokio::time::timeout(Duration::from_secs(600), download.wait()).await.unwrap().unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn useless_provider_is_replaced() {
    let world = World::new(4 * MIB);
    world.provider("half", Behavior::Honest, |piece| piece >= 8).await;
    let settings = DownloadSettings { max_providers: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Behavior::Honest, settings).await;
    let download = node.downloader.get(world.request());
    reaches(&download, 2 * MIB as u64).await;
    world.provider("rest", Behavior::Honest, |piece| piece < 8).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn closed_connection_does_not_use_upload_limit() {
    let world = World::new(4 * MIB);
    let limit = BandwidthLimit::new(NonZeroU64::new(MIB as u64));
    let source = world.node_with("source", Behavior::Honest, DownloadSettings::default(), limit).await;
    world.fill(&source, |_| true).await;
    let start = Instant::now();
    let id = world.manifest.id();
    let endpoint = &source.provider.endpoints[0];
    let request_all = async {
        let connection = Dialer::new(vec![world.network.transport()]).connect(endpoint).await.unwrap();
        let silence = Deadline::Silence(Duration::from_secs(100));
        let calls = world.manifest.layout().pieces().map(|piece| {
            let connection = Arc::clone(&connection);
            let request = PieceRequest { piece, super_seed: false };
            async move { provider::piece(&*connection, connection.next_id(), id, request, silence).await }
        });
        futures::future::join_all(calls).await;
    };
    // The first piece takes a quarter of a second.
    let _ = tokio::time::timeout(Duration::from_millis(300), request_all).await;
    let node = world.node("reader", Behavior::Honest, DownloadSettings::default()).await;
    node.downloader.get(world.request()).wait().await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 6.0, "4 MiB at 1 MiB/s took {seconds} s after requests of a closed connection");
}
