//! From a file or directory of the user to entries of the library: hashed on all cores, read once, and linked.
//!
//! What the library links already and looks as it did is not read again.
//!
//! With `store` the content is copied into the library in a second pass, since its place there is named by the
//! hash. A directory becomes a collection. Telling the trackers is not done here: the library's list of pending
//! publications says what they are to know.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::library::create::now_ms;
use crate::library::error::LibraryError;
use crate::library::layout::{blocking, finished};
use crate::library::library::Library;
use crate::library::linked::{Fingerprint, open_regular_itself};
use crate::library::publications::NewPublished;
use crate::machine;
use crate::model::collection::{Collection, CollectionError, Member, MemberPath, MemberPathError};
use crate::model::id::FileId;
use crate::model::layout::{FileTooLarge, PieceIndex, PieceLayout};
use crate::model::manifest::{Manifest, PieceHash, hash_piece};
use crate::model::name::{Name, ParseNameError};
use crate::model::record::FileKind;

/// The most threads that hash.
const MAX_WORKERS: usize = 32;
/// How many bytes are copied into the library at once.
const COPY_BYTES: usize = 8 << 20;
/// The deepest directory that is walked.
const MAX_DEPTH: usize = 256;

/// How something is published.
#[derive(Debug, Clone, Default)]
pub struct PublishOptions {
    /// The name; by default that of the file or directory.
    pub name: Option<Name>,
    /// Copy the content into the library instead of linking the user's files.
    pub store: bool,
}

/// How far the hashing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishProgress {
    /// Bytes that were hashed.
    pub done: u64,
    /// Bytes that were there when it began.
    pub total: u64,
    /// Files that were hashed in whole.
    pub files: u64,
}

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The id of the file or collection.
    pub id: FileId,
    /// The name.
    pub name: Name,
    /// What it is.
    pub kind: FileKind,
    /// The bytes of the file, or of all files of the directory.
    pub size: u64,
    /// How many files it has: 1 for a file.
    pub files: u64,
    /// How many symbolic links in the directory were passed over.
    pub skipped_links: u64,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The library cannot take it.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The file was written to while it was read.
    #[error("{} changed while it was read; publish it again when nothing writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The path is not UTF-8, which names in a catalogue and in a collection are.
    #[error("the name of {} is not UTF-8; rename it, or give another with --name", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// Neither a file nor a directory.
    #[error("{} is neither a file nor a directory", path.display())]
    Special {
        /// The path.
        path: PathBuf,
    },
    /// Directories are nested too deeply.
    #[error("{} lies more than {MAX_DEPTH} directories deep", path.display())]
    TooDeep {
        /// The directory.
        path: PathBuf,
    },
    /// The name of the file cannot be one in a catalogue.
    #[error("choose another name with --name")]
    Name(#[from] ParseNameError),
    /// The path of a file cannot be one in a collection.
    #[error("a file of the directory cannot be published")]
    Path(#[from] MemberPathError),
    /// The directory cannot be a collection.
    #[error("the directory cannot be published")]
    Collection(#[from] CollectionError),
    /// The file is too large.
    #[error("{} cannot be published", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How large.
        #[source]
        source: FileTooLarge,
    },
}

/// Hashes the file or directory at `path` and takes it into the library; durable on return. `progress` is called
/// from the hashing threads, about once for each piece. Dropping the future ends the work.
pub async fn publish(
    library: &Arc<Library>,
    path: &Path,
    options: PublishOptions,
    progress: impl Fn(PublishProgress) + Send + Sync + 'static,
) -> Result<Published, PublishError> {
    let given = path.to_owned();
    let named = options.name.clone();
    let since_ms = now_ms();
    let shared = (!options.store).then(|| Arc::clone(&library.shared));
    let (found, known) = run(move || {
        let found = find(&given, named)?;
        let links = found.files.iter().map(|file| (&*file.path, &file.mark));
        let known = match shared {
            Some(shared) => shared.known_links(links),
            None => vec![None; found.files.len()],
        };
        Ok((found, known))
    })
    .await?;
    let name = found.name.clone();
    let found = Arc::new(found);
    let hashed = hash_all(library, Arc::clone(&found), known, Arc::new(progress)).await?;
    let size = hashed.iter().map(|file| file.size).sum();
    let files = hashed.len() as u64;

    let collection = match found.kind {
        FileKind::File => None,
        FileKind::Collection => {
            let members = found.files.iter().zip(&hashed).map(|(file, hashed)| Member {
                path: file.member.clone(),
                size: hashed.size,
                id: hashed.id,
                executable: hashed.executable,
            });
            let encoded: Bytes = Collection::new(members.collect())?.encode().into();
            Some((manifest_of(&encoded)?, encoded))
        }
    };
    let id = match (&collection, hashed.first()) {
        (Some((manifest, _)), _) => manifest.id(),
        (None, Some(file)) => file.id,
        (None, None) => return Err(PublishError::Special { path: path.to_owned() }),
    };

    // From here on nothing is half done when the caller goes away.
    let published =
        Published { id, name: name.clone(), kind: found.kind, size, files, skipped_links: found.links };
    let library = Arc::clone(library);
    let work = add(library, found, hashed, collection, name, options.store, since_ms);
    tokio::spawn(work).await.map_err(|_| LibraryError::Closed)??;
    Ok(published)
}

/// Runs what blocks away from the async workers.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    blocking(move || Ok(work())).await?
}

