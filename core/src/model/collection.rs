//! A directory as a file: the sorted list of its files' paths, sizes and ids.
//!
//! The encoding is deterministic CBOR (RFC 8949, section 4.2.1), so that one directory has one id:
//!
//! ```text
//! ["enjambre collection 1", [[path: text, size: uint, id: bytes .size 32, executable: bool], ...]]
//! ```
//!
//! Members are sorted by the bytes of their paths. A list that breaks a rule is refused as a whole, before
//! anything of it touches a disk. Directories without files and symbolic links are not part of it.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::id::FileId;
use super::layout::MAX_FILE_SIZE;

/// The most members of a collection.
pub const MAX_MEMBERS: usize = 1_000_000;
/// The largest encoded collection in bytes: 256 MiB.
pub const MAX_ENCODED: usize = 256 * 1024 * 1024;
/// The longest path of a member in bytes.
pub const MAX_PATH: usize = 4000;
/// The longest part of a path in bytes, which is what file systems hold.
pub const MAX_PART: usize = 255;
/// How the name of a file ends that is still being filled.
pub const PART_SUFFIX: &str = ".enjambre-part";

const MARK: &str = "enjambre collection 1";

/// Why a text is not the path of a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be the path of a file in a collection: {problem}")]
pub struct MemberPathError {
    /// The path as it was given, cut to a length that can be shown.
    pub path: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// A relative path of plain names, parted by `/`, that cannot lead out of the directory it is used in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<str>);

impl MemberPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberPath {
    type Err = MemberPathError;

    fn from_str(path: &str) -> Result<Self, MemberPathError> {
        let refuse = |problem| MemberPathError { path: path.chars().take(80).collect(), problem };
        if path.is_empty() || path.len() > MAX_PATH {
            return Err(refuse("a path has 1 to 4000 bytes"));
        }
        if path.starts_with('/') {
            return Err(refuse("it is absolute"));
        }
        if path.contains('\\') {
            return Err(refuse("it has a backslash, which parts directories on some systems"));
        }
        if path.contains('\0') {
            return Err(refuse("it has a NUL character"));
        }
        for part in path.split('/') {
            match part {
                "" => return Err(refuse("a part of it is empty")),
                "." | ".." => return Err(refuse("a part of it is . or ..")),
                _ if part.len() > MAX_PART => return Err(refuse("a part of it has more than 255 bytes")),
                _ if is_part_name(part) => {
                    return Err(refuse("names that end in .enjambre-part belong to unfinished downloads"));
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
    /// Where it lies in the directory.
    pub path: MemberPath,
    /// Its size in bytes, as the publisher claims.
    pub size: u64,
    /// The hash of its content.
    pub id: FileId,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// Why bytes or members are not a collection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectionError {
    /// A path breaks a rule.
    #[error(transparent)]
    Path(#[from] MemberPathError),
    /// Two members have the same path.
    #[error("{path} is there twice")]
    Duplicate {
        /// The path.
        path: MemberPath,
    },
    /// A path is a file and a directory at once.
    #[error("{path} is a file and also a directory of another file")]
    FileAndDirectory {
        /// The path.
        path: MemberPath,
    },
    /// A member is larger than a file can be.
    #[error("{path} has {size} bytes, more than a file can have")]
    FileTooLarge {
        /// The path.
        path: MemberPath,
        /// Its size in bytes.
        size: u64,
    },
    /// There are too many members or bytes.
    #[error("a collection has at most {MAX_MEMBERS} files and {MAX_ENCODED} bytes")]
    TooLarge,
    /// The bytes are not the deterministic CBOR of a collection.
    #[error("not a collection: {problem} at byte {at}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
        /// Where, in bytes from the start.
        at: usize,
    },
}

/// The files of a directory. Every rule of the module holds for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    members: Vec<Member>,
}

impl Collection {
    /// Sorts the members and checks the rules.
    pub fn new(mut members: Vec<Member>) -> Result<Self, CollectionError> {
        members.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let collection = Self { members };
        collection.check()?;
        if collection.members.len() > MAX_MEMBERS || collection.encoded_len() > MAX_ENCODED {
            return Err(CollectionError::TooLarge);
        }
        Ok(collection)
    }

    /// The members, sorted by the bytes of their paths.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The bytes of all members together, as the publisher claims.
    pub fn total_size(&self) -> u64 {
        self.members.iter().map(|member| member.size).sum()
    }

    /// Two paths that a file system which does not tell upper from lower case takes for one.
    pub fn folding_collision(&self) -> Option<&MemberPath> {
        let mut seen = HashSet::with_capacity(self.members.len());
        self.members.iter().map(|member| &member.path).find(|path| !seen.insert(path.as_str().to_lowercase()))
    }

    /// The encoded list, at most [`MAX_ENCODED`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        head(&mut out, 4, 2);
        text(&mut out, MARK);
        head(&mut out, 4, self.members.len() as u64);
        for member in &self.members {
            head(&mut out, 4, 4);
            text(&mut out, member.path.as_str());
            head(&mut out, 0, member.size);
            head(&mut out, 2, 32);
            out.extend_from_slice(member.id.as_bytes());
            out.push(if member.executable { TRUE } else { FALSE });
        }
        out
    }

    /// Reads an encoded list. Memory grows with the bytes that are there, not with what they claim.
    pub fn decode(bytes: &[u8]) -> Result<Self, CollectionError> {
        if bytes.len() > MAX_ENCODED {
            return Err(CollectionError::TooLarge);
        }
        let mut reader = Reader { bytes, at: 0 };
        if reader.head(4)? != 2 || reader.text()? != MARK {
            return Err(reader.malformed("it does not begin with the mark of a collection"));
        }
        let count = reader.head(4)?;
        if count > MAX_MEMBERS as u64 {
            return Err(CollectionError::TooLarge);
        }
        let mut members: Vec<Member> = Vec::with_capacity((count as usize).min(bytes.len() / 38));
        for _ in 0..count {
            if reader.head(4)? != 4 {
                return Err(reader.malformed("a member has not four fields"));
            }
            let path: MemberPath = reader.text()?.parse()?;
            if let Some(last) = members.last() {
                match last.path.cmp(&path) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => return Err(CollectionError::Duplicate { path }),
                    std::cmp::Ordering::Greater => {
                        return Err(reader.malformed("the members are not sorted"));
                    }
                }
            }
            let size = reader.head(0)?;
            let id = reader.string(2)?.try_into().map_err(|_| reader.malformed("an id has not 32 bytes"))?;
            let executable = reader.bool()?;
            members.push(Member { path, size, id, executable });
        }
        if reader.at != bytes.len() {
            return Err(reader.malformed("there is something behind the end"));
        }
        let collection = Self { members };
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
        let paths = self.members.iter().map(|member| &member.path);
        match file_and_directory(paths, |path, longer| longer.starts_with(path)) {
            Some(path) => Err(CollectionError::FileAndDirectory { path: path.clone() }),
            None => Ok(()),
        }
    }

    fn encoded_len(&self) -> usize {
        let members = self.members.iter().map(|member| {
            let path = member.path.as_str().len();
            1 + head_len(path as u64) + path + head_len(member.size) + 2 + 32 + 1
        });
        1 + head_len(MARK.len() as u64)
            + MARK.len()
            + head_len(self.members.len() as u64)
            + members.sum::<usize>()
    }
}

/// A path that is also a directory of another one. The paths are sorted; `begins` says whether the second text begins with the
/// first.
///
/// Each text is compared a constant number of times. A path that begins another sorts before it, and everything between
/// the two begins with it as well: so those that begin the current one are nested, and it is enough to keep the ones in
/// whose reach it is. And only the longest of them has to be looked at, because the others were when that was the current one.
fn file_and_directory<'a>(
    paths: impl Iterator<Item = &'a MemberPath>,
    mut begins: impl FnMut(&str, &str) -> bool,
) -> Option<&'a MemberPath> {
    let mut around: Vec<&MemberPath> = Vec::new();
    for path in paths {
        while let Some(longest) = around.last() {
            if begins(longest.as_str(), path.as_str()) {
                break;
            }
            around.pop();
        }
        if let Some(longest) = around.last()
            && path.as_str().as_bytes().get(longest.as_str().len()) == Some(&b'/')
        {
            return Some(longest);
        }
        around.push(path);
    }
    None
}

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;

