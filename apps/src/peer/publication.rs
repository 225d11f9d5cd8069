//! Publishing a path: adds it to the library and describes it for the trackers.

use std::path::{Path, PathBuf};

use enjambre_core::model::name::Name;
use enjambre_core::model::record::Publication;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::library::publish::{PublishError, PublishOptions, PublishProgress, Published};

use crate::control::message::{Event, Events};
use crate::failure::{Failure, Status};

/// Adds a file or directory to the library, under `name` or the name of the path. Returns the publication that is now in
/// the outbox as well.
pub(super) async fn publish(
    library: &Library,
    path: &Path,
    name: Option<Name>,
    store: bool,
    events: &Events,
) -> Result<(Published, Publication), Failure> {
    let shown = PathBuf::from(path);
    let sink = events.clone();
    let progress = move |progress: PublishProgress| {
        let event = Event::Hashing { path: shown.clone(), done: progress.done, total: progress.total };
        sink.progress(event);
    };
    let published = library.publish(path, PublishOptions { name, store }, progress).await?;
    if published.skipped_links > 0 {
        let count = published.skipped_links;
        events.warn(format!("{}: skipped {count} symbolic links", path.display())).await;
    }
    // For a directory the publication contains the size of the encoded collection, not that of its files.
    let entry = library
        .entry(&published.id)
        .ok_or_else(|| Failure::failed(format!("{} was removed during the publication", published.name)))?;
    let publication =
        Publication { name: published.name.clone(), id: entry.id, size: entry.size, kind: entry.kind };
    Ok((published, publication))
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Library(error) => error.into(),
            // The user corrects both on the command line.
            PublishError::Name(_) | PublishError::NotUtf8 { .. } => Self::from_error(Status::Usage, &error),
            _ => Self::from_error(Status::Failed, &error),
        }
    }
}
