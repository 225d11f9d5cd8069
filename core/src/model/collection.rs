//! Collections: a directory as a sorted list of the paths, sizes and ids of its files.
//!
//! The encoding is deterministic CBOR (RFC 8949, section 4.2.1), so that a directory has one id:
//!
//! ```text
//! ["enjambre collection 1", [[path: text, size: uint, id: bytes .size 32, executable: bool], ...], [path: text, ...]]
//! ```
//!
//! The last array lists the empty directories and is absent if there are none. Members and directories are sorted by the
//! bytes of their paths. An invalid list is refused as a whole before any member is written to
//! disk. Symbolic links are not included.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::cbor::{ARRAY, BYTES, TEXT, UINT, head_len, put_head, take_head};
use super::id::FileId;
use super::layout::MAX_FILE_SIZE;

/// The maximum number of members.
pub const MAX_MEMBERS: usize = 1_000_000;
/// The maximum encoded size in bytes: 128 MiB. It bounds the memory that a download of a directory uses.
pub const MAX_ENCODED: usize = 128 * 1024 * 1024;
/// The maximum length of a path in bytes.
pub const MAX_PATH: usize = 4000;
/// The maximum length of a path component in bytes, which is the limit of file systems.
pub const MAX_PART: usize = 255;
/// The suffix of files whose download is not finished.
pub const PART_SUFFIX: &str = ".enjambre-part";

/// The minimum length of an encoded member in bytes.
const MIN_MEMBER: usize = 38;

const MARK: &str = "enjambre collection 1";

/// An invalid member path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid path {path:?} in a collection: {problem}")]
pub struct MemberPathError {
    /// The path, truncated to 80 characters.
    pub path: String,
    /// The rule that it violates.
    pub problem: &'static str,
}

/// A relative path of plain names, separated by `/`, that cannot escape its base directory. Clones share one allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Arc<str>);

impl MemberPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The path relative to a directory; `None` if it is not inside.
    pub fn relative_to(&self, directory: &Self) -> Option<&str> {
        self.0.strip_prefix(directory.as_str())?.strip_prefix('/')
    }
}

impl FromStr for MemberPath {
    type Err = MemberPathError;

    fn from_str(path: &str) -> Result<Self, MemberPathError> {
        let refuse = |problem| MemberPathError { path: path.chars().take(80).collect(), problem };
        if path.is_empty() || path.len() > MAX_PATH {
            return Err(refuse("the length is not 1 to 4000 bytes"));
        }
        if path.starts_with('/') {
            return Err(refuse("the path is absolute"));
        }
        if path.contains('\\') {
            return Err(refuse("the path contains a backslash, which is a separator on some systems"));
        }
        if path.contains('\0') {
            return Err(refuse("the path contains a NUL character"));
        }
        for part in path.split('/') {
            match part {
                "" => return Err(refuse("a component is empty")),
                "." | ".." => return Err(refuse("a component is . or ..")),
                _ if part.len() > MAX_PART => return Err(refuse("a component is longer than 255 bytes")),
                _ if is_part_name(part) => {
                    return Err(refuse("the suffix .enjambre-part is reserved for unfinished downloads"));
                }
                _ => {}
            }
        }
        Ok(Self(path.into()))
    }
}

fn is_part_name(part: &str) -> bool {
    let (bytes, suffix) = (part.as_bytes(), PART_SUFFIX.as_bytes());
    bytes.len() >= suffix.len() && bytes[bytes.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A file of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The path relative to the directory.
    pub path: MemberPath,
    /// The size in bytes, as claimed by the publisher.
    pub size: u64,
    /// The hash of the content.
    pub id: FileId,
    /// Whether the owner may execute the file.
    pub executable: bool,
}

/// An invalid collection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectionError {
    /// A path is invalid.
    #[error(transparent)]
    Path(#[from] MemberPathError),
    /// Two members have the same path.
    #[error("duplicate path {path}")]
    Duplicate {
        /// The path.
        path: MemberPath,
    },
    /// A path is both a file and a directory.
    #[error("{path} is both a file and a directory")]
    FileAndDirectory {
        /// The path.
        path: MemberPath,
    },
    /// A member exceeds the maximum file size.
    #[error("{path} has {size} bytes, which exceeds the maximum file size")]
    FileTooLarge {
        /// The path.
        path: MemberPath,
        /// The size in bytes.
        size: u64,
    },
    /// The claimed size contradicts the id, or another entry with the same id.
    #[error("{path} has {size} bytes, which contradicts its id or another entry with this id")]
    WrongSize {
        /// The path.
        path: MemberPath,
        /// The size in bytes.
        size: u64,
    },
    /// Too many members or bytes.
    #[error("collection too large: the limit is {MAX_MEMBERS} files and {MAX_ENCODED} bytes")]
    TooLarge,
    /// The bytes are not the deterministic CBOR of a collection.
    #[error("malformed collection: {problem} at byte {at}")]
    Malformed {
        /// The violated rule.
        problem: &'static str,
        /// The offset in bytes.
        at: usize,
    },
}

/// The valid list of the files of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    members: Vec<Member>,
    /// The empty directories.
    directories: Vec<MemberPath>,
}

