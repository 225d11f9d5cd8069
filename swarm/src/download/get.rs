//! Download of a file, or of a collection with its members, into the library or to a path.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::collection::{get_members, is_linked};
use super::context::retry_storage;
use super::downloader::Downloader;
use super::error::DownloadError;
use super::provider::ProviderSource;
use super::request::{DownloadRequest, Progress};
use crate::library::entry::NewFile;
use crate::library::output::{Destination, OutputDir};
use crate::library::small::SmallOutput;
use enjambre_core::{FileId, FileKind, Name};

/// A file or collection to download, and its destination.
#[derive(Debug, Clone)]
pub struct GetRequest {
    /// The id of the file or collection.
    pub id: FileId,
    /// The name in the library.
    pub name: Option<Name>,
    /// The kind of the file.
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

/// Downloads a file or collection and returns the bytes of the file, or of all members of the collection.
///
/// Dropping the future stops the download unless it is shared with another caller. Verified pieces are kept.
pub async fn get(
    downloader: &Downloader,
    request: &GetRequest,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let library = downloader.library();
    let context = &*downloader.context;
    let destination = match (&request.output, request.kind) {
        (Some(path), FileKind::File) => Destination::Path { path: path.clone(), force: request.force },
        _ => Destination::Library,
    };
    let download = downloader.get(DownloadRequest {
        id: request.id,
        file: NewFile { name: request.name.clone(), kind: request.kind, member_of: None },
        claimed_size: request.size,
        proven_size: None,
        destination,
        announced_as: request.id,
        providers: Arc::clone(&providers),
    });
    let mut updates = download.progress();
    let completion = download.wait();
    tokio::pin!(completion);
    loop {
        tokio::select! {
            biased;
            result = &mut completion => break result?,
            Ok(()) = updates.changed() => { progress.send_replace(*updates.borrow_and_update()); }
        }
    }
    let last = *download.progress().borrow();
    let bytes = match (request.kind, &request.output) {
        (FileKind::File, output) => {
            if let Some(path) = output {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                if !is_linked(library, &request.id, absolute) {
                    let export = || library.export(&request.id, path, request.force);
                    retry_storage(context, progress, export).await?;
                }
            }
            let size = library.entry(&request.id).map_or(last.total, |entry| entry.size);
            progress.send_replace(Progress { done: size, total: size, ..last });
            size
        }
        (FileKind::Collection, output) => {
            let mut small_output = None;
            if let Some(path) = output {
                let dir = retry_storage(context, progress, || OutputDir::create(path)).await?;
                small_output = Some(SmallOutput { dir, force: request.force });
            }
            let bytes =
                get_members(downloader, request.id, small_output.as_ref(), providers, progress).await?;
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
    Ok(bytes)
}
