//! Providers that hold requests open without being silent.

use tokio::time::timeout;

use super::*;
use crate::download::fixtures::NeverSilent;
use crate::download::provider::ProviderSource;
use enjambre_core::Dialer;
use enjambre_testkit::transport::intercept::intercepted;

/// Connects the downloads of a node to remotes that are never silent.
fn never_silent(world: &World, node: &mut Node, settings: DownloadSettings) {
    let dialer = Dialer::new(vec![intercepted(world.network.transport(), NeverSilent)]);
    let (library, limit) = (Arc::clone(&node.library), Arc::new(BandwidthLimit::new(None)));
    node.downloader = Downloader::new(library, Arc::new(dialer), limit, None, settings);
}

#[tokio::test(start_paused = true)]
async fn nine_slow_providers_do_not_withhold_small_files() {
    for behavior in [Behavior::Stalls, Behavior::StallsAtOnce] {
        let world = World::new();
        let tree = tree(1, 10);
        let mut slow = Vec::new();
        for _ in 0..9 {
            slow.push(world.provider(&tree, behavior).await);
        }
        let (_honest, id, size) = world.provider(&tree, Behavior::Honest).await;
        let mut node = world.node(Behavior::Honest).await;
        never_silent(&world, &mut node, DownloadSettings::default());
        let got = timeout(Duration::from_secs(45), world.get(&node, (id, size), None));
        assert_eq!(got.await.unwrap().unwrap(), total(&tree));
    }
}

/// More slow providers than are asked at once come before the honest one.
#[tokio::test(start_paused = true)]
async fn late_providers_are_replaced_by_others_of_the_same_lookup() {
    for behavior in [Behavior::Stalls, Behavior::Unsupported] {
        let world = World::new();
        let tree = tree(1, 10);
        let settings = DownloadSettings { max_providers: 2, ..DownloadSettings::default() };
        for _ in 0..3 {
            world.provider(&tree, behavior).await;
        }
        let (honest, id, size) = world.provider(&tree, Behavior::Honest).await;
        let mut node = world.node(Behavior::Honest).await;
        never_silent(&world, &mut node, settings);
        let got = timeout(Duration::from_secs(45), world.get(&node, (id, size), None));
        assert_eq!(got.await.unwrap().unwrap(), total(&tree));
        assert!(honest.seeder.batches.load(Ordering::Relaxed) > 0, "{behavior:?}");
    }
}

/// Returns one of the providers in each lookup, in turn.
#[derive(Default)]
struct OneOfMany {
    all: Vec<Provider>,
    lookups: AtomicUsize,
}

#[async_trait]
impl ProviderSource for OneOfMany {
    async fn providers(&self, _: &FileId) -> Result<Vec<Provider>, String> {
        let lookup = self.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(vec![self.all[lookup % self.all.len()].clone()])
    }
}

#[tokio::test(start_paused = true)]
async fn late_providers_are_replaced_by_others_of_further_lookups() {
    let world = World::new();
    let tree = tree(1, 10);
    for _ in 0..3 {
        world.provider(&tree, Behavior::Stalls).await;
    }
    let (honest, id, size) = world.provider(&tree, Behavior::Honest).await;
    let mut node = world.node(Behavior::Honest).await;
    never_silent(&world, &mut node, DownloadSettings::default());
    let providers = Arc::new(OneOfMany { all: world.providers.list.lock().clone(), ..OneOfMany::default() });
    let kind = FileKind::Collection;
    let request = GetRequest { id, name: None, kind, size, output: None, force: false, durable: false };
    let (progress, _) = watch::channel(Progress::default());
    let got = timeout(Duration::from_secs(45), get(&node.downloader, &request, providers, &progress));
    assert_eq!(got.await.unwrap().unwrap(), total(&tree));
    assert!(honest.seeder.batches.load(Ordering::Relaxed) > 0);
}

#[tokio::test(start_paused = true)]
async fn providers_that_stall_after_a_reply_leave_budget_to_others() {
    let world = World::new();
    let tree: Tree = (0..64).map(|n| (format!("f{n}"), vec![n; 64 * 1024])).collect();
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(world.provider(&tree, Behavior::StallsAfterFirst).await);
    }
    let (_honest, id, size) = world.provider(&tree, Behavior::Honest).await;
    let mut node = world.node(Behavior::Honest).await;
    let settings = DownloadSettings { budget_bytes: 1024 * 1024, ..DownloadSettings::default() };
    never_silent(&world, &mut node, settings);
    let got = timeout(Duration::from_secs(30), world.get(&node, (id, size), None));
    assert_eq!(got.await.expect("the honest provider is used").unwrap(), total(&tree));
    assert!(slow.iter().any(|(slow, ..)| slow.seeder.batches.load(Ordering::Relaxed) > 1));
}
