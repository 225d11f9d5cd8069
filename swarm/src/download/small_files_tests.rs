//! Downloads of collections of small files with memory storage on a memory network, under tokio's paused clock.

mod slow_providers;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::sync::watch;

use super::downloader::Downloader;
use super::error::DownloadError;
use super::fixtures::{NodeEndpoint, StaticProviders};
use super::get::{GetRequest, get};
use super::request::Progress;
use super::settings::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::library::Library;
use crate::library::publish::PublishOptions;
use crate::rate_limit::bandwidth::BandwidthLimit;
use crate::seeder::Seeder;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{Reply, Request};
use enjambre_core::protocol::server::Handler;
use enjambre_core::storage::memory::Disk;
use enjambre_core::transport::memory::MemoryNetwork;
use enjambre_core::{FileId, FileKind, Listener, PeerInfo, Provider, ReplySink, RequestId};

/// How a provider replies to requests for small files.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Behavior {
    Honest,
    /// Does not support the request.
    Unsupported,
    /// Changes a byte of every reply.
    Corrupt,
    /// As `Corrupt`, and replies `busy` to three of four requests.
    CorruptAndBusy,
    /// Claims other sizes than it sends.
    WrongSizes,
    /// Lacks every other file.
    Incomplete,
    /// Replies with one file at a time.
    OneFile,
    /// Dies at the third request.
    Dies,
    /// Never completes a reply to requests for files.
    Stalls,
    /// As `Stalls` from the second request for files on.
    StallsAfterFirst,
    /// Never completes a reply.
    StallsAtOnce,
}

const BEHAVIORS: [Behavior; 8] = [
    Behavior::Honest,
    Behavior::Unsupported,
    Behavior::Corrupt,
    Behavior::CorruptAndBusy,
    Behavior::WrongSizes,
    Behavior::Incomplete,
    Behavior::OneFile,
    Behavior::Dies,
];

struct TestSeeder {
    seeder: Seeder,
    behavior: Behavior,
    batches: AtomicUsize,
    pieces: AtomicUsize,
    listener: Mutex<Option<Arc<dyn Listener>>>,
}

#[async_trait]
impl Handler for TestSeeder {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let is_batch = matches!(request, Request::Files { .. });
        if self.behavior == Behavior::StallsAtOnce || self.behavior == Behavior::Stalls && is_batch {
            std::future::pending::<()>().await;
        }
        let Request::Files { mut ids } = request else {
            if matches!(request, Request::Piece { .. }) {
                self.pieces.fetch_add(1, Ordering::Relaxed);
            }
            return self.seeder.handle(id, request, peer, sink).await;
        };
        let before = self.batches.fetch_add(1, Ordering::Relaxed);
        match self.behavior {
            Behavior::Unsupported => return Err(ErrorReply::new(ErrorCode::Unsupported, "unsupported")),
            Behavior::OneFile => ids.truncate(1),
            Behavior::StallsAfterFirst if before > 0 => std::future::pending().await,
            Behavior::CorruptAndBusy if !before.is_multiple_of(4) => {
                return Err(ErrorReply::new(ErrorCode::Busy, "later").retry_after(Duration::from_millis(10)));
            }
            Behavior::Dies if before == 2 => {
                let listener = self.listener.lock().take();
                if let Some(listener) = listener {
                    listener.shutdown(Duration::ZERO).await;
                }
            }
            _ => {}
        }
        let (reply, payload) = self.seeder.handle(id, Request::Files { ids }, peer, sink).await?;
        let Reply::Files { mut sizes } = reply else { return Ok((reply, payload)) };
        let mut content = payload.to_vec();
        match self.behavior {
            Behavior::Corrupt | Behavior::CorruptAndBusy if !content.is_empty() => content[0] ^= 1,
            Behavior::WrongSizes => sizes.push(Some(1)),
            Behavior::Incomplete => {
                let (mut kept, mut start) = (Vec::new(), 0);
                for (number, size) in sizes.iter_mut().enumerate() {
                    let end = start + size.unwrap_or(0) as usize;
                    match number % 2 {
                        0 => kept.extend_from_slice(&content[start..end]),
                        _ => *size = None,
                    }
                    start = end;
                }
                content = kept;
            }
            _ => {}
        }
        Ok((Reply::Files { sizes }, content.into()))
    }
}

struct World {
    network: MemoryNetwork,
    providers: Arc<StaticProviders>,
    dir: TempDir,
    nodes: AtomicUsize,
}

struct Node {
    index: Disk,
    content: Disk,
    library: Arc<Library>,
    downloader: Downloader,
    seeder: Arc<TestSeeder>,
    provider: Provider,
}

type Tree = BTreeMap<String, Vec<u8>>;

