//! Tests of publishing files and directories.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::*;
use crate::library::content::ContentStore;
use crate::library::entry::{Location, NewFile, PublishedVersion};
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::library::output::Destination;
use enjambre_core::storage::memory::Disk;
use enjambre_core::{CatalogueId, FileId, FileKind, UnixMillis};
use enjambre_testkit::storage::fault::{Fault, FaultyStorage, Operation, When};

struct Rig {
    index: Disk,
    content: Disk,
    dir: TempDir,
}

impl Rig {
    fn new() -> Self {
        Self { index: Disk::new(), content: Disk::new(), dir: TempDir::new().unwrap() }
    }

    async fn open(&self) -> Arc<Library> {
        let content = ContentStore::Database(Arc::new(self.content.open()));
        Library::open(Arc::new(self.index.open()), content).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn publish(&self, library: &Arc<Library>, name: &str) -> Result<Published, PublishError> {
        library.publish(&self.path(name), PublishOptions::default(), |_| {}).await
    }

    async fn store(&self, library: &Arc<Library>, name: &str) -> Result<Published, PublishError> {
        let options = PublishOptions { store: true, ..PublishOptions::default() };
        library.publish(&self.path(name), options, |_| {}).await
    }
}

fn pattern(len: usize, step: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8 ^ step).collect()
}

async fn content_of(library: &Library, id: &FileId) -> Vec<u8> {
    let file = library.open_file(id).await.unwrap().unwrap();
    let mut content = Vec::new();
    for piece in file.layout().pieces() {
        content.extend_from_slice(&file.read_piece(piece).await.unwrap());
    }
    content
}

#[tokio::test]
async fn published_file_has_blake3_id_and_survives_power_cut() {
    let rig = Rig::new();
    let library = rig.open().await;
    for len in [0, 1, 256 << 10, (3 << 20) + 17] {
        let name = format!("file-{len}");
        let content = pattern(len, 1);
        fs::write(rig.path(&name), &content).unwrap();
        let last = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&last);
        let record = move |progress: PublishProgress| {
            let mut seen = seen.lock();
            *seen = (*seen).max(Some(progress.done));
        };
        let published = library.publish(&rig.path(&name), PublishOptions::default(), record).await.unwrap();
        assert_eq!(*last.lock(), Some(len as u64));
        assert_eq!(published.id.as_bytes(), blake3::hash(&content).as_bytes());
        assert_eq!((published.size, published.files, published.kind), (len as u64, 1, FileKind::File));
    }
    drop(library);
    rig.index.power_cut();
    let library = rig.open().await;
    for len in [0, 1, 256 << 10, (3 << 20) + 17] {
        let entry = library.find(&format!("file-{len}")).unwrap();
        assert!(entry.is_complete());
        let path = rig.path(&format!("file-{len}")).canonicalize().unwrap();
        assert_eq!(entry.location, Location::Linked { path });
        assert_eq!(content_of(&library, &entry.id).await, pattern(len, 1));
    }
    assert_eq!(library.offers().len(), 4);
}

