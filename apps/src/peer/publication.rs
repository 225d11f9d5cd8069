//! From a path to something that can be told to trackers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::library::library::Library;
use enjambre_core::model::name::Name;
use enjambre_core::model::record::Publication;
use enjambre_core::publish::{self, PublishError, PublishOptions, Published};

use crate::control::message::{Event, Events};
use crate::failure::{Failure, Status};

/// Puts a file or folder into the library, under `name` or that of the path. Returns what to tell the trackers as
/// well.
pub(super) async fn publish(
    library: &Arc<Library>,
    path: &Path,
    name: Option<Name>,
    store: bool,
    events: &Events,
) -> Result<(Published, Publication), Failure> {
    let shown = PathBuf::from(path);
    let sink = events.clone();
    let progress = move |progress: publish::PublishProgress| {
        let event = Event::Hashing { path: shown.clone(), done: progress.done, total: progress.total };
        sink.progress(event);
    };
    let published = publish::publish(library, path, PublishOptions { name, store }, progress).await?;
    if published.skipped_links > 0 {
        let count = published.skipped_links;
        events.warn(format!("{}: {count} symbolic links were passed over", path.display())).await;
    }
    // The trackers are told the size of the list of a folder, not that of its files.
    let entry = library.entry(&published.id).ok_or_else(|| Failure::failed("it was removed meanwhile"))?;
    let publication =
        Publication { name: published.name.clone(), id: entry.id, size: entry.size, kind: entry.kind };
    Ok((published, publication))
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Library(error) => error.into(),
            // Both are mended on the command line.
            PublishError::Name(_) | PublishError::NotUtf8 { .. } => Self::from_error(Status::Usage, &error),
            _ => Self::from_error(Status::Failed, &error),
        }
    }
}
