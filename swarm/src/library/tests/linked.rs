//! Linked files: part files, renames, and detection of changes.

use std::fs;

use super::*;
use crate::library::entry::LibraryEvent;
use crate::library::error::LibraryError;

#[tokio::test]
async fn linked_download_is_renamed_when_complete() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE + 5, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    let part = fs::metadata(rig.path("a.bin.enjambre-part")).unwrap();
    assert!(part.len() <= PIECE as u64, "nothing is preallocated before the size is proven");
    file.write_pieces(vec![sample.piece(3)]).await.unwrap();
    assert!(!rig.path("a.bin").exists());
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
    assert!(!rig.path("a.bin.enjambre-part").exists());
    sample.check(&file).await;
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    sample.check(&library.open_file(&sample.id()).await.unwrap().unwrap()).await;
    library.remove(&sample.id()).await.unwrap();
    assert!(rig.path("a.bin").exists(), "a linked file is never deleted");
}

#[tokio::test]
async fn complete_file_is_not_locked() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    let part = fs::File::open(rig.path("a.bin.enjambre-part")).unwrap();
    assert!(part.try_lock().is_err(), "another process must not write it");
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(false).await.unwrap();
    part.try_lock().unwrap();
}

#[tokio::test]
async fn part_file_is_resumed_after_kill_and_removed_with_entry() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0), sample.piece(2)]).await.unwrap();
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    assert_eq!(file.have_count(), 2);
    sample.check(&file).await;
    library.remove(&sample.id()).await.unwrap();
    assert!(!rig.path("a.bin.enjambre-part").exists());
}

#[tokio::test]
async fn kill_between_rename_and_record_loses_nothing() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(false).await.unwrap();
    drop(file);
    rig.kill(library).await;
    let library = rig.open().await;
    let entry = library.find("a").unwrap();
    assert!(entry.is_complete(), "{entry:?}");
    let file = library.open_file(&sample.id()).await.unwrap().unwrap();
    assert!(file.is_finished());
    sample.check(&file).await;
}

#[tokio::test]
async fn finished_file_with_lost_content_is_resumed() {
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(false).await.unwrap();
    drop(file);
    rig.kill(library).await;
    // A power cut lost some of the content.
    use std::os::unix::fs::FileExt;
    let damaged = fs::OpenOptions::new().write(true).open(rig.path("a.bin")).unwrap();
    damaged.write_all_at(&[0; 100], PIECE as u64).unwrap();
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    assert_eq!(file.have_count(), 2);
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
}

#[tokio::test]
async fn existing_destination_is_kept_forced_or_linked() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    fs::write(rig.path("a.bin"), b"something else").unwrap();
    let refused = library.create(sample.manifest.clone(), named("a"), rig.to("a.bin", false)).await;
    assert!(matches!(refused, Err(LibraryError::Exists { .. })));
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), b"something else");
    let file = sample.create(&library, "a", rig.to("a.bin", true)).await;
    file.write_pieces(sample.all()).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), b"something else", "until the file is complete");
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);

    let same = Sample::new(PIECE + 1, 2);
    fs::write(rig.path("b.bin"), &same.content).unwrap();
    let file = same.create(&library, "b", rig.to("b.bin", false)).await;
    assert!(file.is_finished());
    same.check(&file).await;
    let late = Sample::new(PIECE, 3);
    let file = late.create(&library, "c", rig.to("c.bin", false)).await;
    file.write_pieces(late.all()).await.unwrap();
    fs::write(rig.path("c.bin"), b"came meanwhile").unwrap();
    assert!(matches!(file.finish(true).await, Err(LibraryError::Exists { .. })));
    assert_eq!(fs::read(rig.path("c.bin")).unwrap(), b"came meanwhile");
}