#[tokio::test]
async fn executable_file_is_published_and_exported_as_such() {
    let rig = Rig::new();
    fs::create_dir(rig.path("dir")).unwrap();
    for (path, mode) in [("tool", 0o755), ("dir/tool", 0o644)] {
        fs::write(rig.path(path), "#!/bin/sh\n").unwrap();
        fs::set_permissions(rig.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let library = rig.open().await;
    let id = rig.publish(&library, "tool").await.unwrap().id;
    // The mode of a member does not change that of the file with the name.
    rig.publish(&library, "dir").await.unwrap();
    let kinds: Vec<FileKind> =
        library.pending_publications(CatalogueId([1; 16])).into_iter().map(|file| file.kind).collect();
    assert_eq!(kinds, [FileKind::Executable, FileKind::Collection]);
    library.export(&id, &rig.path("copy"), false).await.unwrap();
    assert!(fs::metadata(rig.path("copy")).unwrap().permissions().mode() & 0o100 != 0);
    // It is no longer executable.
    fs::set_permissions(rig.path("tool"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(rig.publish(&library, "tool").await.unwrap().kind, FileKind::File);
    library.export(&id, &rig.path("plain"), false).await.unwrap();
    assert!(fs::metadata(rig.path("plain")).unwrap().permissions().mode() & 0o100 == 0);
}

#[tokio::test]
async fn stored_copy_replaces_link_and_outlives_user_file() {
    let rig = Rig::new();
    let library = rig.open().await;
    let content = pattern(9 << 20, 2);
    fs::write(rig.path("a"), &content).unwrap();
    let linked = rig.publish(&library, "a").await.unwrap();
    let stored = rig.store(&library, "a").await.unwrap();
    assert_eq!(linked, stored);
    assert_eq!(library.find("a").unwrap().location, Location::Database);
    // A link does not replace content in the library's own store.
    rig.publish(&library, "a").await.unwrap();
    assert_eq!(library.find("a").unwrap().location, Location::Database);
    fs::remove_file(rig.path("a")).unwrap();
    drop(library);
    rig.index.power_cut();
    rig.content.power_cut();
    let library = rig.open().await;
    assert_eq!(content_of(&library, &stored.id).await, content);
    assert!(library.verify(&stored.id).await.unwrap().bad.is_empty());
}

#[tokio::test]
async fn directory_is_published_as_collection_of_regular_files() {
    for store in [false, true] {
        let rig = Rig::new();
        let library = rig.open().await;
        fs::create_dir_all(rig.path("d/sub/empty")).unwrap();
        fs::write(rig.path("secret"), b"outside").unwrap();
        fs::write(rig.path("d/a"), b"one").unwrap();
        fs::write(rig.path("d/b"), b"one").unwrap();
        fs::write(rig.path("d/sub/nothing"), b"").unwrap();
        fs::write(rig.path("d/sub/run.sh"), pattern(600_000, 1)).unwrap();
        fs::set_permissions(rig.path("d/sub/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink(rig.path("secret"), rig.path("d/link")).unwrap();
        symlink("..", rig.path("d/sub/up")).unwrap();
        let published =
            if store { rig.store(&library, "d").await } else { rig.publish(&library, "d").await }.unwrap();
        assert_eq!((published.files, published.skipped.links, published.size), (4, 2, 600_006));
        drop(library);
        rig.index.power_cut();
        rig.content.power_cut();
        let library = rig.open().await;
        let entry = library.find("d").unwrap();
        assert_eq!((entry.kind, entry.id), (FileKind::Collection, published.id));
        let collection = library.collection(&entry.id).await.unwrap();
        let paths: Vec<_> = collection.members().iter().map(|member| member.path.as_str()).collect();
        assert_eq!(paths, ["a", "b", "sub/nothing", "sub/run.sh"]);
        assert_eq!(collection.directories(), ["sub/empty".parse().unwrap()]);
        library.export(&entry.id, &rig.path("out"), false).await.unwrap();
        assert!(rig.path("out/sub/empty").is_dir());
        fs::remove_dir_all(rig.path("out")).unwrap();
        assert!(collection.members()[3].executable && !collection.members()[0].executable);
        for member in collection.members() {
            let expected = fs::read(rig.path("d").join(member.path.as_str())).unwrap();
            assert_eq!(content_of(&library, &member.id).await, expected);
            let entry = library.entry(&member.id).unwrap();
            assert_eq!((entry.name, entry.location == Location::Database), (None, store));
        }
        assert_eq!(library.offers().len(), 1);
        library.remove(&published.id).await.unwrap();
        assert!(library.entries().is_empty());
        assert!(rig.path("d/a").exists());
    }
}

#[tokio::test]
async fn file_that_vanishes_while_a_directory_is_hashed_is_skipped() {
    let rig = Rig::new();
    let library = rig.open().await;
    fs::create_dir(rig.path("d")).unwrap();
    // More than there are workers, which report each file.
    let kept = 40;
    for number in 0..kept {
        fs::write(rig.path(&format!("d/{number}")), [number]).unwrap();
    }
    for strict in [false, true] {
        let last = rig.path("d/z");
        fs::write(&last, b"z").unwrap();
        let options = PublishOptions { strict, ..PublishOptions::default() };
        let remove_last = move |_: PublishProgress| drop(fs::remove_file(&last));
        match library.publish(&rig.path("d"), options, remove_last).await {
            Ok(published) => {
                assert!(!strict);
                assert_eq!((published.files, published.skipped.others), (u64::from(kept), 1));
            }
            Err(error) => assert!(strict, "{error}"),
        }
    }
}

#[tokio::test]
async fn empty_directory_is_published() {
    let rig = Rig::new();
    let library = rig.open().await;
    fs::create_dir(rig.path("d")).unwrap();
    let published = rig.publish(&library, "d").await.unwrap();
    assert!(library.collection(&published.id).await.unwrap().members().is_empty());
}

#[tokio::test]
async fn unpublishable_paths_are_refused() {
    let rig = Rig::new();
    let library = rig.open().await;
    assert!(matches!(rig.publish(&library, "none").await, Err(PublishError::Missing)));
    fs::create_dir(rig.path("d")).unwrap();
    let bad = rig.path("d").join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::write(&bad, b"x").unwrap();
    let alone = library.publish(&bad, PublishOptions::default(), |_| {}).await;
    assert!(matches!(alone, Err(PublishError::NotUtf8 { .. })));
    fs::remove_file(&bad).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("d/socket")).unwrap();
    assert!(matches!(rig.publish(&library, "d/socket").await, Err(PublishError::Special { .. })));
    fs::write(rig.path("deadbeef"), b"x").unwrap();
    assert!(matches!(rig.publish(&library, "deadbeef").await, Err(PublishError::Name(_))));
    let name = Some("beef".parse().unwrap());
    let options = PublishOptions { name, ..PublishOptions::default() };
    library.publish(&rig.path("deadbeef"), options, |_| {}).await.unwrap();
    // Files without a fixed size.
    for path in ["/proc/self/status", "/proc/version"] {
        let options = PublishOptions { name: Some("proc".parse().unwrap()), ..PublishOptions::default() };
        let refused = library.publish(std::path::Path::new(path), options, |_| {}).await;
        assert!(matches!(refused, Err(PublishError::UnknownSize(_))), "{path}: {refused:?}");
    }
    assert_eq!(library.entries().len(), 1);
}

#[tokio::test]
async fn unpublishable_entries_of_directory_are_skipped() {
    let rig = Rig::new();
    let library = rig.open().await;
    fs::create_dir_all(rig.path("d/lost+found")).unwrap();
    fs::write(rig.path("d/good"), b"x").unwrap();
    fs::write(rig.path("d/back\\slash"), b"x").unwrap();
    fs::write(rig.path("d/x.enjambre-part"), b"x").unwrap();
    fs::write(rig.path("d").join(std::ffi::OsStr::from_bytes(b"\xff")), b"x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("d/socket")).unwrap();
    let mut others = 4;
    // The superuser can read everything.
    if !rustix::process::geteuid().is_root() {
        fs::write(rig.path("d/secret"), b"x").unwrap();
        fs::set_permissions(rig.path("d/secret"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(rig.path("d/lost+found"), fs::Permissions::from_mode(0o0)).unwrap();
        others += 2;
    }
    let published = rig.publish(&library, "d").await.unwrap();
    assert_eq!((published.files, published.skipped.others), (1, others), "{:?}", published.skipped);
    assert!(published.skipped.reasons.iter().any(|reason| reason.contains("backslash")));
    let strict = PublishOptions { strict: true, ..PublishOptions::default() };
    assert!(library.publish(&rig.path("d"), strict.clone(), |_| {}).await.is_err());
    fs::set_permissions(rig.path("d/lost+found"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir_all(rig.path("d/sub/cache")).unwrap();
    for name in ["d/sub/a.tmp", "d/sub/keep", "d/sub/cache/b"] {
        fs::write(rig.path(name), name).unwrap();
    }
    let exclude = ["*.tmp", "sub/cache/", "back*", "x.*", "*\u{fffd}*", "socket", "secret"];
    fs::remove_file(rig.path("d").join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap();
    let options = PublishOptions { exclude: exclude.map(str::to_owned).to_vec(), ..strict };
    let published = library.publish(&rig.path("d"), options, |_| {}).await.unwrap();
    let list = library.collection(&published.id).await.unwrap();
    let paths: Vec<_> = list.members().iter().map(|member| member.path.as_str()).collect();
    assert_eq!(paths, ["good", "sub/keep"]);
}

#[tokio::test]
async fn change_during_read_is_detected() {
    let rig = Rig::new();
    let library = rig.open().await;
    fs::write(rig.path("a"), pattern(5 << 20, 1)).unwrap();
    let path = rig.path("a");
    let touch = move |progress: PublishProgress| {
        if progress.done < progress.total {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, b"x").unwrap();
        }
    };
    let refused = library.publish(&rig.path("a"), PublishOptions::default(), touch).await;
    assert!(matches!(refused, Err(PublishError::Changed { .. })), "{refused:?}");
    assert!(library.entries().is_empty());
}

#[tokio::test]
async fn outbox_lists_each_name_once_per_catalogue_in_order() {
    let rig = Rig::new();
    let library = rig.open().await;
    let (one, two) = (CatalogueId([1; 16]), CatalogueId([2; 16]));
    let version = PublishedVersion { version: 1, new: true };
    // The same content under two names: catalogues need both.
    fs::write(rig.path("a"), b"same").unwrap();
    fs::write(rig.path("b"), b"same").unwrap();
    let id = rig.publish(&library, "a").await.unwrap().id;
    assert_eq!(rig.publish(&library, "b").await.unwrap().id, id);
    let names = |library: &Library, catalogue| -> Vec<String> {
        library.pending_publications(catalogue).iter().map(|pending| pending.name.to_string()).collect()
    };
    assert_eq!(names(&library, one), ["a", "b"]);
    let a = "a".parse().unwrap();
    library.mark_published(one, &id, &a, version, UnixMillis(7)).await.unwrap();
    assert_eq!(library.published_version(one, &id, &a), Some(version));
    assert_eq!(library.published_version(two, &id, &a), None);
    library.close().await.unwrap();
    let library = rig.open().await;
    assert_eq!(names(&library, one), ["b"]);
    assert_eq!(names(&library, two), ["a", "b"]);
    library.forget_acknowledgements(one, |at| at != UnixMillis(7)).await.unwrap();
    library.forget_acknowledgements(two, |_| true).await.unwrap();
    assert_eq!(names(&library, one), ["b"], "no lost acknowledgement of this catalogue");
    assert_eq!(library.acknowledged_version(one, &id, &a), Some(1));
    assert_eq!(library.acknowledged_version(two, &id, &a), None);
    library.forget_acknowledgements(one, |at| at == UnixMillis(7)).await.unwrap();
    assert_eq!(names(&library, one), ["a", "b"]);
    library.close().await.unwrap();
    let library = rig.open().await;
    assert_eq!(names(&library, one), ["a", "b"]);
    assert_eq!(library.acknowledged_version(one, &id, &a), Some(1));
    assert_eq!(library.published_version(one, &id, &a), None);
    library.mark_published(one, &id, &a, version, UnixMillis(8)).await.unwrap();
    library.forget_acknowledgements(one, |_| true).await.unwrap();
    assert_eq!(library.published_version(one, &id, &a), None, "it may be lost");
    library.mark_published(one, &id, &a, version, UnixMillis(8)).await.unwrap();
    // Published again, the name returns to the outbox: a newer version may exist in the catalogue.
    rig.publish(&library, "a").await.unwrap();
    assert_eq!(names(&library, one), ["b", "a"]);
    assert_eq!(library.acknowledged_version(one, &id, &a), None, "it becomes the newest version");
    assert_eq!(library.find("b").unwrap().id, id);
}

#[tokio::test]
async fn publishing_partial_download_completes_it() {
    let rig = Rig::new();
    let library = rig.open().await;
    let content = pattern(600_000, 5);
    fs::write(rig.path("a"), &content).unwrap();
    let other = Rig::new();
    let other_library = other.open().await;
    let id = other_library.publish(&rig.path("a"), PublishOptions::default(), |_| {}).await.unwrap().id;
    let manifest = other_library.open_file(&id).await.unwrap().unwrap().manifest().as_ref().clone();
    let new = NewFile { name: Some("wanted".parse().unwrap()), kind: FileKind::File, member_of: None };
    let file = library.create(manifest, new, Destination::Library).await.unwrap();
    let piece = file.layout().piece(0).unwrap();
    file.write_pieces(vec![(piece, Bytes::copy_from_slice(&content[..256 << 10]))]).await.unwrap();
    rig.publish(&library, "a").await.unwrap();
    assert!(library.find("wanted").unwrap().is_complete());
    assert_eq!(content_of(&library, &id).await, content);
    library.close().await.unwrap();
    let library = rig.open().await;
    assert!(library.find("wanted").unwrap().is_complete());
    assert_eq!(content_of(&library, &id).await, content);
}

#[tokio::test]
async fn failed_import_leaves_no_content() {
    let rig = Rig::new();
    let storage = Arc::new(FaultyStorage::new(Arc::new(rig.content.open()), 1));
    storage.add(Operation::Commit, When::Nth(2), Fault::Full);
    let content = ContentStore::Database(storage);
    let library = Library::open(Arc::new(rig.index.open()), content).await.unwrap();
    fs::create_dir(rig.path("d")).unwrap();
    for name in ["d/a", "d/b"] {
        fs::write(rig.path(name), pattern(300 << 10, name.as_bytes()[2])).unwrap();
    }
    let full = rig.store(&library, "d").await;
    assert!(matches!(full, Err(PublishError::Library(LibraryError::Full { .. }))), "{full:?}");
    assert!(rig.content.entries().iter().all(|(_, entries)| *entries == 0), "{:?}", rig.content.entries());
    rig.store(&library, "d").await.unwrap();
}

#[tokio::test]
async fn key_and_data_directory_of_a_node_are_rejected() {
    let rig = Rig::new();
    let library = rig.open().await;
    let key = [7; 32];
    fs::create_dir_all(rig.path("home/node")).unwrap();
    for (name, content) in [("key", &key[..]), ("lock", b""), ("catalogue.db", b"secrets")] {
        fs::write(rig.path("home/node").join(name), content).unwrap();
    }
    fs::write(rig.path("copy of the key"), key).unwrap();
    for name in ["home", "home/node", "home/node/key", "home/node/catalogue.db"] {
        let error = rig.publish(&library, name).await.unwrap_err();
        assert!(matches!(error, PublishError::Key(_) | PublishError::DataDir(_)), "{name}: {error}");
    }
    let secret = Some(FileId::from_bytes(blake3::hash(&key).into()));
    let options = PublishOptions { secret, ..PublishOptions::default() };
    let copied = library.publish(&rig.path("copy of the key"), options, |_| {}).await;
    assert!(matches!(copied, Err(PublishError::Key(_))), "{copied:?}");
    assert!(library.entries().is_empty());
    // A key of another kind, and a file beside the data directory.
    fs::remove_dir_all(rig.path("home/node")).unwrap();
    fs::write(rig.path("home/key"), "-----BEGIN PUBLIC KEY-----").unwrap();
    rig.publish(&library, "home").await.unwrap();
}
