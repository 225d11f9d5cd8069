//! Who is slow, busy, silent or gone: what it costs, and what is sent in vain.

use super::*;

fn rate(bytes: usize) -> RateLimit {
    RateLimit::new(NonZeroU64::new(bytes as u64))
}

async fn reader(world: &World) -> Node {
    world.node("reader", Manner::Honest, DownloadSettings::default()).await
}

#[tokio::test(start_paused = true)]
async fn at_the_end_a_slow_source_holds_nothing_up_and_what_it_need_not_send_is_called_off() {
    let world = World::new(16 * MIB);
    let slow = world.node_with("slow", Manner::Honest, DownloadSettings::default(), rate(MIB / 4)).await;
    world.fill(&slow, |_| true).await;
    let fast = world.node_with("fast", Manner::Honest, DownloadSettings::default(), rate(4 * MIB)).await;
    world.fill(&fast, |_| true).await;
    let node = reader(&world).await;
    let begun = tokio::time::Instant::now();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    let took = begun.elapsed();
    world.assert_complete(&node).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Time enough to send what is still asked for.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let sent = slow.seeder.seeder.sent() + fast.seeder.seeder.sent();
    let in_vain = sent - 16 * MIB as u64;
    assert!(slow.seeder.seeder.sent() > 0 && in_vain <= MIB as u64, "{in_vain} bytes were sent in vain");
}

#[tokio::test(start_paused = true)]
async fn a_busy_source_is_left_alone_for_as_long_as_it_says_and_then_used() {
    let world = World::new(8 * MIB);
    let busy = world.source("busy", Manner::BusyAtFirst, |_| true).await;
    let node = reader(&world).await;
    let begun = tokio::time::Instant::now();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    // Eight at first, and then one each half a second.
    let took = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(busy.seeder.seeder.sent(), 8 * MIB as u64);
}

#[tokio::test(start_paused = true)]
async fn who_is_always_busy_and_wants_to_be_asked_at_once_is_asked_seldom_and_is_no_reason_to_wait() {
    // With pieces, and already with what it is asked first.
    for manner in [Manner::BusyAtOnce, Manner::BusyWithAll] {
        let world = World::new(8 * MIB);
        let busy = world.source("busy", manner, |_| true).await;
        let node = reader(&world).await;
        let begun = tokio::time::Instant::now();
        let download = node.downloader.get(world.wanted());
        let error = download.wait().await.unwrap_err();
        assert!(
            matches!(&*error, DownloadError::Nobody { .. }) && error.to_string().contains("busy"),
            "{error}"
        );
        let settings = DownloadSettings::default();
        let took = begun.elapsed();
        assert!(took < 2 * settings.patience + settings.silence, "{took:?}");
        let refused = busy.seeder.refused.load(Relaxed);
        assert!((2..500).contains(&refused), "it was asked {refused} times");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_busy_for_long_and_then_has_time_is_waited_for() {
    let world = World::new(8 * MIB);
    let _busy = world.source("busy", Manner::BusyForLong, |_| true).await;
    let node = reader(&world).await;
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_in_the_middle_of_pieces_costs_only_those() {
    let world = World::new(8 * MIB);
    let first = world.node_with("first", Manner::Honest, DownloadSettings::default(), rate(MIB)).await;
    world.fill(&first, |_| true).await;
    let node = reader(&world).await;
    let download = node.downloader.get(world.wanted());
    let had = reaches(&download, 2 * MIB as u64).await.done;
    // A piece takes a quarter of a second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    first.die().await;
    world.directory.providers.lock().clear();
    let second = world.source("second", Manner::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    assert_eq!(second.seeder.seeder.sent(), 8 * MIB as u64 - had);
}

#[tokio::test(start_paused = true)]
async fn who_answers_everything_but_requests_for_pieces_is_no_reason_to_wait() {
    let world = World::new(4 * MIB);
    // It has not all of it, so that it is asked again and again what it has by now, and answers.
    world.source("silent", Manner::Silent, |piece| piece != 3).await;
    let node = reader(&world).await;
    let begun = tokio::time::Instant::now();
    let download = node.downloader.get(world.wanted());
    let result = tokio::time::timeout(Duration::from_secs(600), download.wait());
    let error = result.await.unwrap().unwrap_err();
    assert!(matches!(&*error, DownloadError::Nobody { .. }), "{error}");
    let settings = DownloadSettings::default();
    let took = begun.elapsed();
    assert!(took < settings.patience + settings.silence * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_sends_nothing_makes_room_for_another_after_its_silence() {
    let world = World::new(4 * MIB);
    world.source("silent", Manner::Silent, |piece| piece != 3).await;
    let settings = DownloadSettings { max_providers: 1, ..DownloadSettings::default() };
    let node = world.node("reader", Manner::Honest, settings).await;
    let begun = tokio::time::Instant::now();
    let download = node.downloader.get(world.wanted());
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.source("honest", Manner::Honest, |_| true).await;
    download.wait().await.unwrap();
    world.assert_complete(&node).await;
    let took = begun.elapsed();
    assert!(took < settings.silence * 2, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_downloads_is_not_taken_for_silence() {
    let mut world = World::new(2 * MIB);
    // A piece takes 16 s, longer than anybody may be silent.
    world.download = NonZeroU64::new(16 * 1024);
    world.source("a", Manner::Honest, |piece| piece != 3).await;
    world.source("b", Manner::Honest, |piece| piece != 2).await;
    let node = reader(&world).await;
    let begun = tokio::time::Instant::now();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let took = begun.elapsed().as_secs_f64() / 128.0;
    assert!((0.9..1.3).contains(&took), "it took {took} times as long as the limit says");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_takes_nothing_from_the_limit_on_downloads() {
    let mut world = World::new(4 * MIB);
    world.download = NonZeroU64::new(MIB as u64);
    // Where there are traders, sources are asked sparingly.
    world.source("trader", Manner::Honest, |piece| piece == 15).await;
    let refuser = world.source("refuser", Manner::Refuses, |_| true).await;
    world.source("source", Manner::Honest, |_| true).await;
    let node = reader(&world).await;
    let file = NewFile { name: None, kind: FileKind::File, member_of: None };
    node.library.create(world.manifest.clone(), file, Destination::Library).await.unwrap();
    let begun = tokio::time::Instant::now();
    node.downloader.get(world.wanted()).wait().await.unwrap();
    world.assert_complete(&node).await;
    let refused = refuser.seeder.refused.load(Relaxed);
    let took = begun.elapsed().as_secs_f64() / 4.0;
    assert!(took < 1.19, "it took {took} times as long as the limit says, with {refused} refused");
}