/// Creates random files: empty ones, ones of one piece and of more, and the same content at several paths.
fn tree(seed: u64, files: usize) -> Tree {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tree = Tree::new();
    for number in 0..files {
        let size = match random.random_range(0..20) {
            0 => 0,
            1 => 256 * 1024,
            2 => 256 * 1024 + 1,
            3..6 => random.random_range(1..100_000),
            _ => random.random_range(1..2_000),
        };
        let mut content = vec![0; size];
        random.fill_bytes(&mut content);
        if random.random_range(0..10) == 0
            && let Some(known) = tree.values().nth(random.random_range(0..tree.len().max(1)))
        {
            content = known.clone();
        }
        tree.insert(format!("d{}/f{number}", random.random_range(0..5)), content);
    }
    tree
}

fn write(root: &Path, tree: &Tree) {
    for (path, content) in tree {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                tree.insert(name, fs::read(path).unwrap());
            }
        }
    }
    tree
}

impl World {
    fn new() -> Self {
        Self {
            network: MemoryNetwork::new(),
            providers: Arc::default(),
            dir: TempDir::new().unwrap(),
            nodes: AtomicUsize::new(0),
        }
    }

    async fn node(&self, behavior: Behavior) -> Node {
        self.node_on(Disk::new(), Disk::new(), behavior).await
    }

    async fn node_on(&self, index: Disk, content: Disk, behavior: Behavior) -> Node {
        let name = format!("n{}", self.nodes.fetch_add(1, Ordering::Relaxed));
        let store = ContentStore::Database(Arc::new(content.open()));
        let library = Library::open(Arc::new(index.open()), store).await.unwrap();
        let endpoint = NodeEndpoint::new(&self.network, &name, 0, true).await;
        let (dialer, me) = (Arc::clone(&endpoint.dialer), Some(endpoint.provider.peer));
        let no_limit = || Arc::new(BandwidthLimit::new(None));
        let settings =
            DownloadSettings { provider_timeout: Duration::from_secs(20), ..DownloadSettings::default() };
        let downloader = Downloader::new(Arc::clone(&library), dialer, no_limit(), me, settings);
        let seeder = Seeder::new(Arc::clone(&library), no_limit());
        let seeder = Arc::new(TestSeeder {
            seeder,
            behavior,
            batches: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            listener: Mutex::new(Some(Arc::clone(&endpoint.listener))),
        });
        endpoint.serve(Arc::clone(&seeder) as Arc<dyn Handler>);
        Node { index, content, library, downloader, seeder, provider: endpoint.provider }
    }

    /// Creates a provider that publishes the files as a collection.
    async fn provider(&self, tree: &Tree, behavior: Behavior) -> (Node, FileId, u64) {
        let node = self.node(behavior).await;
        let dir = self.dir.path().join(format!("provider-{}", self.nodes.load(Ordering::Relaxed)));
        fs::create_dir_all(&dir).unwrap();
        write(&dir, tree);
        let name = Some("collection".parse().unwrap());
        let options = PublishOptions { name, ..PublishOptions::default() };
        let published = node.library.publish(&dir, options, |_| {}).await.unwrap();
        self.providers.list.lock().push(node.provider.clone());
        let size = node.library.entry(&published.id).unwrap().size;
        (node, published.id, size)
    }

    async fn get(
        &self,
        node: &Node,
        file: (FileId, u64),
        output: Option<&Path>,
    ) -> Result<u64, Arc<DownloadError>> {
        self.get_as(FileKind::Collection, node, file, output).await
    }

    async fn get_as(
        &self,
        kind: FileKind,
        node: &Node,
        (id, size): (FileId, u64),
        output: Option<&Path>,
    ) -> Result<u64, Arc<DownloadError>> {
        let request = GetRequest {
            id,
            name: Some("collection".parse().unwrap()),
            kind,
            size,
            output: output.map(Path::to_owned),
            force: false,
            durable: false,
        };
        let (progress, _) = watch::channel(Progress::default());
        get(&node.downloader, &request, Arc::clone(&self.providers) as _, &progress).await
    }
}

fn total(tree: &Tree) -> u64 {
    tree.values().map(|content| content.len() as u64).sum()
}

