//! Download of a file, or of a collection with its members, into the library or to a path.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::collection::{get_members, is_linked};
use super::context::retry_storage;
use super::downloader::{Download, Downloader};
use super::error::DownloadError;
use super::provider::ProviderSource;
use super::request::{DownloadRequest, Progress};
use super::selection::{Selection, Summary, member, part};
use crate::library::entry::NewFile;
use crate::library::error::LibraryError;
use crate::library::library::Library;
use crate::library::output::{Destination, OutputDir};
use crate::library::small::SmallOutput;
use enjambre_core::model::collection::MAX_ENCODED;
use enjambre_core::{Collection, FileId, FileKind, Name};

/// A file or collection to download, and its destination.
#[derive(Debug, Clone)]
pub struct GetRequest {
    /// The id of the file or collection.
    pub id: FileId,
    /// The name in the library.
    pub name: Option<Name>,
    /// The kind of the file in the catalogue. The content decides.
    pub kind: FileKind,
    /// The size that the publisher claims, in bytes.
    pub size: u64,
    /// The file or directory to write to; `None` for the library.
    pub output: Option<PathBuf>,
    /// Whether to replace existing files at `output`.
    pub force: bool,
    /// Whether to return only when the content survives a power cut.
    pub durable: bool,
}

/// The result of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The bytes of the file, or of all members of the collection.
    pub bytes: u64,
    /// The file or directory that was written; `None` for the library. A file that the catalogue claims to be a collection is
    /// written into an existing directory at [`GetRequest::output`].
    pub path: Option<PathBuf>,
}

/// Downloads a file or collection and returns the bytes of the file, or of all members of the collection.
///
/// Dropping the future stops the download unless it is shared with another caller. Verified pieces are kept.
pub async fn get(
    downloader: &Downloader,
    request: &GetRequest,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let stored = get_selected(downloader, request, &Selection::default(), providers, progress).await?;
    Ok(stored.bytes)
}

/// Downloads the list of the members of a collection, which the library keeps until its next start, and returns it. Refuses
/// files that are larger than any list.
pub async fn get_list(
    downloader: &Downloader,
    request: &GetRequest,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Collection, Arc<DownloadError>> {
    Job { downloader, providers, progress }.list(request).await
}

/// As [`get`], with a part of a collection, and a notice of its members before any of them is written.
pub async fn get_selected(
    downloader: &Downloader,
    request: &GetRequest,
    selection: &Selection<'_>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Stored, Arc<DownloadError>> {
    let (started, metrics) = (Instant::now(), downloader.metrics());
    let result = Job { downloader, providers, progress }.run(request.clone(), selection).await;
    match result.as_ref().map_err(|error| &**error) {
        Ok(_) => metrics.gets.record(started.elapsed()),
        Err(DownloadError::Cancelled) => {}
        Err(_) => metrics.failed_gets.add(1),
    }
    result
}

/// The parts that the steps of a download share.
struct Job<'a> {
    downloader: &'a Downloader,
    providers: Arc<dyn ProviderSource>,
    progress: &'a watch::Sender<Progress>,
}

