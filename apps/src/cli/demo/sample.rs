//! The published file of the demo, and independent hashes for the verification.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use enjambre_control::{Failure, ResultContext};
use rand::Rng;

const SIZE: usize = 256 << 20;
const BLOCK: usize = 1 << 20;

/// Writes a file of random bytes. Blocks.
pub(super) fn create(path: &Path) -> Result<(), Failure> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut block = vec![0; BLOCK];
    let mut random = rand::rng();
    for _ in 0..SIZE / BLOCK {
        random.fill_bytes(&mut block);
        file.write_all(&block)?;
    }
    Ok(file.flush()?)
}

/// A file with its relative path.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hashed {
    path: PathBuf,
    pub(super) size: u64,
    pub(super) hash: [u8; 32],
}

/// Returns the hash of a file, or of all files in a directory. Skips symbolic links. Blocks.
pub(super) fn hashes(path: &Path) -> Result<Vec<Hashed>, Failure> {
    read_hashes(path).context(format!("cannot read {}", path.display()))
}

fn read_hashes(path: &Path) -> std::io::Result<Vec<Hashed>> {
    let mut found = Vec::new();
    if path.is_dir() {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(path.join(&folder))? {
                let entry = entry?;
                let below = folder.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(below);
                } else if kind.is_file() {
                    found.push(hash(&entry.path(), below)?);
                }
            }
        }
        found.sort();
    } else {
        found.push(hash(path, PathBuf::new())?);
    }
    Ok(found)
}

fn hash(path: &Path, name: PathBuf) -> std::io::Result<Hashed> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(Hashed { path: name, size: hasher.count(), hash: *hasher.finalize().as_bytes() })
}