impl Collection {
    /// Sorts and validates the members.
    pub fn new(members: Vec<Member>) -> Result<Self, CollectionError> {
        Self::with_directories(members, Vec::new())
    }

    /// Sorts and validates the members and the empty directories.
    pub fn with_directories(
        mut members: Vec<Member>,
        mut directories: Vec<MemberPath>,
    ) -> Result<Self, CollectionError> {
        members.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        directories.sort_unstable();
        let collection = Self { members, directories };
        collection.check()?;
        if collection.members.len() + collection.directories.len() > MAX_MEMBERS
            || collection.encoded_len() > MAX_ENCODED
        {
            return Err(CollectionError::TooLarge);
        }
        Ok(collection)
    }

    /// The members, sorted by the bytes of their paths.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The empty directories, sorted by the bytes of their paths.
    pub fn directories(&self) -> &[MemberPath] {
        &self.directories
    }

    /// The total size of the members in bytes, as claimed by the publisher.
    pub fn total_size(&self) -> u64 {
        self.members.iter().map(|member| member.size).sum()
    }

    /// Returns a path that equals another one on a case-insensitive file system.
    pub fn folding_collision(&self) -> Option<&MemberPath> {
        let mut seen = HashSet::with_capacity(self.members.len());
        self.members.iter().map(|member| &member.path).find(|path| !seen.insert(path.as_str().to_lowercase()))
    }

    /// Encodes the list in at most [`MAX_ENCODED`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        put_head(&mut out, ARRAY, if self.directories.is_empty() { 2 } else { 3 });
        put_text(&mut out, MARK);
        put_head(&mut out, ARRAY, self.members.len() as u64);
        for member in &self.members {
            put_head(&mut out, ARRAY, 4);
            put_text(&mut out, member.path.as_str());
            put_head(&mut out, UINT, member.size);
            put_head(&mut out, BYTES, 32);
            out.extend_from_slice(member.id.as_bytes());
            out.push(if member.executable { TRUE } else { FALSE });
        }
        if !self.directories.is_empty() {
            put_head(&mut out, ARRAY, self.directories.len() as u64);
            self.directories.iter().for_each(|path| put_text(&mut out, path.as_str()));
        }
        out
    }

    /// Whether the bytes begin like an encoded list.
    pub fn is_encoded(bytes: &[u8]) -> bool {
        let mut reader = Reader { rest: bytes, length: bytes.len() };
        matches!(reader.head(ARRAY), Ok(2 | 3)) && reader.text() == Ok(MARK)
    }

    /// Decodes and validates a list. The memory used is proportional to the length of `bytes`, whatever count they claim.
    pub fn decode(bytes: &[u8]) -> Result<Self, CollectionError> {
        if bytes.len() > MAX_ENCODED {
            return Err(CollectionError::TooLarge);
        }
        let mut reader = Reader { rest: bytes, length: bytes.len() };
        let fields = reader.head(ARRAY)?;
        if !matches!(fields, 2 | 3) || reader.text()? != MARK {
            return Err(reader.malformed("missing header of a collection"));
        }
        let count = reader.head(ARRAY)?;
        if count > MAX_MEMBERS as u64 {
            return Err(CollectionError::TooLarge);
        }
        let mut members = reader.members(count);
        for _ in 0..count {
            if reader.head(ARRAY)? != 4 {
                return Err(reader.malformed("a member does not have four fields"));
            }
            let path: MemberPath = reader.text()?.parse()?;
            if members.last().is_some_and(|last| last.path > path) {
                return Err(reader.malformed("the members are not sorted"));
            }
            let size = reader.head(UINT)?;
            let id = reader
                .string(BYTES)?
                .try_into()
                .map_err(|_| reader.malformed("an id is not 32 bytes long"))?;
            let executable = reader.bool()?;
            members.push(Member { path, size, id, executable });
        }
        let directories = if fields == 3 { reader.directories(count)? } else { Vec::new() };
        if !reader.rest.is_empty() {
            return Err(reader.malformed("trailing bytes"));
        }
        let collection = Self { members, directories };
        collection.check()?;
        Ok(collection)
    }

    fn check(&self) -> Result<(), CollectionError> {
        for pair in self.members.windows(2) {
            if pair[0].path == pair[1].path {
                return Err(CollectionError::Duplicate { path: pair[0].path.clone() });
            }
        }
        for member in &self.members {
            if member.size > MAX_FILE_SIZE {
                return Err(CollectionError::FileTooLarge { path: member.path.clone(), size: member.size });
            }
        }
        self.check_sizes()?;
        let mut paths: Vec<&MemberPath> =
            self.members.iter().map(|member| &member.path).chain(&self.directories).collect();
        if !self.directories.is_empty() {
            paths.sort_unstable();
            if let Some(pair) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(CollectionError::Duplicate { path: pair[0].clone() });
            }
        }
        match file_and_directory(paths.into_iter(), |path, longer| longer.starts_with(path)) {
            Some(path) => Err(CollectionError::FileAndDirectory { path: path.clone() }),
            None => Ok(()),
        }
    }

    /// Refuses sizes that are certainly wrong. Any other size is an unverified claim until the file is downloaded.
    fn check_sizes(&self) -> Result<(), CollectionError> {
        let empty = FileId::from_bytes(*blake3::hash(b"").as_bytes());
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.sort_unstable_by_key(|member| member.id);
        let empty_is_right = |member: &&Member| (member.id == empty) == (member.size == 0);
        let wrong = members.iter().find(|member| !empty_is_right(member)).copied();
        let differs = |pair: &&[&Member]| pair[0].id == pair[1].id && pair[0].size != pair[1].size;
        match wrong.or_else(|| members.windows(2).find(differs).map(|pair| pair[1])) {
            Some(Member { path, size, .. }) => {
                Err(CollectionError::WrongSize { path: path.clone(), size: *size })
            }
            None => Ok(()),
        }
    }

    fn encoded_len(&self) -> usize {
        let members = self.members.iter().map(|member| {
            let path = member.path.as_str().len();
            1 + head_len(path as u64) + path + head_len(member.size) + 2 + 32 + 1
        });
        let directories = self.directories.iter().map(|path| {
            let path = path.as_str().len();
            head_len(path as u64) + path
        });
        1 + head_len(MARK.len() as u64)
            + MARK.len()
            + head_len(self.members.len() as u64)
            + members.sum::<usize>()
            + if self.directories.is_empty() { 0 } else { head_len(self.directories.len() as u64) }
            + directories.sum::<usize>()
    }
}

