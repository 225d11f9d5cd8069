//! Slow, busy, silent and dead providers: their effect on a download, and superfluous transfers.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::world::{Behavior, MIB, Node, World, reaches};
use crate::download::downloader::Downloader;
use crate::download::error::DownloadError;
use crate::download::fixtures::NeverSilent;
use crate::download::settings::DownloadSettings;
use crate::library::entry::NewFile;
use crate::library::output::Destination;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::{Dialer, FileKind};
use enjambre_testkit::transport::intercept::intercepted;

fn rate(bytes: usize) -> BandwidthLimit {
    BandwidthLimit::new(NonZeroU64::new(bytes as u64))
}

async fn reader(world: &World) -> Node {
    world.node("reader", Behavior::Honest, DownloadSettings::default()).await
}

#[tokio::test(start_paused = true)]
async fn slow_provider_does_not_delay_end() {
    let world = World::new(16 * MIB);
    let slow = world.node_with("slow", Behavior::Honest, DownloadSettings::default(), rate(MIB / 4)).await;
    world.fill(&slow, |_| true).await;
    let fast = world.node_with("fast", Behavior::Honest, DownloadSettings::default(), rate(4 * MIB)).await;
    world.fill(&fast, |_| true).await;
    let node = reader(&world).await;
    let start = Instant::now();
    node.downloader.get(world.request()).wait().await.unwrap();
    let took = start.elapsed();
    world.assert_complete(&node).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Enough time for all pending requests.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let sent = slow.sent_bytes() + fast.sent_bytes();
    let superfluous = sent - 16 * MIB as u64;
    assert!(slow.sent_bytes() > 0 && superfluous <= MIB as u64, "{superfluous} superfluous bytes were sent");
}

