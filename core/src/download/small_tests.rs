//! Folders of small files over the memory storage and the memory transport, under tokio's paused clock.

use std::collections::BTreeMap;
use std::fs;
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

use super::DownloadError;
use super::downloader::Downloader;
use super::fixtures::{Directory, Place};
use super::get::{Get, get};
use super::progress::Progress;
use super::wanted::DownloadSettings;
use crate::library::content::ContentStore;
use crate::library::library::Library;
use crate::library::settings::LibrarySettings;
use crate::model::id::FileId;
use crate::model::record::{FileKind, Provider};
use crate::protocol::error::{ErrorCode, ErrorReply};
use crate::protocol::message::{Reply, Request};
use crate::protocol::server::Handler;
use crate::publish::{PublishOptions, publish};
use crate::rate::RateLimit;
use crate::seeder::{Seeder, SeederSettings};
use crate::storage::memory::Disk;
use crate::transport::envelope::RequestId;
use crate::transport::memory::MemoryNetwork;
use crate::transport::{Listener, PeerInfo, ReplySink};

/// What a provider does with requests for small files.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Manner {
    Honest,
    /// Does not know this kind of request.
    Old,
    /// Changes a byte of every reply.
    Lies,
    /// Changes a byte of a reply, and has no time for the requests beside it.
    LiesAndRests,
    /// Claims other lengths than it sends.
    Miscounts,
    /// Says of every other file that it is not there.
    Lacks,
    /// Answers one file at a time.
    Meagre,
    /// Is gone after a few requests.
    Dies,
}

const MANNERS: [Manner; 8] = [
    Manner::Honest,
    Manner::Old,
    Manner::Lies,
    Manner::LiesAndRests,
    Manner::Miscounts,
    Manner::Lacks,
    Manner::Meagre,
    Manner::Dies,
];

struct Odd {
    seeder: Seeder,
    manner: Manner,
    batches: AtomicUsize,
    pieces: AtomicUsize,
    listener: Mutex<Option<Arc<dyn Listener>>>,
}

