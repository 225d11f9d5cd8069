//! Batches of small files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::library::content::DatabaseContent;
use crate::library::error::LibraryError;
use crate::library::output::OutputDir;
use crate::library::small::{SmallFile, SmallOutput};
use enjambre_core::Batch;

/// The destination of the files.
#[derive(Clone, Copy, PartialEq, Debug)]
enum To {
    Database,
    Files,
    Paths,
}

const EVERYWHERE: [To; 3] = [To::Database, To::Files, To::Paths];

fn samples() -> Vec<Sample> {
    let size = |n: usize| if n == 0 { 0 } else { [n, 2 * n, 700, 10_000, PIECE][n % 5] };
    (0..40).map(|n| Sample::new(size(n), n as u8)).collect()
}

/// A library with a collection that small files are members of.
async fn open(rig: &Rig) -> (Arc<Library>, FileId) {
    let library = rig.open().await;
    let of = super::collections::collection(&library, "list", &[]).await;
    library.checkpoint_all().await.unwrap();
    (library, of)
}

async fn output(rig: &Rig, to: To, force: bool) -> Option<SmallOutput> {
    match to {
        To::Paths => Some(SmallOutput { dir: OutputDir::create(&rig.path("out")).await.unwrap(), force }),
        _ => None,
    }
}

fn path_of(number: usize) -> String {
    format!("d{}/e/f{number}", number % 3)
}

fn small(samples: &[Sample], number: usize, to: To) -> SmallFile {
    let paths = match to {
        To::Paths => vec![(path_of(number).parse().unwrap(), number.is_multiple_of(2))],
        _ => Vec::new(),
    };
    SmallFile { id: samples[number].id(), content: samples[number].content.clone(), paths }
}

/// Checks that all files that the library claims are readable and valid, and returns their numbers.
async fn check(library: &Library, samples: &[Sample]) -> BTreeSet<usize> {
    let ids: Vec<FileId> = samples.iter().map(Sample::id).collect();
    let read = library.read_small(&ids).await.unwrap();
    let (mut rest, mut here) = (read.content, BTreeSet::new());
    for (number, (sample, size)) in samples.iter().zip(read.sizes).enumerate() {
        let complete = library.entry(&sample.id()).is_some_and(|entry| entry.is_complete());
        assert_eq!(complete, size.is_some(), "{number}");
        if let Some(size) = size {
            assert!(rest.split_to(size as usize) == sample.content, "{number}");
            here.insert(number);
        }
    }
    here
}

/// Stores a file that a batch skipped.
async fn store_single(library: &Library, sample: &Sample, of: FileId, rig: &Rig, number: usize, to: To) {
    let destination = match output(rig, to, false).await {
        None => Destination::Library,
        Some(SmallOutput { dir, force }) => {
            let path = path_of(number).parse().unwrap();
            Destination::Member { dir, path, executable: false, force }
        }
    };
    let new = NewFile { name: None, kind: FileKind::File, member_of: Some(of) };
    let file = library.create(sample.manifest.clone(), new, destination).await.unwrap();
    file.write_pieces(sample.all()).await.unwrap();
    file.finish(false).await.unwrap();
}

async fn run(seed: u64, to: To) {
    let rig = Rig::new(to == To::Files);
    let samples = samples();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut here, mut durable) = (BTreeSet::new(), BTreeSet::new());
    let (mut library, of) = open(&rig).await;
    for _ in 0..40 {
        match random.random_range(0..8) {
            0..3 => {
                let some: BTreeSet<usize> =
                    (0..random.random_range(1..9)).map(|_| random.random_range(0..samples.len())).collect();
                let files = some.iter().map(|number| small(&samples, *number, to)).collect();
                let left = library.add_small(files, of, output(&rig, to, false).await).await.unwrap();
                for number in some {
                    if left.contains(&samples[number].id()) {
                        store_single(&library, &samples[number], of, &rig, number, to).await;
                    }
                    here.insert(number);
                }
            }
            3 => {
                library.checkpoint_all().await.unwrap();
                durable.clone_from(&here);
            }
            4 => {
                // An unsynced small file can be opened.
                let number = random.random_range(0..samples.len());
                let file = library.open_file(&samples[number].id()).await.unwrap();
                assert_eq!(file.is_some(), here.contains(&number), "seed {seed}");
                if let Some(file) = file {
                    samples[number].check(&file).await;
                    assert!(file.is_complete() && file.is_finished());
                }
            }
            5 => {
                let number = random.random_range(0..samples.len());
                if here.remove(&number) {
                    durable.remove(&number);
                    library.remove(&samples[number].id()).await.unwrap();
                }
            }
            6 => {
                rig.kill(library).await;
                library = rig.open().await;
            }
            _ => {
                rig.kill(library).await;
                rig.index.power_cut();
                rig.content.power_cut();
                library = rig.open().await;
                let left = check(&library, &samples).await;
                assert!(durable.is_subset(&left), "seed {seed}: a synced file is lost");
                assert!(left.is_subset(&here), "seed {seed}: a file is claimed that was not written");
                (here, durable) = (left.clone(), left);
            }
        }
        assert_eq!(check(&library, &samples).await, here, "seed {seed}");
    }
    for entry in library.entries() {
        assert!(library.verify(&entry.id).await.unwrap().bad.is_empty(), "seed {seed}");
    }
}

