//! A part of a collection to download, and a summary of its members to show before any of them is written.

use futures::future::BoxFuture;

use super::error::DownloadError;
use crate::library::error::LibraryError;
use enjambre_core::{Collection, Member, MemberPath};

/// The number of hidden files that a summary names.
const NAMED_HIDDEN: usize = 5;

/// The part of a collection to download.
#[derive(Default)]
pub struct Selection<'a> {
    /// A file or subdirectory; `None` for all members.
    pub path: Option<MemberPath>,
    /// Called with the selected members of a directory before any of them is requested.
    pub on_list: Option<&'a (dyn Fn(Summary) -> BoxFuture<'static, ()> + Send + Sync)>,
}

/// The members of a directory, by the claims of its publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The number of files.
    pub files: u64,
    /// The total size in bytes.
    pub bytes: u64,
    /// The number of files in a path with a component that begins with a dot.
    pub hidden: u64,
    /// The first hidden files.
    pub first_hidden: Vec<MemberPath>,
}

impl Summary {
    /// Summarizes the members of a collection.
    pub fn of(collection: &Collection) -> Self {
        let is_hidden = |path: &&MemberPath| path.as_str().split('/').any(|part| part.starts_with('.'));
        let hidden = || collection.members().iter().map(|member| &member.path).filter(is_hidden);
        Self {
            files: collection.members().len() as u64,
            bytes: collection.total_size(),
            hidden: hidden().count() as u64,
            first_hidden: hidden().take(NAMED_HIDDEN).cloned().collect(),
        }
    }
}

/// Returns the file with this path.
pub fn member<'a>(collection: &'a Collection, path: &MemberPath) -> Option<&'a Member> {
    let members = collection.members();
    members.binary_search_by(|member| member.path.cmp(path)).ok().map(|at| &members[at])
}

/// Returns a subdirectory, with paths relative to it.
pub(super) fn part(collection: &Collection, path: &MemberPath) -> Result<Collection, DownloadError> {
    let inside = |member: &Member| {
        let path = member.path.relative_to(path)?.parse().ok()?;
        Some(Member { path, ..member.clone() })
    };
    let members = collection.members().iter().filter_map(inside).collect();
    let relative = |directory: &MemberPath| directory.relative_to(path)?.parse().ok();
    let directories = collection.directories().iter().filter_map(relative).collect();
    Ok(Collection::with_directories(members, directories).map_err(LibraryError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::FileId;

    fn collection(paths: &[&str]) -> Collection {
        let member = |path: &&str| Member {
            path: path.parse().unwrap(),
            size: 3,
            id: FileId::from_bytes(*blake3::hash(path.as_bytes()).as_bytes()),
            executable: false,
        };
        Collection::new(paths.iter().map(member).collect()).unwrap()
    }

    #[test]
    fn hidden_files_are_counted_and_named() {
        let summary = Summary::of(&collection(&["a", "b/.c", ".ssh/authorized_keys", "d/e.f"]));
        assert_eq!((summary.files, summary.bytes, summary.hidden), (4, 12, 2));
        let named: Vec<_> = summary.first_hidden.iter().map(MemberPath::as_str).collect();
        assert_eq!(named, [".ssh/authorized_keys", "b/.c"]);
    }

    #[test]
    fn part_of_collection_has_relative_paths() {
        let all = collection(&["a", "b/c", "b/d/e", "bc/f"]);
        let paths = |path: &str| {
            let part = part(&all, &path.parse().unwrap()).unwrap();
            part.members().iter().map(|member| member.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths("b"), ["c", "d/e"]);
        assert_eq!(paths("b/d"), ["e"]);
        assert!(paths("a").is_empty() && paths("c").is_empty());
        assert_eq!(member(&all, &"b/c".parse().unwrap()).unwrap().path.file_name(), "c");
        assert!(member(&all, &"b".parse().unwrap()).is_none());
    }
}