#[async_trait]
impl Handler for Odd {
    async fn handle(
        &self,
        id: RequestId,
        request: Request,
        peer: &PeerInfo,
        sink: &mut dyn ReplySink,
    ) -> Result<(Reply, Bytes), ErrorReply> {
        let Request::Files { mut ids } = request else {
            if matches!(request, Request::Piece { .. }) {
                self.pieces.fetch_add(1, Ordering::Relaxed);
            }
            return self.seeder.handle(id, request, peer, sink).await;
        };
        let before = self.batches.fetch_add(1, Ordering::Relaxed);
        match self.manner {
            Manner::Old => return Err(ErrorReply::new(ErrorCode::Unsupported, "what is that?")),
            Manner::Meagre => ids.truncate(1),
            Manner::LiesAndRests if !before.is_multiple_of(4) => {
                return Err(ErrorReply::new(ErrorCode::Busy, "later").retry_after(Duration::from_millis(10)));
            }
            Manner::Dies if before == 2 => {
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
        match self.manner {
            Manner::Lies | Manner::LiesAndRests if !content.is_empty() => content[0] ^= 1,
            Manner::Miscounts => sizes.push(Some(1)),
            Manner::Lacks => {
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
    providers: Arc<Directory>,
    folder: TempDir,
    nodes: AtomicUsize,
}

struct Node {
    index: Disk,
    content: Disk,
    library: Arc<Library>,
    downloader: Downloader,
    odd: Arc<Odd>,
    provider: Provider,
}

type Tree = BTreeMap<String, Vec<u8>>;

/// A folder of random files: empty ones, ones of one piece and of more, and the same content at several paths.
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
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
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
            folder: TempDir::new().unwrap(),
            nodes: AtomicUsize::new(0),
        }
    }

    async fn node(&self, manner: Manner) -> Node {
        self.node_on(Disk::new(), Disk::new(), manner).await
    }

    async fn node_on(&self, index: Disk, content: Disk, manner: Manner) -> Node {
        let name = format!("n{}", self.nodes.fetch_add(1, Ordering::Relaxed));
        let store = ContentStore::Database(Arc::new(content.open()));
        let library = Library::open(Arc::new(index.open()), store, LibrarySettings::default()).await.unwrap();
        let place = Place::new(&self.network, &name, 0, true).await;
        let (dialer, me) = (Arc::clone(&place.dialer), Some(place.provider.peer));
        let no_limit = || Arc::new(RateLimit::new(None));
        let settings = DownloadSettings { patience: Duration::from_secs(20), ..DownloadSettings::default() };
        let downloader = Downloader::new(Arc::clone(&library), dialer, no_limit(), me, settings);
        let seeder = Seeder::new(Arc::clone(&library), no_limit(), SeederSettings::default());
        let odd = Arc::new(Odd {
            seeder,
            manner,
            batches: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            listener: Mutex::new(Some(Arc::clone(&place.listener))),
        });
        place.serve(Arc::clone(&odd) as Arc<dyn Handler>);
        Node { index, content, library, downloader, odd, provider: place.provider }
    }

    /// A node that publishes the folder, and is known to the others.
    async fn source(&self, tree: &Tree, manner: Manner) -> (Node, FileId, u64) {
        let node = self.node(manner).await;
        let folder = self.folder.path().join(format!("source-{}", self.nodes.load(Ordering::Relaxed)));
        fs::create_dir_all(&folder).unwrap();
        write(&folder, tree);
        let name = Some("folder".parse().unwrap());
        let options = PublishOptions { name, ..PublishOptions::default() };
        let published = publish(&node.library, &folder, options, |_| {}).await.unwrap();
        self.providers.providers.lock().push(node.provider.clone());
        let size = node.library.entry(&published.id).unwrap().size;
        (node, published.id, size)
    }

    async fn get(
        &self,
        node: &Node,
        (id, size): (FileId, u64),
        output: Option<&Path>,
    ) -> Result<u64, Arc<DownloadError>> {
        let what = Get {
            id,
            name: Some("folder".parse().unwrap()),
            kind: FileKind::Collection,
            size,
            output: output.map(Path::to_owned),
            force: false,
            durable: false,
        };
        let (progress, _) = watch::channel(Progress::default());
        get(&node.downloader, &what, Arc::clone(&self.providers) as _, &progress).await
    }
}

fn total(tree: &Tree) -> u64 {
    tree.values().map(|content| content.len() as u64).sum()
}

#[tokio::test(start_paused = true)]
async fn a_folder_of_small_files_comes_in_few_requests_into_the_library_or_a_folder() {
    let world = World::new();
    let tree: Tree = (0..1000).map(|n| (format!("d{}/f{n}", n % 9), n.to_string().into_bytes())).collect();
    let (source, id, size) = world.source(&tree, Manner::Honest).await;
    let to_library = world.node(Manner::Honest).await;
    assert_eq!(world.get(&to_library, (id, size), None).await.unwrap(), total(&tree));
    assert!(source.odd.batches.load(Ordering::Relaxed) <= 4);
    let out = world.folder.path().join("out");
    let to_folder = world.node(Manner::Honest).await;
    assert_eq!(world.get(&to_folder, (id, size), Some(&out)).await.unwrap(), total(&tree));
    assert!(read(&out) == tree);
    assert_eq!(source.odd.batches.load(Ordering::Relaxed), 4);
    assert_eq!(source.odd.pieces.load(Ordering::Relaxed), 2, "the list, once for each");

    // What is there does not come again, neither after a restart.
    assert_eq!(world.get(&to_folder, (id, size), Some(&out)).await.unwrap(), total(&tree));
    to_folder.library.close().await.unwrap();
    let again = world.node_on(to_folder.index.clone(), to_folder.content.clone(), Manner::Honest).await;
    assert_eq!(world.get(&again, (id, size), Some(&out)).await.unwrap(), total(&tree));
    assert_eq!(source.odd.batches.load(Ordering::Relaxed), 4);

    // What the library has itself is copied from there, other content at a path left alone.
    let copied = world.folder.path().join("copied");
    fs::create_dir_all(copied.join("d0")).unwrap();
    fs::write(copied.join("d0/f0"), "mine").unwrap();
    assert!(world.get(&to_library, (id, size), Some(&copied)).await.is_err());
    assert_eq!(fs::read(copied.join("d0/f0")).unwrap(), b"mine");
    fs::remove_file(copied.join("d0/f0")).unwrap();
    world.get(&to_library, (id, size), Some(&copied)).await.unwrap();
    assert!(read(&copied) == tree);
    assert_eq!(source.odd.batches.load(Ordering::Relaxed), 4);

    // Who has it from the network serves it as well.
    world.providers.providers.lock().clear();
    world.providers.providers.lock().push(to_library.provider.clone());
    let third = world.node(Manner::Honest).await;
    let out = world.folder.path().join("third");
    world.get(&third, (id, size), Some(&out)).await.unwrap();
    assert!(read(&out) == tree);
}

#[tokio::test(start_paused = true)]
async fn whatever_one_provider_does_the_folder_arrives_from_the_others() {
    for (seed, manner) in (0..).zip(MANNERS) {
        let world = World::new();
        let tree = tree(seed, 150);
        let (odd, id, size) = world.source(&tree, manner).await;
        if manner != Manner::Honest && manner != Manner::Old {
            world.source(&tree, Manner::Honest).await;
        }
        let node = world.node(Manner::Honest).await;
        assert_eq!(world.get(&node, (id, size), None).await.unwrap(), total(&tree), "{manner:?}");
        let out = world.folder.path().join("out");
        node.library.export(&id, &out, false).await.unwrap();
        assert!(read(&out) == tree, "{manner:?}");
        assert!(odd.odd.batches.load(Ordering::Relaxed) > 0, "{manner:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_liar_alone_delivers_nothing_that_is_wrong() {
    let world = World::new();
    let tree = tree(7, 60);
    let (_, id, size) = world.source(&tree, Manner::Lies).await;
    let node = world.node(Manner::Honest).await;
    let out = world.folder.path().join("out");
    // It lies in batches and not in pieces: one by one all is right.
    world.get(&node, (id, size), Some(&out)).await.unwrap();
    assert!(read(&out) == tree);
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_left_out_although_it_rested_when_that_showed() {
    let world = World::new();
    let tree = tree(8, 150);
    let (source, id, size) = world.source(&tree, Manner::LiesAndRests).await;
    let node = world.node(Manner::Honest).await;
    let got = tokio::time::timeout(Duration::from_secs(60), world.get(&node, (id, size), None));
    assert_eq!(got.await.expect("it asks the liar no more").unwrap(), total(&tree));
    let batches = source.odd.batches.load(Ordering::Relaxed);
    assert!(batches <= 8, "{batches}");
}

#[tokio::test(start_paused = true)]
async fn a_download_that_is_cut_goes_on_where_it_was_and_claims_nothing_else() {
    for seed in 0..6 {
        let world = World::new();
        let tree = tree(100 + seed, 200);
        let (source, id, size) = world.source(&tree, Manner::Meagre).await;
        let out = world.folder.path().join("out");
        let output = (seed % 2 == 0).then_some(&*out);
        let mut node = world.node(Manner::Honest).await;
        for cut in [3, 30, 90] {
            {
                let before = source.odd.batches.load(Ordering::Relaxed);
                let running = world.get(&node, (id, size), output);
                tokio::pin!(running);
                // Until a number of requests was answered: the future is dropped in the middle of the work.
                while source.odd.batches.load(Ordering::Relaxed) < before + cut {
                    tokio::select! {
                        biased;
                        ended = &mut running => { ended.unwrap(); break }
                        () = tokio::task::yield_now() => {}
                    }
                }
            }
            // Killed: what was written is there.
            let (index, content) = (node.index.clone(), node.content.clone());
            node.downloader.shutdown().await;
            node.library.shared.stop.cancel();
            node = world.node_on(index, content, Manner::Honest).await;
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
async fn other_content_at_a_path_is_an_error_and_the_same_is_accepted() {
    let world = World::new();
    let tree = tree(3, 50);
    let (_, id, size) = world.source(&tree, Manner::Honest).await;
    let out = world.folder.path().join("out");
    write(&out, &tree);
    let node = world.node(Manner::Honest).await;
    world.get(&node, (id, size), Some(&out)).await.unwrap();
    let (path, _) = tree.iter().find(|(_, content)| content.len() > 1).unwrap();
    fs::write(out.join(path), "mine").unwrap();
    let other = world.node(Manner::Honest).await;
    assert!(world.get(&other, (id, size), Some(&out)).await.is_err());
    assert_eq!(fs::read(out.join(path)).unwrap(), b"mine");
}

#[tokio::test(start_paused = true)]
async fn without_anybody_it_gives_up_after_its_patience() {
    let world = World::new();
    let tree = tree(5, 30);
    let (source, id, size) = world.source(&tree, Manner::Dies).await;
    let node = world.node(Manner::Honest).await;
    let error = loop {
        // It dies at the third request for small files.
        match world.get(&node, (id, size), None).await {
            Err(error) => break error,
            Ok(_) => {
                for entry in node.library.entries() {
                    let _ = node.library.remove(&entry.id).await;
                }
            }
        }
    };
    assert!(matches!(&*error, DownloadError::Nobody { .. }), "{error}");
    assert!(source.odd.batches.load(Ordering::Relaxed) >= 3);
}