/// Returns a path that is also a directory of another one. The paths are sorted; `is_prefix` returns whether the second text
/// starts with the first.
///
/// Each path is compared a constant number of times. A path sorts before every path that starts with it, and all paths
/// between the two start with it as well. So the prefixes of the current path are nested and form a stack. Only the longest
/// has to be checked, since the shorter ones were checked against it.
fn file_and_directory<'a>(
    paths: impl Iterator<Item = &'a MemberPath>,
    mut is_prefix: impl FnMut(&str, &str) -> bool,
) -> Option<&'a MemberPath> {
    let mut prefixes: Vec<&MemberPath> = Vec::new();
    for path in paths {
        while let Some(longest) = prefixes.last() {
            if is_prefix(longest.as_str(), path.as_str()) {
                break;
            }
            prefixes.pop();
        }
        if let Some(longest) = prefixes.last()
            && path.as_str().as_bytes().get(longest.as_str().len()) == Some(&b'/')
        {
            return Some(longest);
        }
        prefixes.push(path);
    }
    None
}

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    const fn malformed(&self, problem: &'static str) -> CollectionError {
        CollectionError::Malformed { problem, at: self.length - self.rest.len() }
    }

    fn head(&mut self, major: u8) -> Result<u64, CollectionError> {
        let mut tail = self.rest;
        let Some(value) = take_head(&mut tail, major) else {
            return Err(self.malformed("truncated item or unexpected type"));
        };
        if self.rest.len() - tail.len() != head_len(value) {
            return Err(self.malformed("an integer is not in its shortest form"));
        }
        self.rest = tail;
        Ok(value)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], CollectionError> {
        let split = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let (taken, tail) = split.ok_or_else(|| self.malformed("truncated item"))?;
        self.rest = tail;
        Ok(taken)
    }

    fn string(&mut self, major: u8) -> Result<&'a [u8], CollectionError> {
        let len = self.head(major)?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str, CollectionError> {
        let bytes = self.string(TEXT)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// Returns an empty list for the members, of which no more are expected than fit into the bytes.
    fn members(&self, claimed: u64) -> Vec<Member> {
        Vec::with_capacity((claimed as usize).min(self.rest.len() / MIN_MEMBER))
    }

    /// Reads the empty directories of a list with this number of members.
    fn directories(&mut self, members: u64) -> Result<Vec<MemberPath>, CollectionError> {
        let count = self.head(ARRAY)?;
        if count == 0 {
            return Err(self.malformed("an empty list of directories"));
        }
        if count > MAX_MEMBERS as u64 - members {
            return Err(CollectionError::TooLarge);
        }
        let mut directories: Vec<MemberPath> = Vec::new();
        for _ in 0..count {
            let path: MemberPath = self.text()?.parse()?;
            if directories.last().is_some_and(|last| *last > path) {
                return Err(self.malformed("the directories are not sorted"));
            }
            directories.push(path);
        }
        Ok(directories)
    }

    fn bool(&mut self) -> Result<bool, CollectionError> {
        match self.take(1)? {
            [FALSE] => Ok(false),
            [TRUE] => Ok(true),
            _ => Err(self.malformed("unexpected type")),
        }
    }
}

#[cfg(test)]
#[path = "collection_tests.rs"]
mod tests;