#[tokio::test(start_paused = true)]
async fn busy_provider_backs_off_and_is_used_later() {
    let world = World::new(8 * MIB);
    let busy = world.provider("busy", Behavior::BusyAtFirst, |_| true).await;
    let node = reader(&world).await;
    let start = Instant::now();
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    // Eight requests initially, then one each 500 ms.
    let took = start.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(busy.sent_bytes(), 8 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn always_busy_provider_fails_download() {
    // Busy for pieces only, and for all requests.
    for behavior in [Behavior::BusyRetryNow, Behavior::BusyForAll] {
        let world = World::new(8 * MIB);
        let busy = world.provider("busy", behavior, |_| true).await;
        let node = reader(&world).await;
        let start = Instant::now();
        let download = node.downloader.get(world.request());
        let error = download.wait().await.unwrap_err();
        assert!(
            matches!(&*error, DownloadError::NoProviders { .. }) && error.to_string().contains("busy"),
            "{error}"
        );
        let settings = DownloadSettings::default();
        let took = start.elapsed();
        assert!(took < 2 * settings.provider_timeout + settings.silence_timeout, "{took:?}");
        let refused = busy.seeder.refused.load(Relaxed);
        assert!((2..500).contains(&refused), "{refused} requests");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_providers_one_after_another_fail_download() {
    let world = World::new(8 * MIB);
    let node = reader(&world).await;
    let settings = DownloadSettings::default();
    let start = Instant::now();
    let download = node.downloader.get(world.request());
    let waiting = download.wait();
    tokio::pin!(waiting);
    let mut busy = Vec::new();
    let error = loop {
        let took = start.elapsed();
        assert!(took < 3 * settings.provider_timeout + settings.silence_timeout, "{took:?}");
        busy.push(world.provider(&format!("busy-{}", busy.len()), Behavior::BusyForAll, |_| true).await);
        if let Ok(result) = timeout(settings.provider_timeout / 4, &mut waiting).await {
            break result.unwrap_err();
        }
    };
    assert!(matches!(&*error, DownloadError::NoProviders { .. }), "{error}");
    assert!(busy.len() > 5 && start.elapsed() > settings.provider_timeout, "busy providers are awaited");
}

#[tokio::test(start_paused = true)]
async fn long_busy_provider_is_awaited() {
    let world = World::new(8 * MIB);
    let _busy = world.provider("busy", Behavior::BusyForLong, |_| true).await;
    let node = reader(&world).await;
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn dead_provider_loses_only_pending_pieces() {
    let world = World::new(8 * MIB);
    let first = world.node_with("first", Behavior::Honest, DownloadSettings::default(), rate(MIB)).await;
    world.fill(&first, |_| true).await;
    let node = reader(&world).await;
    let download = node.downloader.get(world.request());
    let had = reaches(&download, 2 * MIB as u64).await.done;
    // A piece takes 250 ms.
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.die().await;
    world.providers.list.lock().clear();
    let second = world.provider("second", Behavior::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(second.sent_bytes(), 8 * MIB as u64 - had);
}

#[tokio::test(start_paused = true)]
async fn provider_without_pieces_fails_download() {
    let world = World::new(4 * MIB);
    // A partial provider, so that it keeps replying to `have` requests.
    world.provider("silent", Behavior::Silent, |piece| piece != 3).await;
    let node = reader(&world).await;
    let start = Instant::now();
    let download = node.downloader.get(world.request());
    let result = tokio::time::timeout(Duration::from_secs(600), download.wait());
    let error = result.await.unwrap().unwrap_err();
    assert!(matches!(&*error, DownloadError::NoProviders { .. }), "{error}");
    let settings = DownloadSettings::default();
    let took = start.elapsed();
    assert!(took < settings.provider_timeout + settings.silence_timeout * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn silent_provider_is_replaced_after_timeout() {
    let world = World::new(4 * MIB);
    world.provider("silent", Behavior::Silent, |piece| piece != 3).await;
    let settings = DownloadSettings { max_providers: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Behavior::Honest, settings).await;
    let start = Instant::now();
    let download = node.downloader.get(world.request());
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.provider("honest", Behavior::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    let took = start.elapsed();
    assert!(took < settings.silence_timeout * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn download_limit_does_not_count_as_silence() {
    let mut world = World::new(2 * MIB);
    // A piece takes 16 s, longer than the silence timeout.
    world.download = NonZeroU64::new(16 * 1024);
    world.provider("a", Behavior::Honest, |piece| piece != 3).await;
    world.provider("b", Behavior::Honest, |piece| piece != 2).await;
    let node = reader(&world).await;
    let start = Instant::now();
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let took = start.elapsed().as_secs_f64() / 128.0;
    assert!((0.9..1.3).contains(&took), "took {took} times as long as the limit requires");
}

#[tokio::test(start_paused = true)]
async fn refused_requests_do_not_use_download_limit() {
    let mut world = World::new(4 * MIB);
    world.download = NonZeroU64::new(MIB as u64);
    // A partial provider, so that complete ones are asked with super-seeding.
    world.provider("partial", Behavior::Honest, |piece| piece == 15).await;
    let refuser = world.provider("refuser", Behavior::AlreadySent, |_| true).await;
    world.provider("source", Behavior::Honest, |_| true).await;
    let node = reader(&world).await;
    let file = NewFile { name: None, kind: FileKind::File, member_of: None };
    node.library.create(world.manifest.clone(), file, Destination::Library).await.unwrap();
    let start = Instant::now();
    node.downloader.get(world.request()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let refused = refuser.seeder.refused.load(Relaxed);
    let took = start.elapsed().as_secs_f64() / 4.0;
    assert!(took < 1.19, "took {took} times as long as the limit requires, with {refused} refused requests");
}

#[tokio::test(start_paused = true)]
async fn nine_slow_provers_do_not_fail_download() {
    for stage in 0..3 {
        let world = World::new(16 * MIB);
        for number in 0..9 {
            // They send a byte now and then, and never complete a reply.
            world.provider(&format!("slow-{number}"), Behavior::Stalls(stage), |_| true).await;
        }
        // Keys follow the order of the list, so this one is the last to be asked.
        world.provider("honest", Behavior::Honest, |_| true).await;
        let node = reader(&world).await;
        let dialer = Dialer::new(vec![intercepted(world.network.transport(), NeverSilent)]);
        let (library, limit) = (Arc::clone(&node.library), Arc::new(BandwidthLimit::new(None)));
        let settings = DownloadSettings::default();
        let downloader = Downloader::new(library, Arc::new(dialer), limit, None, settings);
        let start = Instant::now();
        downloader.get(world.request()).wait().await.unwrap();
        world.assert_complete(&node).await;
        let took = start.elapsed();
        assert!(took < settings.provider_timeout / 2, "{took:?} with slow replies of kind {stage}");
    }
}