/// Kind and size in a catalogue are claims of a publisher.
#[tokio::test(start_paused = true)]
async fn wrong_kind_and_size_in_catalogue_are_corrected_by_content() {
    let world = World::new();
    let tree: Tree = (0..3).map(|n| (format!("d/f{n}"), vec![n; 100])).collect();
    let (provider, directory, _) = world.provider(&tree, Behavior::Honest).await;
    let original = world.dir.path().join("original");
    fs::write(&original, "a file").unwrap();
    let file = provider.library.publish(&original, PublishOptions::default(), |_| {}).await.unwrap().id;
    for number in 0..2 {
        let to_library = world.node(Behavior::Honest).await;
        let to_path = world.node(Behavior::Honest).await;
        let (dir, copy) =
            [format!("dir{number}"), format!("copy{number}")].map(|name| world.dir.path().join(name)).into();
        // In the second round the library has recorded the kinds already.
        for _ in 0..=number {
            assert_eq!(world.get_as(FileKind::File, &to_library, (directory, 7), None).await.unwrap(), 300);
            let got = world.get_as(FileKind::File, &to_path, (directory, 7), Some(&dir)).await;
            assert_eq!(got.unwrap(), 300);
            assert!(read(&dir) == tree);
            assert_eq!(world.get(&to_library, (file, 7), None).await.unwrap(), 6);
            assert_eq!(world.get(&to_path, (file, 7), Some(&copy)).await.unwrap(), 6);
            assert_eq!(fs::read(&copy).unwrap(), b"a file");
        }
        let kind = |node: &Node, id| node.library.entry(id).unwrap().kind;
        for node in [&to_library, &to_path] {
            assert_eq!(kind(node, &directory), FileKind::Collection);
            assert_eq!(kind(node, &file), FileKind::File);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn copy_of_published_executable_is_executable() {
    let world = World::new();
    let node = world.node(Behavior::Honest).await;
    let [original, copy] = ["original", "copy"].map(|name| world.dir.path().join(name));
    fs::write(&original, "a program").unwrap();
    fs::set_permissions(&original, fs::Permissions::from_mode(0o755)).unwrap();
    let id = node.library.publish(&original, PublishOptions::default(), |_| {}).await.unwrap().id;
    world.get_as(FileKind::File, &node, (id, 9), Some(&copy)).await.unwrap();
    assert!(fs::metadata(&copy).unwrap().permissions().mode() & 0o100 != 0);
}

#[tokio::test(start_paused = true)]
async fn small_files_are_fetched_in_few_requests() {
    let world = World::new();
    let tree: Tree = (0..1000).map(|n| (format!("d{}/f{n}", n % 9), n.to_string().into_bytes())).collect();
    let (provider, id, size) = world.provider(&tree, Behavior::Honest).await;
    let to_library = world.node(Behavior::Honest).await;
    assert_eq!(world.get(&to_library, (id, size), None).await.unwrap(), total(&tree));
    assert!(provider.seeder.batches.load(Ordering::Relaxed) <= 4);
    let out = world.dir.path().join("out");
    let to_dir = world.node(Behavior::Honest).await;
    assert_eq!(world.get(&to_dir, (id, size), Some(&out)).await.unwrap(), total(&tree));
    assert!(read(&out) == tree);
    assert_eq!(provider.seeder.batches.load(Ordering::Relaxed), 4);
    assert_eq!(provider.seeder.pieces.load(Ordering::Relaxed), 2, "the list, once for each download");

    // Stored files are not fetched again, even after a restart.
    assert_eq!(world.get(&to_dir, (id, size), Some(&out)).await.unwrap(), total(&tree));
    to_dir.library.close().await.unwrap();
    let again = world.node_on(to_dir.index.clone(), to_dir.content.clone(), Behavior::Honest).await;
    assert_eq!(world.get(&again, (id, size), Some(&out)).await.unwrap(), total(&tree));
    assert_eq!(provider.seeder.batches.load(Ordering::Relaxed), 4);

    // Files in the library are copied, and other content at a path is not replaced.
    let copied = world.dir.path().join("copied");
    fs::create_dir_all(copied.join("d0")).unwrap();
    fs::write(copied.join("d0/f0"), "mine").unwrap();
    assert!(world.get(&to_library, (id, size), Some(&copied)).await.is_err());
    assert_eq!(fs::read(copied.join("d0/f0")).unwrap(), b"mine");
    fs::remove_file(copied.join("d0/f0")).unwrap();
    world.get(&to_library, (id, size), Some(&copied)).await.unwrap();
    assert!(read(&copied) == tree);
    assert_eq!(provider.seeder.batches.load(Ordering::Relaxed), 4);

    // A peer that downloaded the collection serves it as well.
    world.providers.list.lock().clear();
    world.providers.list.lock().push(to_library.provider.clone());
    let third = world.node(Behavior::Honest).await;
    let out = world.dir.path().join("third");
    world.get(&third, (id, size), Some(&out)).await.unwrap();
    assert!(read(&out) == tree);
}

#[tokio::test(start_paused = true)]
async fn collection_completes_despite_misbehaving_provider() {
    for (seed, behavior) in (0..).zip(BEHAVIORS) {
        let world = World::new();
        let tree = tree(seed, 150);
        let (provider, id, size) = world.provider(&tree, behavior).await;
        if behavior != Behavior::Honest && behavior != Behavior::Unsupported {
            world.provider(&tree, Behavior::Honest).await;
        }
        let node = world.node(Behavior::Honest).await;
        assert_eq!(world.get(&node, (id, size), None).await.unwrap(), total(&tree), "{behavior:?}");
        let out = world.dir.path().join("out");
        node.library.export(&id, &out, false).await.unwrap();
        assert!(read(&out) == tree, "{behavior:?}");
        assert!(provider.seeder.batches.load(Ordering::Relaxed) > 0, "{behavior:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn corrupt_batches_are_never_stored() {
    let world = World::new();
    let tree = tree(7, 60);
    let (_, id, size) = world.provider(&tree, Behavior::Corrupt).await;
    let node = world.node(Behavior::Honest).await;
    let out = world.dir.path().join("out");
    // Only batches are corrupt; single downloads are not.
    world.get(&node, (id, size), Some(&out)).await.unwrap();
    assert!(read(&out) == tree);
}

#[tokio::test(start_paused = true)]
async fn backed_off_provider_is_banned_for_invalid_data() {
    let world = World::new();
    let tree = tree(8, 150);
    let (provider, id, size) = world.provider(&tree, Behavior::CorruptAndBusy).await;
    let node = world.node(Behavior::Honest).await;
    let got = tokio::time::timeout(Duration::from_secs(60), world.get(&node, (id, size), None));
    assert_eq!(got.await.expect("the banned provider is not used").unwrap(), total(&tree));
    let batches = provider.seeder.batches.load(Ordering::Relaxed);
    assert!(batches <= 8, "{batches}");
}

#[tokio::test(start_paused = true)]
async fn interrupted_download_resumes_with_valid_files() {
    for seed in 0..6 {
        let world = World::new();
        let tree = tree(100 + seed, 200);
        let (provider, id, size) = world.provider(&tree, Behavior::OneFile).await;
        let out = world.dir.path().join("out");
        let output = (seed % 2 == 0).then_some(&*out);
        let mut node = world.node(Behavior::Honest).await;
        for cut in [3, 30, 90] {
            {
                let before = provider.seeder.batches.load(Ordering::Relaxed);
                let running = world.get(&node, (id, size), output);
                tokio::pin!(running);
                // The future is dropped after a number of requests.
                while provider.seeder.batches.load(Ordering::Relaxed) < before + cut {
                    tokio::select! {
                        biased;
                        ended = &mut running => { ended.unwrap(); break }
                        () = tokio::task::yield_now() => {}
                    }
                }
            }
            // Simulates a crash: written content remains.
            let (index, content) = (node.index.clone(), node.content.clone());
            node.downloader.shutdown().await;
            node.library.inner.stop.cancel();
            node = world.node_on(index, content, Behavior::Honest).await;
            for entry in node.library.entries() {
                assert!(node.library.verify(&entry.id).await.unwrap().bad.is_empty(), "seed {seed}");
            }
        }
        assert_eq!(world.get(&node, (id, size), output).await.unwrap(), total(&tree), "seed {seed}");
        if output.is_none() {
            node.library.export(&id, &out, false).await.unwrap();
        }
        assert!(read(&out) == tree, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_content_at_path_is_an_error() {
    let world = World::new();
    let tree = tree(3, 50);
    let (_, id, size) = world.provider(&tree, Behavior::Honest).await;
    let out = world.dir.path().join("out");
    write(&out, &tree);
    let node = world.node(Behavior::Honest).await;
    world.get(&node, (id, size), Some(&out)).await.unwrap();
    let (path, _) = tree.iter().find(|(_, content)| content.len() > 1).unwrap();
    fs::write(out.join(path), "mine").unwrap();
    let other = world.node(Behavior::Honest).await;
    assert!(world.get(&other, (id, size), Some(&out)).await.is_err());
    assert_eq!(fs::read(out.join(path)).unwrap(), b"mine");
}

#[tokio::test(start_paused = true)]
async fn missing_provider_fails_after_timeout() {
    let world = World::new();
    let tree = tree(5, 30);
    let (provider, id, size) = world.provider(&tree, Behavior::Dies).await;
    let node = world.node(Behavior::Honest).await;
    let error = loop {
        // The provider dies at the third request.
        match world.get(&node, (id, size), None).await {
            Err(error) => break error,
            Ok(_) => {
                for entry in node.library.entries() {
                    let _ = node.library.remove(&entry.id).await;
                }
            }
        }
    };
    assert!(matches!(&*error, DownloadError::NoProviders { .. }), "{error}");
    assert!(provider.seeder.batches.load(Ordering::Relaxed) >= 3);
}