#[tokio::test]
async fn changed_linked_file_is_withdrawn_until_verified() {
    type Harm = fn(&std::path::Path, &[u8]);
    let harms: [(&str, Harm); 3] = [
        ("changed", |path, content| {
            let mut other = content.to_vec();
            other[0] ^= 1;
            fs::write(path, other).unwrap();
        }),
        ("cut", |path, _| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9).unwrap()),
        ("vanished", |path, _| fs::remove_file(path).unwrap()),
    ];
    for (what, harm) in harms {
        for restart in [false, true] {
            let rig = Rig::new(false);
            let sample = Sample::new(2 * PIECE, 1);
            let mut library = rig.open().await;
            let mut file = sample.create(&library, "a", rig.to("a.bin", false)).await;
            file.write_pieces(sample.all()).await.unwrap();
            file.finish(true).await.unwrap();
            if restart {
                drop(file);
                rig.kill(library).await;
                library = rig.open().await;
                file = library.open_file(&sample.id()).await.unwrap().unwrap();
            }
            let mut events = library.events();
            harm(&rig.path("a.bin"), &sample.content);
            let read = file.read_piece(sample.piece(0).0).await;
            let is_refused = matches!(read, Err(LibraryError::Changed { .. } | LibraryError::NotFound(_)));
            assert!(is_refused, "{what}: {read:?}");
            assert_eq!(events.recv().await.unwrap(), LibraryEvent::Withdrawn(sample.id()));
            assert!(library.offers().is_empty() && library.entry(&sample.id()).unwrap().withdrawn.is_some());
            assert!(library.open_file(&sample.id()).await.unwrap().is_none());
            assert!(library.verify(&sample.id()).await.is_err(), "{what}");
            let _ = fs::remove_file(rig.path("a.bin"));
            fs::write(rig.path("a.bin"), &sample.content).unwrap();
            assert_eq!(library.verify(&sample.id()).await.unwrap().good, 2);
            assert!(library.offers()[0].complete);
        }
    }
}

#[tokio::test]
async fn silently_damaged_part_file_is_detected_on_read() {
    // The fingerprint of a part file is not recorded.
    let rig = Rig::new(false);
    let sample = Sample::new(3 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0), sample.piece(2)]).await.unwrap();
    file.checkpoint().await.unwrap();
    drop(file);
    rig.kill(library).await;
    use std::os::unix::fs::FileExt;
    let part = fs::OpenOptions::new().write(true).open(rig.path("a.bin.enjambre-part")).unwrap();
    part.write_all_at(b"wrong", 7).unwrap();
    let library = rig.open().await;
    let file = library.open_file(&sample.id()).await.unwrap().unwrap();
    assert!(matches!(file.read_piece(sample.piece(0).0).await, Err(LibraryError::Damaged { piece: 0, .. })));
    assert!(!file.has(sample.piece(0).0) && file.has(sample.piece(2).0));
}

#[tokio::test]
async fn download_with_deleted_part_file_restarts() {
    let rig = Rig::new(false);
    let sample = Sample::new(2 * PIECE, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    drop(file);
    rig.kill(library).await;
    fs::remove_file(rig.path("a.bin.enjambre-part")).unwrap();
    let library = rig.open().await;
    let file = sample.create(&library, "a", rig.to("b.bin", false)).await;
    assert_eq!(file.have_count(), 0);
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("b.bin")).unwrap(), sample.content);
    assert_eq!(library.find("a").unwrap().id, sample.id());
}

#[tokio::test]
async fn export_keeps_other_files_unless_forced() {
    let rig = Rig::new(false);
    let sample = Sample::new(20 * PIECE + 3, 1);
    let library = rig.open().await;
    let file = sample.create(&library, "a", Destination::Library).await;
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(false).await.unwrap();
    library.export(&sample.id(), &rig.path("out"), false).await.unwrap();
    assert_eq!(fs::read(rig.path("out")).unwrap(), sample.content);
    library.export(&sample.id(), &rig.path("out"), false).await.unwrap();
    fs::write(rig.path("other"), b"mine").unwrap();
    let refused = library.export(&sample.id(), &rig.path("other"), false).await;
    assert!(matches!(refused, Err(LibraryError::Exists { .. })));
    library.export(&sample.id(), &rig.path("other"), true).await.unwrap();
    assert_eq!(fs::read(rig.path("other")).unwrap(), sample.content);
    assert_eq!(fs::read_dir(rig.dir.path()).unwrap().count(), 2, "no part files are left");
}

