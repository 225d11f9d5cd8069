//! Finding the files to publish.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{MAX_DEPTH, PublishError};
use crate::library::error::LibraryError;
use crate::library::linked::Fingerprint;
use enjambre_core::model::collection::MAX_MEMBERS;
use enjambre_core::{CollectionError, FileId, FileKind, MemberPath, Name};

#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) path: PathBuf,
    pub(super) member: MemberPath,
    pub(super) fingerprint: Fingerprint,
    pub(super) executable: bool,
    /// The id, if the library links the file with this fingerprint.
    pub(super) known: Option<FileId>,
}

impl FoundFile {
    fn new(path: PathBuf, member: MemberPath, metadata: &Metadata) -> Self {
        let (fingerprint, executable) = (Fingerprint::of(metadata), is_executable(metadata));
        Self { path, member, fingerprint, executable, known: None }
    }
}

pub(super) fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o100 != 0
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: Name,
    pub(super) kind: FileKind,
    /// The files, ordered by their paths in the collection.
    pub(super) files: Vec<FoundFile>,
    pub(super) skipped_links: u64,
}

/// Finds the files at a path. Blocks.
pub(super) fn scan(path: &Path, name: Option<Name>) -> Result<Found, PublishError> {
    let root = path.canonicalize().map_err(|error| match error.kind() {
        ErrorKind::NotFound => PublishError::Missing,
        _ => LibraryError::io("find", path, error).into(),
    })?;
    let name = match name {
        Some(name) => name,
        None => {
            // Paths such as `.` have no name of their own.
            let name = path.file_name().or_else(|| root.file_name()).unwrap_or_default();
            name.to_str().ok_or_else(|| PublishError::NotUtf8(path.to_owned()))?.parse()?
        }
    };
    let metadata =
        std::fs::metadata(&root).map_err(|error| LibraryError::io("read the metadata of", &root, error))?;
    let mut found = Found { name, kind: FileKind::File, files: Vec::new(), skipped_links: 0 };
    if metadata.is_file() {
        let member = "file".parse()?;
        found.files.push(FoundFile::new(root, member, &metadata));
    } else if metadata.is_dir() {
        found.kind = FileKind::Collection;
        walk(&root, "", 0, &mut found)?;
        found.files.sort_unstable_by(|a, b| a.member.cmp(&b.member));
    } else {
        return Err(PublishError::Special(root));
    }
    Ok(found)
}

fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut Found) -> Result<(), PublishError> {
    if depth > MAX_DEPTH {
        return Err(PublishError::TooDeep(dir.to_owned()));
    }
    let failed = |error| LibraryError::io("list", dir, error);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        // The metadata of the entry itself: symbolic links are not followed.
        let metadata =
            entry.metadata().map_err(|error| LibraryError::io("read the metadata of", &path, error))?;
        if metadata.is_symlink() {
            found.skipped_links += 1;
            continue;
        }
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| PublishError::NotUtf8(path.clone()))?;
        if metadata.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), depth + 1, found)?;
        } else if metadata.is_file() {
            if found.files.len() >= MAX_MEMBERS {
                return Err(CollectionError::TooLarge.into());
            }
            let member = format!("{prefix}{name}").parse()?;
            found.files.push(FoundFile::new(path, member, &metadata));
        } else {
            return Err(PublishError::Special(path));
        }
    }
    Ok(())
}
