//! Download of a file, or of a collection with its members, into the library or to a path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

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
use enjambre_core::{Collection, FileId, FileKind, Member, Name};

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

/// Whether the content of the file is stored at this path, which may be relative.
fn is_at(library: &Library, id: &FileId, path: &Path) -> bool {
    is_linked(library, id, std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// Downloads the file, or the list of the members of a collection.
async fn download(
    downloader: &Downloader,
    request: &GetRequest,
    max_size: Option<u64>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Progress, Arc<DownloadError>> {
    let destination = match (&request.output, request.kind) {
        (Some(path), FileKind::File) => Destination::Path { path: path.clone(), force: request.force },
        _ => Destination::Library,
    };
    let download = downloader.get(DownloadRequest {
        id: request.id,
        file: NewFile { name: request.name.clone(), kind: request.kind, member_of: None },
        claimed_size: request.size,
        proven_size: None,
        max_size,
        destination,
        announced_as: request.id,
        providers,
    });
    follow(&download, progress).await?;
    Ok(*download.progress().borrow())
}

/// Waits for a download and passes its progress on.
async fn follow(download: &Download, progress: &watch::Sender<Progress>) -> Result<(), Arc<DownloadError>> {
    let mut updates = download.progress();
    let completion = download.wait();
    tokio::pin!(completion);
    loop {
        tokio::select! {
            biased;
            result = &mut completion => return result,
            Ok(()) = updates.changed() => { progress.send_replace(*updates.borrow_and_update()); }
        }
    }
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
    let (library, context) = (downloader.library(), &*downloader.context);
    let max_size = MAX_ENCODED as u64;
    if request.size > max_size {
        return Err(LibraryError::NotACollection(request.id).into());
    }
    let request = GetRequest { name: None, kind: FileKind::Collection, output: None, ..request.clone() };
    download(downloader, &request, Some(max_size), providers, progress).await?;
    retry_storage(context, progress, || library.verify_kind(&request.id)).await?;
    Ok(library.collection(&request.id).await?)
}

/// As [`get`], with a part of a collection, and a notice of its members before any of them is written.
pub async fn get_selected(
    downloader: &Downloader,
    request: &GetRequest,
    selection: &Selection<'_>,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<Stored, Arc<DownloadError>> {
    if let Some(path) = &selection.path {
        let list = get_list(downloader, request, Arc::clone(&providers), progress).await?;
        if let Some(member) = member(&list, path) {
            let bytes = get_member(downloader, request, member, providers, progress).await?;
            return Ok(Stored { bytes, path: request.output.clone() });
        }
        if part(&list, path)?.members().is_empty() {
            return Err(Arc::new(DownloadError::NoMember(path.clone())));
        }
    }
    let kind = if selection.path.is_some() { FileKind::Collection } else { request.kind };
    let request = &GetRequest { kind, ..request.clone() };
    let library = downloader.library();
    let context = &*downloader.context;
    let replaced = match &request.output {
        Some(path) => tokio::fs::symlink_metadata(path).await.is_ok(),
        None => false,
    };
    let mut last = download(downloader, request, None, Arc::clone(&providers), progress).await?;
    let kind = retry_storage(context, progress, || library.verify_kind(&request.id)).await?;
    let corrected;
    let request = if kind == request.kind {
        request
    } else {
        let mut correct = GetRequest { kind, ..request.clone() };
        match (kind, &mut correct.output) {
            (FileKind::File, Some(path))
                if tokio::fs::metadata(&*path).await.is_ok_and(|path| path.is_dir()) =>
            {
                path.push(request.name.as_ref().map_or_else(|| request.id.short(), ToString::to_string));
            }
            // The list of the members is at the place of the directory.
            (FileKind::Collection, Some(path)) if !replaced && is_at(library, &request.id, path) => {
                retry_storage(context, progress, || library.remove(&request.id)).await?;
                tokio::fs::remove_file(&*path)
                    .await
                    .map_err(|error| LibraryError::io("remove", path, error))?;
                last = download(downloader, &correct, None, Arc::clone(&providers), progress).await?;
            }
            _ => {}
        }
        corrected = correct;
        &corrected
    };
    let bytes = match (request.kind, &request.output) {
        (FileKind::File, output) => {
            if let Some(path) = output
                && !is_at(library, &request.id, path)
            {
                let export = || library.export(&request.id, path, request.force);
                retry_storage(context, progress, export).await?;
            }
            let size = library.entry(&request.id).map_or(last.total, |entry| entry.size);
            progress.send_replace(Progress { done: size, total: size, ..last });
            size
        }
        (FileKind::Collection, output) => {
            let mut collection = library.collection(&request.id).await?;
            if let Some(path) = &selection.path {
                collection = part(&collection, path)?;
            }
            if let Some(notify) = selection.on_list {
                notify(Summary::of(&collection)).await;
            }
            let mut small_output = None;
            if let Some(path) = output {
                let dir = retry_storage(context, progress, || OutputDir::create(path)).await?;
                small_output = Some(SmallOutput { dir, force: request.force });
            }
            let output = small_output.as_ref();
            let bytes = get_members(downloader, request.id, &collection, output, providers, progress).await?;
            library.notify_members_stored(&request.id);
            if let Some(SmallOutput { dir, .. }) = small_output.filter(|_| request.durable) {
                // The library does not track copies in the output directory, so its checkpoint does not sync them.
                retry_storage(context, progress, || dir.sync()).await?;
            }
            bytes
        }
    };
    if request.durable {
        retry_storage(context, progress, || library.checkpoint_all()).await?;
    }
    Ok(Stored { bytes, path: request.output.clone() })
}

/// Downloads one file of a collection, as a file of its own.
async fn get_member(
    downloader: &Downloader,
    request: &GetRequest,
    member: &Member,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let (library, context) = (downloader.library(), &*downloader.context);
    let name = member.path.file_name().parse().ok();
    let destination = match &request.output {
        Some(path) => Destination::Path { path: path.clone(), force: request.force },
        None => Destination::Library,
    };
    let download = downloader.get(DownloadRequest {
        id: member.id,
        file: NewFile { name, kind: FileKind::File, member_of: None },
        claimed_size: member.size,
        proven_size: Some(member.size),
        max_size: None,
        destination,
        announced_as: request.id,
        providers,
    });
    follow(&download, progress).await?;
    if let Some(path) = &request.output
        && !is_at(library, &member.id, path)
    {
        retry_storage(context, progress, || library.export(&member.id, path, request.force)).await?;
    }
    if request.durable {
        retry_storage(context, progress, || library.checkpoint_all()).await?;
    }
    Ok(member.size)
}
