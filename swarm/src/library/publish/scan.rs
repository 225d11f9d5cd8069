//! Finding the files to publish.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{MAX_DEPTH, PublishError, Skipped};
use crate::catalogue::pattern::Pattern;
use crate::library::error::LibraryError;
use crate::library::linked::Fingerprint;
use enjambre_core::model::collection::MAX_MEMBERS;
use enjambre_core::{CollectionError, FileId, FileKind, MemberPath, Name};

#[derive(Debug, Clone)]
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

#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: Name,
    pub(super) kind: FileKind,
    /// The files, ordered by their paths in the collection.
    pub(super) files: Vec<FoundFile>,
    /// The directories without published entries.
    pub(super) empty: Vec<MemberPath>,
    pub(super) skipped: Skipped,
}

impl Found {
    fn new(name: Name) -> Self {
        let (files, empty, skipped) = (Vec::new(), Vec::new(), Skipped::default());
        Self { name, kind: FileKind::File, files, empty, skipped }
    }

    /// A temporary file of this node, which may be in its data directory. Blocks.
    pub(super) fn temporary(path: PathBuf, name: Name) -> Result<Self, PublishError> {
        let metadata = std::fs::metadata(&path)
            .map_err(|error| LibraryError::io("read the metadata of", &path, error))?;
        let file = FoundFile::new(path, "file".parse()?, &metadata);
        Ok(Self { files: vec![file], ..Self::new(name) })
    }
}

/// The length of the key of a node. A node stores it as `key` in its data directory, beside the file `lock`.
const KEY_BYTES: u64 = 32;

/// Rejects a path in the data directory of a node, or in a copy of it. [`walk`] rejects a directory that contains one.
fn check_outside_of_data_dirs(root: &Path) -> Result<(), PublishError> {
    let is_key = |metadata: Metadata| metadata.is_file() && metadata.len() == KEY_BYTES;
    let is_data_dir =
        |dir: &&Path| dir.join("lock").exists() && dir.join("key").symlink_metadata().is_ok_and(is_key);
    match root.ancestors().find(is_data_dir) {
        Some(dir) => Err(PublishError::DataDir(dir.to_owned())),
        None => Ok(()),
    }
}

/// Rejects the key of a node.
fn check_no_key(path: &Path, metadata: &Metadata) -> Result<(), PublishError> {
    let is_named_key = path.file_name().is_some_and(|name| name == "key" || name == "key.new");
    if is_named_key && metadata.len() == KEY_BYTES {
        return Err(PublishError::Key(path.to_owned()));
    }
    Ok(())
}

/// Finds the files at a path. Blocks.
pub(super) fn scan(
    path: &Path,
    name: Option<Name>,
    strict: bool,
    exclude: &[String],
) -> Result<Found, PublishError> {
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
    check_outside_of_data_dirs(&root)?;
    let mut found = Found::new(name);
    if metadata.is_file() {
        check_no_key(&root, &metadata)?;
        let member = "file".parse()?;
        found.files.push(FoundFile::new(root, member, &metadata));
    } else if metadata.is_dir() {
        found.kind = FileKind::Collection;
        Walk { strict, exclude, found: &mut found }.walk(&root, "", 0)?;
        found.files.sort_unstable_by(|a, b| a.member.cmp(&b.member));
    } else {
        return Err(PublishError::Special(root));
    }
    Ok(found)
}

struct Walk<'a> {
    strict: bool,
    exclude: &'a [String],
    found: &'a mut Found,
}

impl Walk<'_> {
    fn walk(&mut self, dir: &Path, prefix: &str, depth: usize) -> Result<(), PublishError> {
        if depth > MAX_DEPTH {
            return Err(PublishError::TooDeep(dir.to_owned()));
        }
        let failed = |error| LibraryError::io("list", dir, error).into();
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if depth > 0 => return self.skip(failed(error)),
            Err(error) => return Err(failed(error)),
        };
        let before = self.found.files.len() + self.found.empty.len();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.skip(failed(error)),
            };
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                self.skip(PublishError::NotUtf8(path))?;
                continue;
            };
            let relative = format!("{prefix}{name}");
            if self.exclude.iter().any(|pattern| matches(pattern, &name, &relative)) {
                continue;
            }
            // The metadata of the entry itself: symbolic links are not followed.
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    self.skip(LibraryError::io("read the metadata of", &path, error).into())?;
                    continue;
                }
            };
            if metadata.is_dir() {
                self.walk(&path, &format!("{relative}/"), depth + 1)?;
            } else if metadata.is_file() {
                check_no_key(&path, &metadata)?;
                match relative.parse() {
                    Ok(member) => self.found.files.push(FoundFile::new(path, member, &metadata)),
                    Err(error) => self.skip(PublishError::Path(error))?,
                }
            } else if metadata.is_symlink() && !self.strict {
                self.found.skipped.links += 1;
            } else {
                self.skip(PublishError::Special(path))?;
            }
            if self.found.files.len() + self.found.empty.len() > MAX_MEMBERS {
                return Err(CollectionError::TooLarge.into());
            }
        }
        let is_empty = self.found.files.len() + self.found.empty.len() == before;
        if let Some(path) = prefix.strip_suffix('/').filter(|_| is_empty) {
            match path.parse() {
                Ok(path) => self.found.empty.push(path),
                Err(error) => self.skip(PublishError::Path(error))?,
            }
        }
        Ok(())
    }

    /// Skips an entry that cannot be published.
    fn skip(&mut self, error: PublishError) -> Result<(), PublishError> {
        if self.strict {
            return Err(error);
        }
        self.found.skipped.add(&error);
        Ok(())
    }
}

fn matches(pattern: &str, name: &str, path: &str) -> bool {
    let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
    let text = if pattern.contains('/') { path } else { name };
    if pattern.contains(['*', '?']) { Pattern::glob(pattern).matches(text) } else { pattern == text }
}