impl Job<'_> {
    fn library(&self) -> &Library {
        self.downloader.library()
    }

    /// See [`get_selected`].
    async fn run(
        self,
        mut request: GetRequest,
        selection: &Selection<'_>,
    ) -> Result<Stored, Arc<DownloadError>> {
        let collection = request.id;
        let activity = self.downloader.context.activities.enter(collection);
        activity.show(request.name.clone(), request.kind, self.progress.subscribe());
        match &selection.path {
            Some(path) => {
                let list = self.list(&request).await?;
                request.kind = FileKind::Collection;
                let mut sizes = 0..=u64::MAX;
                if let Some(member) = member(&list, path) {
                    request.id = member.id;
                    request.name = member.path.file_name().parse().ok();
                    request.kind = FileKind::of_file(member.executable);
                    request.size = member.size;
                    sizes = member.size..=member.size;
                } else if part(&list, path)?.members().is_empty() {
                    return Err(Arc::new(DownloadError::NoMember(path.clone())));
                }
                self.download(&request, collection, sizes).await?;
            }
            None => self.download_unverified(&mut request).await?,
        }
        let bytes = match request.kind {
            FileKind::Collection => self.place_members(&request, selection).await?,
            FileKind::File | FileKind::Executable => self.place_file(&request).await?,
        };
        if request.durable {
            self.retry(|| self.library().checkpoint_all()).await?;
        }
        Ok(Stored { bytes, path: request.output })
    }

    /// Runs a library operation as [`retry_storage`] does.
    async fn retry<T, F: Future<Output = Result<T, LibraryError>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, LibraryError> {
        retry_storage(&self.downloader.context, self.progress, attempt).await
    }

    /// Downloads a file to its destination, or the list of the members of a collection into the library.
    async fn download(
        &self,
        request: &GetRequest,
        announced_as: FileId,
        accepted_sizes: RangeInclusive<u64>,
    ) -> Result<(), Arc<DownloadError>> {
        let (kind, force) = (request.kind, request.force);
        let destination = match &request.output {
            Some(path) if kind != FileKind::Collection => {
                let executable = kind == FileKind::Executable;
                Destination::Path { path: path.clone(), executable, force }
            }
            _ => Destination::Library,
        };
        let download = self.downloader.get(DownloadRequest {
            id: request.id,
            file: NewFile { name: request.name.clone(), kind, member_of: None },
            claimed_size: request.size,
            accepted_sizes,
            destination,
            announced_as,
            providers: Arc::clone(&self.providers),
        });
        self.follow(&download).await
    }

    /// Waits for a download and passes its progress on.
    async fn follow(&self, download: &Download) -> Result<(), Arc<DownloadError>> {
        let mut updates = download.progress();
        let completion = download.wait();
        tokio::pin!(completion);
        loop {
            tokio::select! {
                biased;
                result = &mut completion => return result,
                Ok(()) = updates.changed() => { self.progress.send_replace(*updates.borrow_and_update()); }
            }
        }
    }

    /// See [`get_list`].
    async fn list(&self, request: &GetRequest) -> Result<Collection, Arc<DownloadError>> {
        let max_size = MAX_ENCODED as u64;
        if request.size > max_size {
            return Err(LibraryError::NotACollection(request.id).into());
        }
        let request = GetRequest { name: None, kind: FileKind::Collection, output: None, ..request.clone() };
        self.download(&request, request.id, 0..=max_size).await?;
        self.retry(|| self.library().verify_kind(&request.id)).await?;
        Ok(self.library().collection(&request.id).await?)
    }

    /// Downloads a file, or the list of the members of a collection, whose kind and size are claims. Corrects the kind, and
    /// the destination that depends on it.
    async fn download_unverified(&self, request: &mut GetRequest) -> Result<(), Arc<DownloadError>> {
        let existed = match &request.output {
            Some(path) => tokio::fs::symlink_metadata(path).await.is_ok(),
            None => false,
        };
        self.download(request, request.id, 0..=u64::MAX).await?;
        let kind = self.retry(|| self.library().verify_kind(&request.id)).await?;
        let claimed = std::mem::replace(&mut request.kind, kind);
        if (kind == FileKind::Collection) == (claimed == FileKind::Collection) {
            return Ok(());
        }
        let Some(path) = &mut request.output else { return Ok(()) };
        if kind != FileKind::Collection {
            if tokio::fs::metadata(&*path).await.is_ok_and(|path| path.is_dir()) {
                path.push(request.name.as_ref().map_or_else(|| request.id.short(), ToString::to_string));
            }
        } else if !existed && is_at(self.library(), &request.id, path) {
            // The list of the members is at the place of the directory.
            self.retry(|| self.library().remove(&request.id)).await?;
            let removed = tokio::fs::remove_file(&*path).await;
            removed.map_err(|error| LibraryError::io("remove", path, error))?;
            self.download(request, request.id, 0..=u64::MAX).await?;
        }
        Ok(())
    }

    /// Copies a downloaded file to its output unless it is there. Returns its size.
    async fn place_file(&self, request: &GetRequest) -> Result<u64, Arc<DownloadError>> {
        let (id, library) = (&request.id, self.library());
        if let Some(path) = &request.output
            && !is_at(library, id, path)
        {
            let executable = request.kind == FileKind::Executable;
            self.retry(|| library.export_file(id, path, executable, request.force)).await?;
        }
        let size = library.entry(id).map_or(request.size, |entry| entry.size);
        self.progress.send_modify(|progress| (progress.done, progress.total) = (size, size));
        Ok(size)
    }

    /// Downloads the selected members of a collection whose list is in the library. Returns their bytes.
    async fn place_members(
        &self,
        request: &GetRequest,
        selection: &Selection<'_>,
    ) -> Result<u64, Arc<DownloadError>> {
        let mut collection = self.library().collection(&request.id).await?;
        if let Some(path) = &selection.path {
            collection = part(&collection, path)?;
        }
        if let Some(notify) = selection.on_list {
            notify(Summary::of(&collection)).await;
        }
        let output = match &request.output {
            Some(path) => {
                let dir = self.retry(|| OutputDir::create(path)).await?;
                Some(SmallOutput { dir, force: request.force })
            }
            None => None,
        };
        let (providers, progress) = (Arc::clone(&self.providers), self.progress);
        let members =
            get_members(self.downloader, request.id, &collection, output.as_ref(), providers, progress);
        let bytes = members.await?;
        self.library().notify_members_stored(&request.id);
        if let Some(SmallOutput { dir, .. }) = output.filter(|_| request.durable) {
            // The library does not track copies in the output directory, so its checkpoint does not sync them.
            self.retry(|| dir.sync()).await?;
        }
        Ok(bytes)
    }
}

/// Whether the content of the file is stored at this path, which may be relative.
fn is_at(library: &Library, id: &FileId, path: &Path) -> bool {
    is_linked(library, id, std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}
