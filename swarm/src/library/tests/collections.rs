//! Collections: output directories, membership, and removal with unshared members.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::library::entry::LibraryEvent;
use crate::library::error::LibraryError;
use crate::library::output::OutputDir;
use crate::library::publish::PublishOptions;
use enjambre_core::{Collection, Member};

/// Stores the list of a collection of samples.
pub(super) async fn collection(library: &Library, name: &str, members: &[(&str, &Sample)]) -> FileId {
    let list = members.iter().map(|(path, sample)| Member {
        path: path.parse().unwrap(),
        size: sample.layout().size(),
        id: sample.id(),
        executable: path.ends_with(".sh"),
    });
    let encoded = Bytes::from(Collection::new(list.collect()).unwrap().encode());
    let id = FileId::from_bytes(*blake3::hash(&encoded).as_bytes());
    let layout = PieceLayout::new(encoded.len() as u64).unwrap();
    let manifest = Manifest::verify(id, layout, vec![*id.as_bytes()]).unwrap();
    let new = NewFile { kind: FileKind::Collection, ..named(name) };
    let file = library.create(manifest, new, Destination::Library).await.unwrap();
    file.write_pieces(vec![(layout.last().unwrap(), encoded)]).await.unwrap();
    file.finish(false).await.unwrap();
    id
}

async fn member(library: &Library, of: FileId, sample: &Sample, to: Destination) -> Result<(), LibraryError> {
    let new = NewFile { name: None, kind: FileKind::File, member_of: Some(of) };
    let file = library.create(sample.manifest.clone(), new, to).await?;
    file.write_pieces(sample.all()).await?;
    file.finish(false).await
}

#[tokio::test]
async fn members_are_removed_with_last_collection() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let samples = [Sample::new(10, 1), Sample::new(0, 2), Sample::new(PIECE + 1, 3)];
    let one = collection(&library, "one", &[("a", &samples[0]), ("b/c.sh", &samples[2])]).await;
    let two = collection(&library, "two", &[("a", &samples[0]), ("d", &samples[1])]).await;
    for (of, which) in [(one, 0), (one, 2), (two, 0), (two, 1)] {
        member(&library, of, &samples[which], Destination::Library).await.unwrap();
    }
    library.checkpoint_all().await.unwrap();
    assert_eq!(library.entries().len(), 5);
    assert_eq!(library.offers().len(), 2, "members are not offered");

    library.export(&one, &rig.path("out"), false).await.unwrap();
    assert_eq!(fs::read(rig.path("out/a")).unwrap(), samples[0].content);
    assert_eq!(fs::read(rig.path("out/b/c.sh")).unwrap(), samples[2].content);
    let mode = |name: &str| fs::metadata(rig.path(name)).unwrap().permissions().mode();
    assert!(mode("out/b/c.sh") & 0o100 != 0 && mode("out/a") & 0o100 == 0);

    library.remove(&one).await.unwrap();
    let left = |library: &Library, sample: &Sample| library.entry(&sample.id()).is_some();
    assert!(left(&library, &samples[0]) && !left(&library, &samples[2]));
    rig.kill(library).await;
    let library = rig.open().await;
    assert!(left(&library, &samples[0]) && left(&library, &samples[1]));
    assert!(library.entry(&samples[1].id()).unwrap().is_complete());
    // A member with a name of its own stays.
    samples[1].create(&library, "mine", Destination::Library).await;
    library.remove(&two).await.unwrap();
    assert!(!left(&library, &samples[0]) && left(&library, &samples[1]));
}

#[tokio::test]
async fn collection_with_missing_member_is_not_complete() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let samples = [Sample::new(10, 1), Sample::new(PIECE + 1, 2)];
    let list = collection(&library, "list", &[("a", &samples[0]), ("b", &samples[1])]).await;
    assert!(library.entry(&list).unwrap().is_complete());
    assert!(!library.has_all_members(&list).await);
    member(&library, list, &samples[0], Destination::Library).await.unwrap();
    assert!(!library.has_all_members(&list).await);
    member(&library, list, &samples[1], Destination::Library).await.unwrap();
    assert!(library.has_all_members(&list).await);
}

#[tokio::test]
async fn member_belongs_to_all_of_its_collections() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let sample = Sample::new(10, 1);
    let mut lists = Vec::new();
    for path in ["a", "b"] {
        let list = collection(&library, path, &[(path, &sample)]).await;
        member(&library, list, &sample, Destination::Library).await.unwrap();
        lists.push(list);
    }
    lists.sort();
    assert_eq!(library.collections_of(&sample.id()), lists);
    assert_eq!(library.announced_as(&sample.id()), lists);
}