/// What may be at the path of a part file: a file of this user that an interrupted command left is replaced, and all else
/// only with `force`. In no case is an existing file written.
#[tokio::test]
async fn foreign_part_file_is_never_written_through() {
    type Place = fn(&std::path::Path, &std::path::Path);
    let symlink: Place = |victim, part| std::os::unix::fs::symlink(victim, part).unwrap();
    let hard_link: Place = |victim, part| fs::hard_link(victim, part).unwrap();
    let leftover: Place = |_, part| fs::write(part, b"a part of another content").unwrap();
    for (place, is_leftover) in [(symlink, false), (hard_link, false), (leftover, true)] {
        for force in [false, true] {
            let rig = Rig::new(false);
            let sample = Sample::new(2 * PIECE, 1);
            let library = rig.open().await;
            let (victim, part) = (rig.path("victim"), rig.path("a.bin.enjambre-part"));
            fs::write(&victim, b"victim").unwrap();
            place(&victim, &part);
            let created = library.create(sample.manifest.clone(), named("a"), rig.to("a.bin", force)).await;
            match created {
                Ok(file) => {
                    assert!(force || is_leftover);
                    file.write_pieces(sample.all()).await.unwrap();
                    file.finish(true).await.unwrap();
                    assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
                }
                Err(error) => {
                    assert!(matches!(error, LibraryError::BadPath { .. }), "{error}");
                    assert!(!force && !is_leftover);
                    assert!(fs::symlink_metadata(&part).is_ok(), "it was deleted");
                }
            }
            assert_eq!(fs::read(&victim).unwrap(), b"victim");
        }
    }
}

#[tokio::test]
async fn file_in_place_of_a_part_file_is_not_continued() {
    for force in [false, true] {
        let rig = Rig::new(false);
        let sample = Sample::new(3 * PIECE, 1);
        let library = rig.open().await;
        let file = sample.create(&library, "a", rig.to("a.bin", force)).await;
        file.write_pieces(vec![sample.piece(0)]).await.unwrap();
        drop(file);
        rig.kill(library).await;
        let (victim, part) = (rig.path("victim"), rig.path("a.bin.enjambre-part"));
        fs::write(&victim, b"victim").unwrap();
        fs::remove_file(&part).unwrap();
        fs::hard_link(&victim, &part).unwrap();
        let library = rig.open().await;
        match library.create(sample.manifest.clone(), named("a"), rig.to("a.bin", force)).await {
            Ok(file) => {
                assert!(force);
                file.write_pieces(sample.all()).await.unwrap();
                file.finish(true).await.unwrap();
                assert_eq!(fs::read(rig.path("a.bin")).unwrap(), sample.content);
            }
            Err(error) => assert!(!force && matches!(error, LibraryError::BadPath { .. }), "{error}"),
        }
        assert_eq!(fs::read(&victim).unwrap(), b"victim");
    }
}

#[tokio::test]
async fn deleted_directory_of_a_download_does_not_stop_checkpoints() {
    let rig = Rig::new(false);
    let (sample, other) = (Sample::new(2 * PIECE, 1), Sample::new(2 * PIECE, 2));
    let library = rig.open().await;
    fs::create_dir(rig.path("dir")).unwrap();
    let file = sample.create(&library, "a", rig.to("dir/a.bin", false)).await;
    file.write_pieces(vec![sample.piece(0)]).await.unwrap();
    let kept = other.create(&library, "b", rig.to("b.bin", false)).await;
    kept.write_pieces(vec![other.piece(0)]).await.unwrap();
    fs::remove_dir_all(rig.path("dir")).unwrap();
    library.checkpoint_all().await.unwrap();
    assert!(file.write_pieces(sample.all()).await.is_err() || file.finish(true).await.is_err());
    kept.write_pieces(other.all()).await.unwrap();
    kept.finish(true).await.unwrap();
    assert_eq!(fs::read(rig.path("b.bin")).unwrap(), other.content);
}

#[tokio::test]
async fn part_file_that_is_moved_or_deleted_fails_download() {
    type Harm = fn(&Rig);
    let deleted: Harm = |rig| fs::remove_file(rig.path("dir/a.bin.enjambre-part")).unwrap();
    let replaced: Harm = |rig| {
        fs::remove_file(rig.path("dir/a.bin.enjambre-part")).unwrap();
        fs::write(rig.path("dir/a.bin.enjambre-part"), b"other").unwrap();
    };
    let moved: Harm = |rig| fs::rename(rig.path("dir"), rig.path("elsewhere")).unwrap();
    for harm in [deleted, replaced, moved] {
        let rig = Rig::new(false);
        let sample = Sample::new(2 * PIECE, 1);
        let library = rig.open().await;
        fs::create_dir(rig.path("dir")).unwrap();
        let file = sample.create(&library, "a", rig.to("dir/a.bin", false)).await;
        file.write_pieces(sample.all()).await.unwrap();
        harm(&rig);
        let error = file.finish(false).await.unwrap_err();
        assert!(matches!(error, LibraryError::BadPath { .. }), "{error}");
        assert!(!rig.path("dir/a.bin").exists() && !rig.path("elsewhere/a.bin").exists());
    }
}