/// A file that was found.
#[derive(Debug)]
struct FoundFile {
    path: PathBuf,
    member: MemberPath,
    mark: Fingerprint,
    executable: bool,
}

impl FoundFile {
    fn new(path: PathBuf, member: MemberPath, metadata: &Metadata) -> Self {
        Self { path, member, mark: Fingerprint::of(metadata), executable: is_executable(metadata) }
    }
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o100 != 0
}

/// What lies at a path.
#[derive(Debug)]
struct Found {
    name: Name,
    kind: FileKind,
    files: Vec<FoundFile>,
    links: u64,
}

fn find(path: &Path, name: Option<Name>) -> Result<Found, PublishError> {
    let root = path.canonicalize().map_err(|error| LibraryError::io("find", path, error))?;
    let name = match name {
        Some(name) => name,
        None => {
            // `.` and the like are named as what they stand for.
            let name = path.file_name().or_else(|| root.file_name()).unwrap_or_default();
            name.to_str().ok_or_else(|| PublishError::NotUtf8 { path: path.to_owned() })?.parse()?
        }
    };
    let metadata = std::fs::metadata(&root).map_err(|error| LibraryError::io("look at", &root, error))?;
    let mut found = Found { name, kind: FileKind::File, files: Vec::new(), links: 0 };
    if metadata.is_file() {
        let member = "file".parse()?;
        found.files.push(FoundFile::new(root, member, &metadata));
    } else if metadata.is_dir() {
        found.kind = FileKind::Collection;
        walk(&root, "", 0, &mut found)?;
        found.files.sort_unstable_by(|a, b| a.member.cmp(&b.member));
    } else {
        return Err(PublishError::Special { path: root });
    }
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, depth: usize, found: &mut Found) -> Result<(), PublishError> {
    if depth > MAX_DEPTH {
        return Err(PublishError::TooDeep { path: folder.to_owned() });
    }
    let failed = |error| LibraryError::io("list", folder, error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        // Of the entry itself: a symbolic link is not followed.
        let metadata = entry.metadata().map_err(|error| LibraryError::io("look at", &path, error))?;
        if metadata.is_symlink() {
            found.links += 1;
            continue;
        }
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| PublishError::NotUtf8 { path: path.clone() })?;
        if metadata.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), depth + 1, found)?;
        } else if metadata.is_file() {
            if found.files.len() >= crate::model::collection::MAX_MEMBERS {
                return Err(CollectionError::TooLarge.into());
            }
            let member = format!("{prefix}{name}").parse()?;
            found.files.push(FoundFile::new(path, member, &metadata));
        } else {
            return Err(PublishError::Special { path });
        }
    }
    Ok(())
}