#[tokio::test]
async fn crashes_lose_no_synced_small_files() {
    for seed in 0..10 {
        for to in EVERYWHERE {
            run(seed, to).await;
        }
    }
}

#[tokio::test]
async fn batch_in_directory_has_paths_modes_and_copies() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    let samples = samples();
    let mut files: Vec<SmallFile> = (0..samples.len()).map(|n| small(&samples, n, To::Paths)).collect();
    files[3].paths.push(("copies/of three".parse().unwrap(), false));
    let out = output(&rig, To::Paths, false).await;
    assert_eq!(library.add_small(files, of, out).await.unwrap(), []);
    for (number, sample) in samples.iter().enumerate() {
        let path = rig.path("out").join(path_of(number));
        assert_eq!(fs::read(&path).unwrap(), sample.content);
        let executable = fs::metadata(&path).unwrap().permissions().mode() & 0o100 != 0;
        assert_eq!(executable, number % 2 == 0);
    }
    assert_eq!(fs::read(rig.path("out/copies/of three")).unwrap(), samples[3].content);
    assert_eq!(fs::read_dir(rig.path("out/d0/e")).unwrap().count(), 14, "no part files are left");
    assert_eq!(check(&library, &samples).await.len(), samples.len());
    library.checkpoint_all().await.unwrap();
    fs::remove_file(rig.path("out").join(path_of(3))).unwrap();
    assert_eq!(library.read_small(&[samples[3].id()]).await.unwrap().content, samples[3].content);
}

#[tokio::test]
async fn existing_paths_are_skipped_and_reported() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    let samples = samples();
    let blocked = |number: usize| rig.path("out").join(path_of(number));
    fs::create_dir_all(rig.path("out/d0/e")).unwrap();
    fs::create_dir_all(rig.path("out/d1/e")).unwrap();
    fs::create_dir_all(rig.path("outside")).unwrap();
    fs::write(blocked(3), "mine").unwrap();
    fs::write(rig.path(&format!("out/{}.enjambre-part", path_of(6))), "another download").unwrap();
    fs::create_dir(blocked(4)).unwrap();
    let files = || [3, 6, 4, 9].map(|number| small(&samples, number, To::Paths)).to_vec();
    let out = output(&rig, To::Paths, false).await;
    let mut left = library.add_small(files(), of, out).await.unwrap();
    left.sort_unstable();
    let mut expected = [3, 6, 4].map(|number| samples[number].id());
    expected.sort_unstable();
    assert_eq!(left, expected);
    assert_eq!(fs::read(blocked(3)).unwrap(), b"mine");
    assert_eq!(check(&library, &samples).await, BTreeSet::from([9]));

    // With force files are replaced, but not directories.
    let out = output(&rig, To::Paths, true).await;
    let left = library.add_small(files(), of, out).await.unwrap();
    assert_eq!(BTreeSet::from_iter(left), BTreeSet::from([6, 4].map(|number| samples[number].id())));
    assert_eq!(fs::read(blocked(3)).unwrap(), samples[3].content);

    // Never through a symbolic link out of the directory.
    std::os::unix::fs::symlink(rig.path("outside"), rig.path("out/d2")).unwrap();
    let out = output(&rig, To::Paths, true).await;
    assert!(library.add_small(vec![small(&samples, 2, To::Paths)], of, out).await.is_err());
    assert_eq!(fs::read_dir(rig.path("outside")).unwrap().count(), 0);
}

