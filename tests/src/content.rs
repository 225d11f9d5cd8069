//! Files and folders to publish, the same in every run, and ways to compare what arrived.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// One MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// Writes a file of `size` random bytes that depend on the seed alone, and returns its BLAKE3 hash in hexadecimal
/// digits.
///
/// # Panics
/// If the file cannot be written.
pub fn write_file(path: &Path, size: u64, seed: u64) -> String {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hasher = blake3::Hasher::new();
    let mut file = BufWriter::new(File::create(path).expect("a test's folder can be written"));
    let mut block = vec![0; 256 * 1024];
    let mut rest = size;
    while rest > 0 {
        let len = usize::try_from(rest).map_or(block.len(), |rest| rest.min(block.len()));
        random.fill_bytes(&mut block[..len]);
        hasher.update(&block[..len]);
        file.write_all(&block[..len]).expect("a test's folder has room");
        rest -= len as u64;
    }
    file.flush().expect("a test's folder has room");
    hasher.finalize().to_hex().to_string()
}

/// The BLAKE3 hash of a file in hexadecimal digits.
///
/// # Panics
/// If there is no such file; the message names it.
#[track_caller]
pub fn hash_of(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.update_reader(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.finalize().to_hex().to_string()
}

/// Makes a folder with nested folders, an empty file, names beyond ASCII, an executable file, and a file of several
/// pieces.
///
/// # Panics
/// If it cannot be written.
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
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("the folder can be made");
        write_file(&path, size, seed + number as u64);
    }
    // The same content twice is one file of the library and two of the folder.
    fs::copy(root.join("same/one"), root.join("same/two")).expect("the file can be copied");
    fs::set_permissions(root.join("bin/tool.sh"), fs::Permissions::from_mode(0o755)).expect("own file");
}

/// What is at a path of a folder, as far as a collection keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFile {
    /// The BLAKE3 hash of the content.
    pub hash: String,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// All files below a folder by their paths relative to it.
///
/// # Panics
/// If the folder cannot be read.
#[track_caller]
pub fn read_tree(root: &Path) -> BTreeMap<String, TreeFile> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let entry = entry.expect("the folder can be read");
            let metadata = entry.metadata().expect("the file is there");
            if metadata.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let relative = path.strip_prefix(root).expect("it is below the root");
            let executable = metadata.permissions().mode() & 0o100 != 0;
            files.insert(
                relative.to_string_lossy().into_owned(),
                TreeFile { hash: hash_of(&path), executable },
            );
        }
    }
    files
}