#[tokio::test]
async fn publishing_missing_member_completes_other_collection() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let publish = async |name: &str| {
        fs::create_dir(rig.path(name)).unwrap();
        fs::write(rig.path(name).join("shared"), "shared").unwrap();
        fs::write(rig.path(name).join("other"), name).unwrap();
        library.publish(&rig.path(name), PublishOptions::default(), |_| {}).await.unwrap().id
    };
    let one = publish("one").await;
    let shared = library.collection(&one).await.unwrap().members()[1].id;
    fs::remove_file(rig.path("one/shared")).unwrap();
    assert!(library.verify(&shared).await.is_err());
    assert!(!library.has_all_members(&one).await);
    let mut events = library.events();
    publish("two").await;
    assert!(library.has_all_members(&one).await);
    assert!(std::iter::from_fn(|| events.try_recv().ok()).any(|event| event == LibraryEvent::Completed(one)));
}

#[tokio::test]
async fn member_is_served_from_each_of_its_downloaded_paths() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let sample = Sample::new(2 * PIECE, 1);
    let of = collection(&library, "one", &[("a", &sample), ("b", &sample)]).await;
    let dir = OutputDir::create(&rig.path("target")).await.unwrap();
    let path = |name: &str| name.parse().unwrap();
    let to = Destination::Member { dir: Arc::clone(&dir), path: path("a"), executable: false, force: false };
    member(&library, of, &sample, to).await.unwrap();
    library.checkpoint_all().await.unwrap();
    library.export_member(&sample.id(), &dir, &path("b"), false, false).await.unwrap();
    library.close().await.unwrap();
    fs::remove_file(rig.path("target/a")).unwrap();
    let library = rig.open().await;
    let file = library.open_file(&sample.id()).await.unwrap().unwrap();
    assert!(file.is_complete());
    sample.check(&file).await;
}

#[tokio::test]
async fn removed_member_loses_only_its_name() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let sample = Sample::new(PIECE + 1, 3);
    let list = collection(&library, "list", &[("a", &sample)]).await;
    member(&library, list, &sample, Destination::Library).await.unwrap();
    library.create(sample.manifest.clone(), named("file"), Destination::Library).await.unwrap();
    assert_eq!(library.offers().len(), 2);

    library.remove(&sample.id()).await.unwrap();
    rig.kill(library).await;
    let library = rig.open().await;
    assert!(library.find("file").is_err());
    assert_eq!(library.offers().len(), 1, "the file is not offered on its own");
    assert!(library.entry(&sample.id()).unwrap().is_complete(), "the collection stays complete");
    library.remove(&list).await.unwrap();
    assert!(library.entries().is_empty(), "the file is removed with the collection");
}

#[tokio::test]
async fn symlink_out_of_output_directory_is_refused() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let sample = Sample::new(100, 1);
    let of = collection(&library, "one", &[("out/a", &sample), ("link", &sample)]).await;
    fs::create_dir_all(rig.path("target")).unwrap();
    fs::create_dir_all(rig.path("outside")).unwrap();
    symlink(rig.path("outside"), rig.path("target/out")).unwrap();
    symlink("../outside/b", rig.path("target/link")).unwrap();
    let dir = OutputDir::create(&rig.path("target")).await.unwrap();
    for (path, force) in [("out/a", false), ("out/a", true), ("link", false)] {
        let to = Destination::Member {
            dir: Arc::clone(&dir),
            path: path.parse().unwrap(),
            executable: false,
            force,
        };
        assert!(member(&library, of, &sample, to).await.is_err(), "{path}");
        assert!(library.entry(&sample.id()).is_none(), "{path}");
        assert_eq!(fs::read_dir(rig.path("outside")).unwrap().count(), 0, "{path}");
    }
}

#[tokio::test]
async fn many_members_survive_power_cut_after_checkpoint() {
    let rig = Rig::new(true);
    let library = rig.open().await;
    let samples: Vec<Sample> = (0..200).map(|n| Sample::new(usize::from(n) + 1, n)).collect();
    let paths: Vec<String> = (0..200).map(|n| format!("d{}/f{n}", n % 7)).collect();
    let list: Vec<_> = paths.iter().map(String::as_str).zip(&samples).collect();
    let of = collection(&library, "many", &list).await;
    let dir = OutputDir::create(&rig.path("target")).await.unwrap();
    for (path, sample) in &list {
        let path = path.parse().unwrap();
        let to = Destination::Member { dir: Arc::clone(&dir), path, executable: false, force: false };
        member(&library, of, sample, to).await.unwrap();
    }
    library.checkpoint_all().await.unwrap();
    rig.kill(library).await;
    rig.index.power_cut();
    let library = rig.open().await;
    assert_eq!(library.entries().iter().filter(|entry| entry.is_complete()).count(), 201);
    for (path, sample) in &list {
        assert_eq!(fs::read(rig.path("target").join(path)).unwrap(), sample.content);
    }
    assert_eq!(library.collection(&of).await.unwrap().members().len(), 200);
    assert!(matches!(library.collection(&samples[0].id()).await, Err(LibraryError::NotACollection { .. })));
}