#[tokio::test]
async fn changed_small_file_is_withdrawn() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    let samples = samples();
    let files = (0..10).map(|n| small(&samples, n, To::Paths)).collect();
    library.add_small(files, of, output(&rig, To::Paths, false).await).await.unwrap();
    fs::write(rig.path("out").join(path_of(2)), vec![0; samples[2].content.len()]).unwrap();
    fs::remove_file(rig.path("out").join(path_of(3))).unwrap();
    let ids: Vec<FileId> = samples[..10].iter().map(Sample::id).collect();
    let read = library.read_small(&ids).await.unwrap();
    assert_eq!(read.sizes.iter().filter(|size| size.is_none()).count(), 2);
    for number in [2, 3] {
        assert!(library.entry(&samples[number].id()).unwrap().withdrawn.is_some());
    }
    // A checkpoint does not offer them again.
    library.checkpoint_all().await.unwrap();
    rig.kill(library).await;
    let library = rig.open().await;
    assert_eq!(check(&library, &samples[..10]).await.len(), 8);
}

#[tokio::test]
async fn complete_files_are_adopted_at_their_paths() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    let samples = samples();
    let dir = output(&rig, To::Paths, false).await;
    let files = (0..5).map(|n| small(&samples, n, To::Paths)).collect();
    library.add_small(files, of, dir.clone()).await.unwrap();
    library.add_small(vec![small(&samples, 5, To::Database)], of, None).await.unwrap();
    fs::write(rig.path("out").join(path_of(1)), "another").unwrap();
    let root = dir.unwrap().dir.root().to_owned();
    let other = FileId::from_bytes([9; 32]);
    let wanted = (0..8).map(|number| (samples[number].id(), vec![root.join(path_of(number))]));
    let settled = library.adopt_members(other, wanted.collect()).await.unwrap();
    assert_eq!(settled, [0, 2, 3, 4].map(|number| samples[number].id()).into());
    let wanted = (0..8).map(|number| (samples[number].id(), Vec::new()));
    let settled = library.adopt_members(other, wanted.collect()).await.unwrap();
    assert_eq!(settled, [0, 2, 3, 4, 5].map(|number| samples[number].id()).into());
    let state = library.inner.state.lock();
    assert!(state.members.contains(&(samples[5].id(), other)));
    assert!(!state.members.contains(&(samples[1].id(), other)));
}

#[tokio::test]
async fn closed_library_refuses_small_files() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    library.close().await.unwrap();
    let file = small(&samples(), 1, To::Database);
    assert!(matches!(library.add_small(vec![file], of, None).await, Err(LibraryError::Closed)));
}

#[tokio::test]
async fn checkpoint_ignores_file_added_again_after_plan() {
    let rig = Rig::new(false);
    let (library, of) = open(&rig).await;
    let samples = samples();
    let files = || (1..3).map(|number| small(&samples, number, To::Database)).collect();
    library.add_small(files(), of, None).await.unwrap();
    let plan = library.inner.plan_small_files();
    let (again, stayed) = (samples[1].id(), samples[2].id());
    library.inner.state.lock().remove(&again);
    library.add_small(files(), of, None).await.unwrap();
    let complete = || {
        let state = library.inner.state.lock();
        [again, stayed].map(|id| state.slots[&id].record.complete)
    };
    library.inner.put_small_files(&plan, &mut Batch::new());
    assert_eq!(complete(), [false, true]);
    library.inner.end_small_files(&plan, true);
    let next = library.inner.plan_small_files();
    let ids: Vec<FileId> = next.files.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [again], "the next checkpoint contains the file");
}

#[tokio::test]
async fn sweep_keeps_content_until_last_import_ends() {
    let rig = Rig::new(false);
    let library = rig.open().await;
    let sample = Sample::new(700, 1);
    let (id, inner) = (sample.id(), &library.inner);
    for _ in 0..2 {
        inner.begin_import(&id).await.unwrap();
    }
    inner.content.write(sample.stored(sample.all())).await.unwrap();
    let ContentStore::Database(content) = inner.content.clone() else {
        panic!("the content is in a database")
    };
    let content = DatabaseContent(content);
    for left in [true, false] {
        inner.state.lock().end_import(&id);
        inner.sweep().await.unwrap();
        assert_eq!(content.next_id(None).await.unwrap(), left.then_some(id));
    }
}