fn head_len(value: u64) -> usize {
    match value {
        0..24 => 1,
        24..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// The head of a data item: its major type and, in as few bytes as possible, its value or length.
fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    let bytes = value.to_be_bytes();
    let (info, argument) = match head_len(value) {
        1 => (value as u8, &bytes[8..]),
        2 => (24, &bytes[7..]),
        3 => (25, &bytes[6..]),
        5 => (26, &bytes[4..]),
        _ => (27, &bytes[..]),
    };
    out.push(major << 5 | info);
    out.extend_from_slice(argument);
}

fn text(out: &mut Vec<u8>, text: &str) {
    head(out, 3, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self, problem: &'static str) -> CollectionError {
        CollectionError::Malformed { problem, at: self.at }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], CollectionError> {
        let rest = &self.bytes[self.at..];
        if len > rest.len() as u64 {
            return Err(self.malformed("the bytes end too early"));
        }
        self.at += len as usize;
        Ok(&rest[..len as usize])
    }

    fn head(&mut self, major: u8) -> Result<u64, CollectionError> {
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(self.malformed("another type was expected"));
        }
        let info = first & 31;
        let len = match info {
            0..24 => return Ok(u64::from(info)),
            24..=27 => 1 << (info - 24),
            _ => return Err(self.malformed("an indefinite length")),
        };
        let value = self.take(len)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if head_len(value) as u64 != len + 1 {
            return Err(self.malformed("a number is not as short as it can be"));
        }
        Ok(value)
    }

    fn string(&mut self, major: u8) -> Result<&'a [u8], CollectionError> {
        let len = self.head(major)?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str, CollectionError> {
        let bytes = self.string(3)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn bool(&mut self) -> Result<bool, CollectionError> {
        match self.take(1)?[0] {
            FALSE => Ok(false),
            TRUE => Ok(true),
            _ => Err(self.malformed("another type was expected")),
        }
    }
}

#[cfg(test)]
#[path = "collection_tests.rs"]
mod tests;
