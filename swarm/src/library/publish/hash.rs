//! Hashing files on all cores.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;

use super::scan::{Found, is_executable};
use super::{ProgressCallback, PublishError, PublishProgress, Skipped};
use crate::library::error::LibraryError;
use crate::library::inner::LibraryInner;
use crate::library::linked::{Fingerprint, open_regular};
use crate::library::load::load_manifest;
use crate::library::task::finished;
use enjambre_core::model::manifest::{PieceHash, hash_piece};
use enjambre_core::runtime;
use enjambre_core::{FileId, FileKind, Manifest, PieceIndex, PieceLayout};

/// The largest number of hashing threads.
const MAX_WORKERS: usize = 32;

/// A file with a known hash.
#[derive(Debug)]
pub(super) struct Hashed {
    pub(super) id: FileId,
    pub(super) size: u64,
    pub(super) executable: bool,
    /// The record to add, or `None` for a member that the library already links.
    pub(super) new: Option<(Manifest, Fingerprint)>,
}

/// A file whose pieces several workers hash.
struct FileInProgress {
    at: usize,
    file: File,
    layout: PieceLayout,
    fingerprint: Fingerprint,
    executable: bool,
    hashes: Mutex<Vec<PieceHash>>,
    /// Whether the file was skipped after a failed read.
    skipped: AtomicBool,
    left: AtomicU32,
}

#[derive(Default)]
struct Next {
    /// The next file, as an index into the unknown files.
    file: usize,
    /// Opened files with the number of their next piece.
    rest: Vec<(Arc<FileInProgress>, u32)>,
}

/// A piece of a file, or an empty file.
type Task = (Arc<FileInProgress>, Option<PieceIndex>);

struct Hashing {
    found: Arc<Found>,
    /// The indices of the files to hash.
    unknown: Vec<usize>,
    next: Mutex<Next>,
    results: Mutex<Vec<Option<Hashed>>>,
    /// Whether files that cannot be read are skipped.
    skips: bool,
    skipped: Mutex<Skipped>,
    stop: CancellationToken,
    done: AtomicU64,
    total: u64,
    progress: ProgressCallback,
}

/// Hashes the files whose ids are not known. Skipped files have no result.
pub(super) async fn hash_files(
    inner: &LibraryInner,
    found: Arc<Found>,
    strict: bool,
    progress: ProgressCallback,
) -> Result<(Vec<Option<Hashed>>, Skipped), PublishError> {
    let total: u64 = found.files.iter().map(|file| file.fingerprint.size).sum();
    let mut results: Vec<Option<Hashed>> = Vec::with_capacity(found.files.len());
    for file in &found.files {
        let Some(id) = file.known else {
            results.push(None);
            continue;
        };
        let size = file.fingerprint.size;
        // A known member needs no new record. A file on its own does, since it gets a name.
        let new = match found.kind {
            FileKind::Collection => None,
            FileKind::File | FileKind::Executable => {
                let layout = layout_of(&file.path, size)?;
                Some((load_manifest(&*inner.index, &id, layout).await?, file.fingerprint))
            }
        };
        results.push(Some(Hashed { id, size, executable: file.executable, new }));
    }
    let unknown: Vec<usize> = (0..results.len()).filter(|at| results[*at].is_none()).collect();
    let done = results.iter().flatten().map(|known| known.size).sum();
    let hashing = Arc::new(Hashing {
        results: Mutex::new(results),
        skips: found.kind == FileKind::Collection && !strict,
        skipped: Mutex::default(),
        found,
        unknown,
        next: Mutex::default(),
        stop: CancellationToken::new(),
        done: AtomicU64::new(done),
        total,
        progress,
    });
    if done > 0 {
        hashing.report();
    }
    // Stops the workers when the caller drops the future.
    let _stop = hashing.stop.clone().drop_guard();
    let workers: Vec<_> = (0..runtime::cores().min(MAX_WORKERS))
        .map(|_| {
            let hashing = Arc::clone(&hashing);
            runtime::spawn_blocking(move || {
                let result = hashing.work();
                if result.is_err() {
                    hashing.stop.cancel();
                }
                Ok(result)
            })
        })
        .collect();
    let mut result = Ok(());
    for worker in workers {
        result = result.and(finished(worker).await?);
    }
    result?;
    let results = std::mem::take(&mut *hashing.results.lock());
    let skipped = std::mem::take(&mut *hashing.skipped.lock());
    Ok((results, skipped))
}