/// A file that was hashed, now or when it was linked.
#[derive(Debug)]
struct Hashed {
    id: FileId,
    size: u64,
    executable: bool,
    /// None where the library links it already.
    new: Option<(Manifest, Fingerprint)>,
}

/// A file that is being hashed by several workers.
struct InWork {
    at: usize,
    file: File,
    layout: PieceLayout,
    mark: Fingerprint,
    executable: bool,
    hashes: Mutex<Vec<PieceHash>>,
    left: AtomicU32,
}

/// Where the workers are.
#[derive(Default)]
struct Next {
    /// Which of the files that are to be hashed is the next.
    file: usize,
    /// Files that were begun, of which pieces from this number on are left.
    rest: Vec<(Arc<InWork>, u32)>,
}

/// A piece of a file; none of an empty file.
type Task = (Arc<InWork>, Option<PieceIndex>);

/// What the workers share.
struct Hashing {
    found: Arc<Found>,
    /// Which of the files are to be hashed.
    unknown: Vec<usize>,
    next: Mutex<Next>,
    results: Mutex<Vec<Option<Hashed>>>,
    stop: AtomicBool,
    done: AtomicU64,
    files: AtomicU64,
    total: u64,
    progress: Arc<dyn Fn(PublishProgress) + Send + Sync>,
}

/// Ends the work when whoever waits for it goes away.
struct StopOnDrop(Arc<Hashing>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Hashes those files that are not known.
async fn hash_all(
    library: &Library,
    found: Arc<Found>,
    known: Vec<Option<FileId>>,
    progress: Arc<dyn Fn(PublishProgress) + Send + Sync>,
) -> Result<Vec<Hashed>, PublishError> {
    let total: u64 = found.files.iter().map(|file| file.mark.size()).sum();
    let mut results: Vec<Option<Hashed>> = Vec::with_capacity(known.len());
    for (file, known) in found.files.iter().zip(known) {
        let Some(id) = known else {
            results.push(None);
            continue;
        };
        let size = file.mark.size();
        // A member needs no more; a file of its own gets a name.
        let new = match found.kind {
            FileKind::Collection => None,
            FileKind::File => {
                let layout = layout_of(&file.path, size)?;
                Some((library.shared.load_manifest(&id, layout).await?, file.mark))
            }
        };
        results.push(Some(Hashed { id, size, executable: file.executable, new }));
    }
    let unknown: Vec<usize> = (0..results.len()).filter(|at| results[*at].is_none()).collect();
    let of_known = found.files.iter().zip(&results).filter(|(_, known)| known.is_some());
    let done = of_known.map(|(file, _)| file.mark.size()).sum();
    let files = (results.len() - unknown.len()) as u64;
    let workers = machine::cores().min(MAX_WORKERS);
    let hashing = Arc::new(Hashing {
        results: Mutex::new(results),
        found,
        unknown,
        next: Mutex::default(),
        stop: AtomicBool::new(false),
        done: AtomicU64::new(done),
        files: AtomicU64::new(files),
        total,
        progress,
    });
    if files > 0 {
        hashing.report();
    }
    let guard = StopOnDrop(Arc::clone(&hashing));
    let workers: Vec<_> = (0..workers)
        .map(|_| {
            let hashing = Arc::clone(&hashing);
            machine::spawn_blocking(move || {
                let result = hashing.work();
                if result.is_err() {
                    hashing.stop.store(true, Ordering::Relaxed);
                }
                Ok(result)
            })
        })
        .collect();
    let mut result = Ok(());
    for worker in workers {
        result = result.and(finished(worker).await?);
    }
    drop(guard);
    result?;
    let results = std::mem::take(&mut *hashing.results.lock());
    results.into_iter().map(|hashed| hashed.ok_or_else(|| LibraryError::Closed.into())).collect()
}

impl Hashing {
    fn work(&self) -> Result<(), PublishError> {
        let mut buffer = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Some((file, piece)) = self.take()? else { return Ok(()) };
            let Some(piece) = piece else {
                self.end(&file)?;
                continue;
            };
            let len = file.layout.len(piece);
            buffer.resize(buffer.len().max(len), 0);
            let path = &self.found.files[file.at].path;
            match file.file.read_exact_at(&mut buffer[..len], file.layout.offset(piece)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(PublishError::Changed { path: path.clone() });
                }
                Err(error) => return Err(LibraryError::io("read", path, error).into()),
            }
            let hash = hash_piece(file.layout, piece, &buffer[..len]);
            file.hashes.lock()[piece.as_usize()] = hash;
            self.done.fetch_add(len as u64, Ordering::Relaxed);
            if file.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.end(&file)?;
            } else {
                self.report();
            }
        }
        Ok(())
    }

    /// The next piece of work: a piece of a file, or an empty file.
    fn take(&self) -> Result<Option<Task>, PublishError> {
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
        let found = &self.found.files[at];
        let (file, metadata) = open_regular_itself(&found.path)?;
        let layout = layout_of(&found.path, metadata.len())?;
        let file = Arc::new(InWork {
            at,
            file,
            layout,
            mark: Fingerprint::of(&metadata),
            executable: is_executable(&metadata),
            hashes: Mutex::new(vec![[0; 32]; layout.count() as usize]),
            left: AtomicU32::new(layout.count()),
        });
        if layout.count() > 1 {
            self.next.lock().rest.push((Arc::clone(&file), 1));
        }
        let first = layout.piece(0);
        Ok(Some((file, first)))
    }

    fn end(&self, file: &InWork) -> Result<(), PublishError> {
        let path = &self.found.files[file.at].path;
        let unchanged = |metadata: std::fs::Metadata| Fingerprint::of(&metadata) == file.mark;
        if !std::fs::metadata(path).is_ok_and(unchanged) || !file.file.metadata().is_ok_and(unchanged) {
            return Err(PublishError::Changed { path: path.clone() });
        }
        let hashes = std::mem::take(&mut *file.hashes.lock());
        let Ok(manifest) = Manifest::from_hashes(file.layout, hashes) else {
            return Err(PublishError::Changed { path: path.clone() });
        };
        let hashed = Hashed {
            id: manifest.id(),
            size: manifest.layout().size(),
            executable: file.executable,
            new: Some((manifest, file.mark)),
        };
        self.results.lock()[file.at] = Some(hashed);
        self.files.fetch_add(1, Ordering::Relaxed);
        self.report();
        Ok(())
    }

    fn report(&self) {
        (self.progress)(PublishProgress {
            done: self.done.load(Ordering::Relaxed),
            total: self.total,
            files: self.files.load(Ordering::Relaxed),
        });
    }
}

