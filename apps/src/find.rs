//! Lookup of a file by the user's query.

use enjambre_control::Failure;
use enjambre_core::{FileId, FileKind, Name};
use enjambre_swarm::library::entry::Entry;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::trackers::Trackers;

/// A file or directory, by the claims of its publisher.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: FileId,
    pub(crate) name: Name,
    pub(crate) kind: FileKind,
    pub(crate) size: u64,
    /// Why the library was used instead of a tracker.
    pub(crate) warning: Option<String>,
}

/// Looks up a file at the trackers, which know the newest version. Falls back to complete files of the library.
pub(crate) async fn find(library: &Library, trackers: &Trackers, query: &str) -> Result<Found, TrackerError> {
    let local = library.find(query).ok().filter(Entry::is_complete).and_then(|entry| {
        let name = entry.name.clone().or_else(|| default_name(&entry.id))?;
        Some(Found { id: entry.id, name, kind: entry.kind, size: entry.size, warning: None })
    });
    if query.parse::<FileId>().is_ok()
        && let Some(found) = local
    {
        return Ok(found);
    }
    match trackers.find(query).await {
        Ok(file) => {
            Ok(Found { id: file.id, name: file.name, kind: file.kind, size: file.size, warning: None })
        }
        Err(error @ (TrackerError::NotFound { .. } | TrackerError::Unreachable { .. })) => {
            let Some(found) = local else { return Err(error) };
            let is_unreachable = matches!(error, TrackerError::Unreachable { .. });
            let warning = is_unreachable.then(|| format!("{error}; using the file in the library"));
            Ok(Found { warning, ..found })
        }
        Err(error) => Err(error),
    }
}

/// Refuses a path in a directory, for commands that take whole files and directories.
pub(crate) fn check_whole(query: &str) -> Result<(), Failure> {
    if !query.contains('/') {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{query:?} is a part of a directory, which cannot be queued or pinned; use the name or the id of the directory, or \
         `enjambre get` for the part"
    )))
}

/// Returns the name for a file without a name.
pub(crate) fn default_name(id: &FileId) -> Option<Name> {
    format!("{}.bin", id.short()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_a_directory_is_refused_with_alternative() {
        assert_eq!(check_whole("film.mkv"), Ok(()));
        let refused = check_whole("films/film.mkv").unwrap_err();
        assert!(refused.message.contains("enjambre get"), "{refused:?}");
    }
}