impl Hashing {
    fn work(&self) -> Result<(), PublishError> {
        let mut buffer = Vec::new();
        while !self.stop.is_cancelled() {
            let Some((file, piece)) = self.next_task()? else { return Ok(()) };
            let Some(piece) = piece else {
                self.finish(&file)?;
                continue;
            };
            let len = file.layout.len(piece);
            buffer.resize(buffer.len().max(len), 0);
            let path = &self.found.files[file.at].path;
            let read = match file.skipped.load(Ordering::Relaxed) {
                true => Ok(()),
                false => file.file.read_exact_at(&mut buffer[..len], file.layout.offset(piece)),
            };
            match read {
                Ok(()) => {
                    let hash = hash_piece(file.layout, piece, &buffer[..len]);
                    file.hashes.lock()[piece.as_usize()] = hash;
                }
                Err(error) => {
                    let error = match error.kind() {
                        io::ErrorKind::UnexpectedEof if file.is_unchanged(path) => {
                            PublishError::UnknownSize(path.clone())
                        }
                        io::ErrorKind::UnexpectedEof => return Err(PublishError::Changed(path.clone())),
                        _ => LibraryError::io("read", path, error).into(),
                    };
                    if !file.skipped.swap(true, Ordering::Relaxed) {
                        self.skip(error)?;
                    }
                }
            }
            self.done.fetch_add(len as u64, Ordering::Relaxed);
            if file.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.finish(&file)?;
            } else {
                self.report();
            }
        }
        Ok(())
    }

    fn next_task(&self) -> Result<Option<Task>, PublishError> {
        loop {
            let at = {
                let mut next = self.next.lock();
                while let Some((file, piece)) = next.rest.pop() {
                    if let Some(piece) = file.layout.piece(piece) {
                        next.rest.push((Arc::clone(&file), piece.get() + 1));
                        return Ok(Some((file, Some(piece))));
                    }
                }
                let Some(at) = self.unknown.get(next.file).copied() else { return Ok(None) };
                next.file += 1;
                at
            };
            let path = &self.found.files[at].path;
            let opened = open_regular(path, OFlags::NOFOLLOW).map_err(PublishError::from);
            let opened = opened.and_then(|(file, metadata)| {
                check_size(path, &file, &metadata)?;
                Ok((layout_of(path, metadata.len())?, file, metadata))
            });
            let (layout, file, metadata) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    self.skip(error)?;
                    continue;
                }
            };
            let file = Arc::new(FileInProgress {
                at,
                file,
                layout,
                fingerprint: Fingerprint::of(&metadata),
                executable: is_executable(&metadata),
                hashes: Mutex::new(vec![[0; 32]; layout.count() as usize]),
                skipped: AtomicBool::new(false),
                left: AtomicU32::new(layout.count()),
            });
            if layout.count() > 1 {
                self.next.lock().rest.push((Arc::clone(&file), 1));
            }
            let first = layout.piece(0);
            return Ok(Some((file, first)));
        }
    }

    /// Checks that the file is unchanged and adds it to the results.
    fn finish(&self, file: &FileInProgress) -> Result<(), PublishError> {
        let path = &self.found.files[file.at].path;
        if file.skipped.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !file.is_unchanged(path) {
            return match path.try_exists() {
                Ok(false) => self.skip(PublishError::Vanished(path.clone())),
                _ => Err(PublishError::Changed(path.clone())),
            };
        }
        let hashes = std::mem::take(&mut *file.hashes.lock());
        let Ok(manifest) = Manifest::from_hashes(file.layout, hashes) else {
            return Err(PublishError::Changed(path.clone()));
        };
        let hashed = Hashed {
            id: manifest.id(),
            size: manifest.layout().size(),
            executable: file.executable,
            new: Some((manifest, file.fingerprint)),
        };
        self.results.lock()[file.at] = Some(hashed);
        self.report();
        Ok(())
    }

    /// Skips a file of a directory that cannot be published.
    fn skip(&self, error: PublishError) -> Result<(), PublishError> {
        if !self.skips {
            return Err(error);
        }
        self.skipped.lock().add(&error);
        Ok(())
    }

    fn report(&self) {
        (self.progress)(PublishProgress { done: self.done.load(Ordering::Relaxed), total: self.total });
    }
}

impl FileInProgress {
    fn is_unchanged(&self, path: &Path) -> bool {
        let unchanged = |metadata: Metadata| Fingerprint::of(&metadata) == self.fingerprint;
        std::fs::metadata(path).is_ok_and(unchanged) && self.file.metadata().is_ok_and(unchanged)
    }
}

/// Rejects a file without a size that has content.
fn check_size(path: &Path, file: &File, metadata: &Metadata) -> Result<(), PublishError> {
    if metadata.len() > 0 {
        return Ok(());
    }
    match file.read_at(&mut [0], 0) {
        Ok(0) => Ok(()),
        Ok(_) => Err(PublishError::UnknownSize(path.to_owned())),
        Err(error) => Err(LibraryError::io("read", path, error).into()),
    }
}

fn layout_of(path: &Path, size: u64) -> Result<PieceLayout, PublishError> {
    PieceLayout::new(size).map_err(|source| PublishError::TooLarge { path: path.to_owned(), source })
}