fn layout_of(path: &Path, size: u64) -> Result<PieceLayout, PublishError> {
    PieceLayout::new(size).map_err(|source| PublishError::TooLarge { path: path.to_owned(), source })
}

/// The manifest of what is in memory.
fn manifest_of(content: &Bytes) -> Result<Manifest, PublishError> {
    let layout = PieceLayout::new(content.len() as u64).map_err(|_| CollectionError::TooLarge)?;
    let hashes = layout.pieces().map(|piece| hash_piece(layout, piece, &slice(content, layout, piece)));
    Manifest::from_hashes(layout, hashes.collect()).map_err(|_| CollectionError::TooLarge.into())
}

fn slice(content: &Bytes, layout: PieceLayout, piece: PieceIndex) -> Bytes {
    let start = layout.offset(piece) as usize;
    content.slice(start..start + layout.len(piece))
}

/// Keeps what is imported from being swept until it has its record.
struct Imports {
    library: Arc<Library>,
    ids: BTreeSet<FileId>,
}

impl Imports {
    /// Whether the content is still to be copied in.
    async fn begin(&mut self, id: FileId) -> Result<bool, LibraryError> {
        if self.ids.contains(&id) {
            return Ok(false);
        }
        let missing = self.library.shared.begin_import(&id).await?;
        self.ids.insert(id);
        Ok(missing)
    }

