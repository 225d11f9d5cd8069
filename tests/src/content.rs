//! Reproducible test files and directories, and functions that compare them after a transfer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// Writes a file of `size` random bytes derived from the seed. Returns its BLAKE3 hash in hexadecimal digits.
///
/// # Panics
/// Panics if the file cannot be written.
pub fn write_file(path: &Path, size: u64, seed: u64) -> String {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hasher = blake3::Hasher::new();
    let mut file = BufWriter::new(File::create(path).expect("cannot create a test file"));
    let mut block = vec![0; 256 * 1024];
    let mut remaining = size;
    while remaining > 0 {
        let len = usize::try_from(remaining).map_or(block.len(), |remaining| remaining.min(block.len()));
        random.fill_bytes(&mut block[..len]);
        hasher.update(&block[..len]);
        file.write_all(&block[..len]).expect("cannot write a test file");
        remaining -= len as u64;
    }
    file.flush().expect("cannot write a test file");
    hasher.finalize().to_hex().to_string()
}

/// Returns the BLAKE3 hash of a file in hexadecimal digits.
///
/// # Panics
/// Panics if the file cannot be read; the message contains its path.
#[track_caller]
pub fn hash_of(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.update_reader(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.finalize().to_hex().to_string()
}

/// Creates a directory that contains nested directories, an empty file, non-ASCII names, an executable file and a file of
/// several pieces.
///
/// # Panics
/// Panics if the directory cannot be written.
pub fn write_tree(root: &Path, seed: u64) {
    let files = [
        ("notes.txt", 1_000),
        ("empty", 0),
        ("a/b/c/d/deep.bin", 70_000),
        ("a/b/one-byte", 1),
        ("a/piece.bin", 256 * 1024),
        ("big/several-pieces.bin", 3 * MIB + 17),
        ("bilder/Größe und Übermaß.dat", 12_345),
        ("写真/空 🎼.bin", 54_321),
        ("bin/tool.sh", 200),
        ("same/one", 5_000),
    ];
    for (number, (path, size)) in files.into_iter().enumerate() {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a file has a parent")).expect("cannot create a directory");
        write_file(&path, size, seed + number as u64);
    }
    // Duplicate content: one file in the library, two files in the directory.
    fs::copy(root.join("same/one"), root.join("same/two")).expect("cannot copy a test file");
    make_executable(&root.join("bin/tool.sh"));
}

/// Makes a file executable.
///
/// # Panics
/// Panics if the mode of the file cannot be set.
#[track_caller]
pub fn make_executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("cannot set permissions");
}

/// Whether the owner may execute a file.
///
/// # Panics
/// Panics if the metadata of the file cannot be read.
#[track_caller]
pub fn is_executable(path: &Path) -> bool {
    fs::metadata(path).expect("cannot read file metadata").permissions().mode() & 0o100 != 0
}

/// A file of a directory, with the attributes that a collection preserves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// The BLAKE3 hash of the content.
    pub hash: String,
    /// Whether the owner may execute the file.
    pub executable: bool,
}

/// Returns all files below a directory by their relative paths.
///
/// # Panics
/// Panics if the directory cannot be read.
#[track_caller]
pub fn read_tree(root: &Path) -> BTreeMap<String, TreeFile> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let entry = entry.expect("cannot read a directory entry");
            let metadata = entry.metadata().expect("cannot read file metadata");
            if metadata.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let relative = path.strip_prefix(root).expect("the path is below the root");
            let file = TreeFile { hash: hash_of(&path), executable: is_executable(&path) };
            files.insert(relative.to_string_lossy().into_owned(), file);
        }
    }
    files
}
