//! Everything that `get` means: a file, or a collection with its members, into the library or to a path.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::DownloadError;
use super::directory::get_members;
use super::downloader::Downloader;
use super::hold::with_room;
use super::progress::Progress;
use super::source::ProviderSource;
use super::wanted::Wanted;
use crate::library::entry::Location;
use crate::library::output::{Destination, OutputDir};
use crate::library::small::SmallOutput;
use crate::model::id::FileId;
use crate::model::name::Name;
use crate::model::record::FileKind;

/// What somebody wants to have.
#[derive(Debug, Clone)]
pub struct Get {
    /// The file or collection.
    pub id: FileId,
    /// The name that it is kept under.
    pub name: Option<Name>,
    /// What it is.
    pub kind: FileKind,
    /// The size that its publisher claims, in bytes.
    pub size: u64,
    /// The file or folder to write to; none for the library.
    pub output: Option<PathBuf>,
    /// Replace what is at `output`.
    pub force: bool,
    /// Return only when all of it survives a power cut.
    pub durable: bool,
}

/// Gets it; returns the bytes of the file, or of all members of the collection together. When the future is
/// dropped the download stops, unless somebody else waits for the same file, and what it has is kept.
pub async fn get(
    downloader: &Downloader,
    what: &Get,
    providers: Arc<dyn ProviderSource>,
    progress: &watch::Sender<Progress>,
) -> Result<u64, Arc<DownloadError>> {
    let library = downloader.library();
    let parts = &*downloader.parts;
    let failed = |error: crate::library::error::LibraryError| Arc::new(DownloadError::from(error));
    let destination = match (&what.output, what.kind) {
        (Some(path), FileKind::File) => Destination::Path { path: path.clone(), force: what.force },
        _ => Destination::Library,
    };
    let download = downloader.get(Wanted {
        id: what.id,
        name: what.name.clone(),
        kind: what.kind,
        member_of: None,
        claimed_size: Some(what.size),
        proven_size: None,
        destination,
        announced_as: what.id,
        providers: Arc::clone(&providers),
    });
    let mut seen = download.progress();
    let waiting = download.wait();
    tokio::pin!(waiting);
    loop {
        tokio::select! {
            biased;
            result = &mut waiting => break result?,
            Ok(()) = seen.changed() => { progress.send_replace(*seen.borrow_and_update()); }
        }
    }
    let last = *download.progress().borrow();
    let bytes = match (what.kind, &what.output) {
        (FileKind::File, output) => {
            if let Some(path) = output {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let is_there = matches!(library.entry(&what.id), Some(entry)
                    if entry.location == Location::Linked { path: absolute });
                if !is_there {
                    let export = || library.export(&what.id, path, what.force);
                    with_room(parts, progress, export).await.map_err(failed)?;
                }
            }
            let size = library.entry(&what.id).map_or(last.total, |entry| entry.size);
            progress.send_replace(Progress { done: size, total: size, ..last });
            size
        }
        (FileKind::Collection, output) => {
            let output = match output {
                Some(path) => Some(SmallOutput {
                    dir: with_room(parts, progress, || OutputDir::create(path)).await.map_err(failed)?,
                    force: what.force,
                }),
                None => None,
            };
            let bytes = get_members(downloader, what.id, output.as_ref(), providers, progress).await?;
            if let Some(SmallOutput { dir, .. }) = output.filter(|_| what.durable) {
                // Of copies that were made there the library knows nothing.
                with_room(parts, progress, || dir.sync()).await.map_err(failed)?;
            }
            bytes
        }
    };
    if what.durable {
        with_room(parts, progress, || library.checkpoint_all()).await.map_err(failed)?;
    }
    Ok(bytes)
}