    /// Copies in the files that were hashed and the list of the collection; durable on return.
    async fn take_in(
        &mut self,
        files: &[FoundFile],
        hashed: &[Hashed],
        collection: Option<&(Manifest, Bytes)>,
    ) -> Result<(), PublishError> {
        for (file, hashed) in files.iter().zip(hashed) {
            if let Some((manifest, _)) = &hashed.new
                && self.begin(hashed.id).await?
            {
                import_file(&self.library, &file.path, manifest).await?;
            }
        }
        let shared = Arc::clone(&self.library.shared);
        if let Some((manifest, encoded)) = collection
            && self.begin(manifest.id()).await?
        {
            let layout = manifest.layout();
            for piece in layout.pieces() {
                let content = vec![(piece, slice(encoded, layout, piece))];
                shared.import(&manifest.id(), content, layout).await?;
            }
        }
        if !self.ids.is_empty() {
            shared.sync_imports().await?;
        }
        Ok(())
    }

    /// Removes what came in of files that get no record: it would take its room until the next start.
    async fn discard(mut self) {
        for id in std::mem::take(&mut self.ids) {
            if let Err(error) = self.library.shared.discard_import(&id).await {
                tracing::warn!(%id, %error, "what was copied in for nothing is removed at the next start");
            }
        }
    }
}

impl Drop for Imports {
    fn drop(&mut self) {
        for id in &self.ids {
            self.library.shared.end_import(id);
        }
    }
}

/// Copies in what is to be stored, and adds everything to the index. Nothing was read before `since_ms`.
async fn add(
    library: Arc<Library>,
    found: Arc<Found>,
    hashed: Vec<Hashed>,
    collection: Option<(Manifest, Bytes)>,
    name: Name,
    store: bool,
    since_ms: u64,
) -> Result<(), PublishError> {
    let shared = Arc::clone(&library.shared);
    let mut imports = Imports { library, ids: BTreeSet::new() };
    let stored = if store { &found.files[..] } else { &[] };
    if let Err(error) = imports.take_in(stored, &hashed, collection.as_ref()).await {
        imports.discard().await;
        return Err(error);
    }
    let owner = collection.as_ref().map(|(manifest, _)| manifest.id());
    let (mut new, mut known) = (Vec::with_capacity(hashed.len() + 1), Vec::new());
    for (file, hashed) in found.files.iter().zip(hashed) {
        let Some((manifest, mark)) = hashed.new else {
            known.extend(owner.map(|owner| (hashed.id, owner)));
            continue;
        };
        new.push(NewPublished {
            manifest,
            kind: FileKind::File,
            name: owner.is_none().then(|| name.clone()),
            member_of: owner,
            linked: (!store).then(|| (file.path.clone(), mark)),
            since_ms,
        });
    }
    if let Some((manifest, _)) = collection {
        let kind = FileKind::Collection;
        new.push(NewPublished { manifest, kind, name: Some(name), member_of: None, linked: None, since_ms });
    }
    // Where that fails, it may be there all the same; if not, what was copied in goes at the next start.
    shared.add_published(new, known).await?;
    Ok(())
}

/// Copies a file into the library. What is read again is verified again.
async fn import_file(library: &Arc<Library>, path: &Path, manifest: &Manifest) -> Result<(), PublishError> {
    let (id, layout) = (manifest.id(), manifest.layout());
    let manifest = Arc::new(manifest.clone());
    let opened = path.to_owned();
    let file = Arc::new(run(move || Ok(open_regular_itself(&opened)?.0)).await?);
    let pieces: Vec<PieceIndex> = layout.pieces().collect();
    for some in pieces.chunks((COPY_BYTES / layout.piece_size() as usize).max(1)) {
        let (some, file, manifest) = (some.to_vec(), Arc::clone(&file), Arc::clone(&manifest));
        let source = path.to_owned();
        let content = run(move || {
            let mut read = Vec::with_capacity(some.len());
            for piece in some {
                let mut content = vec![0; manifest.layout().len(piece)];
                let whole = file.read_exact_at(&mut content, manifest.layout().offset(piece)).is_ok();
                if !whole || !manifest.piece_is(piece, &content) {
                    return Err(PublishError::Changed { path: source });
                }
                read.push((piece, Bytes::from(content)));
            }
            Ok(read)
        })
        .await?;
        library.shared.import(&id, content, layout).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
