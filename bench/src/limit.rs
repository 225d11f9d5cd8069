//! The least that any tool can take: a program that only moves the bytes over a loopback connection, hashes them and
//! writes them, and one that hashes a file with all cores. Nothing is asked for, found, retried or kept.
//!
//! It runs as processes of its own, as the tools do: `limit send FILE` prints where it listens and serves one
//! connection after the other, `limit receive ADDRESS FILE` and `limit hash FILE` print the BLAKE3 hash.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, ensure};
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};

const BLOCK: usize = 256 * 1024;
/// Blocks between the thread that reads and the one that hashes.
const BLOCKS: usize = 8;
/// What one thread hashes at a time; a power of two, as the hash's tree wants it.
const SUBTREE: u64 = 1 << 20;

/// Serves a file on a port of the system's choice, to one connection after the other, until it is killed.
pub(crate) fn send(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("listening {}", listener.local_addr()?);
    let mut block = vec![0; BLOCK];
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.write_all(&size.to_le_bytes())?;
        let mut offset = 0;
        while offset < size {
            let len = block.len().min(usize::try_from(size - offset).unwrap_or(usize::MAX));
            file.read_exact_at(&mut block[..len], offset)?;
            stream.write_all(&block[..len])?;
            offset += len as u64;
        }
    }
}

/// Fetches a file from [`send`]: this thread reads and writes, another one hashes.
pub(crate) fn receive(address: &str, path: &Path) -> Result<Hash> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    let mut size = [0; 8];
    stream.read_exact(&mut size)?;
    let size = u64::from_le_bytes(size);
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let (filled, to_hash) = sync_channel(BLOCKS);
    let (emptied, empty) = sync_channel(BLOCKS);
    for _ in 0..BLOCKS {
        emptied.send(vec![0; BLOCK])?;
    }
    thread::scope(|scope| {
        let hashing = scope.spawn(move || hash_blocks(&to_hash, &emptied));
        let mut offset = 0;
        while offset < size {
            let mut block = empty.recv()?;
            let len = block.len().min(usize::try_from(size - offset).unwrap_or(usize::MAX));
            stream.read_exact(&mut block[..len])?;
            file.write_all_at(&block[..len], offset)?;
            filled.send((block, len))?;
            offset += len as u64;
        }
        drop(filled);
        hashing.join().ok().context("the thread that hashes ended early")
    })
}

fn hash_blocks(blocks: &Receiver<(Vec<u8>, usize)>, emptied: &SyncSender<Vec<u8>>) -> Hash {
    let mut hasher = Hasher::new();
    while let Ok((block, len)) = blocks.recv() {
        hasher.update(&block[..len]);
        // The last buffers are not taken.
        let _ = emptied.try_send(block);
    }
    hasher.finalize()
}

/// Hashes a file with all cores, reading it once.
pub(crate) fn hash(path: &Path) -> Result<Hash> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    if size <= SUBTREE {
        let mut content = Vec::new();
        (&file).read_to_end(&mut content)?;
        return Ok(blake3::hash(&content));
    }
    let count = size.div_ceil(SUBTREE);
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism()?.get();
    let mut parts = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| hash_subtrees(&file, size, &next))).collect();
        let mut parts = Vec::with_capacity(usize::try_from(count)?);
        for worker in workers {
            parts.extend(worker.join().ok().context("a thread that hashes ended early")??);
        }
        anyhow::Ok(parts)
    })?;
    ensure!(parts.len() as u64 == count, "a part of the file was not hashed");
    parts.sort_unstable_by_key(|(number, _)| *number);
    let parts: Vec<ChainingValue> = parts.into_iter().map(|(_, value)| value).collect();
    let (left, right) = parts.split_at(left_len(parts.len()));
    Ok(merge_subtrees_root(&merge(left), &merge(right), Mode::Hash))
}

fn hash_subtrees(file: &File, size: u64, next: &AtomicU64) -> Result<Vec<(u64, ChainingValue)>> {
    let mut block = vec![0; BLOCK];
    let mut parts = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let start = number * SUBTREE;
        if start >= size {
            return Ok(parts);
        }
        let end = size.min(start + SUBTREE);
        let mut hasher = Hasher::new();
        hasher.set_input_offset(start);
        let mut offset = start;
        while offset < end {
            let len = block.len().min(usize::try_from(end - offset)?);
            file.read_exact_at(&mut block[..len], offset)?;
            hasher.update(&block[..len]);
            offset += len as u64;
        }
        parts.push((number, hasher.finalize_non_root()));
    }
}

fn merge(parts: &[ChainingValue]) -> ChainingValue {
    match parts {
        [one] => *one,
        _ => {
            let (left, right) = parts.split_at(left_len(parts.len()));
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// The largest power of two below a count of two or more: so many go to the left.
fn left_len(count: usize) -> usize {
    count.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cores_find_the_same_hash_as_one() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, SUBTREE, SUBTREE + 1, 2 * SUBTREE, 5 * SUBTREE + 77] {
            let path = folder.path().join(size.to_string());
            let expected = enjambre_tests::content::write_file(&path, size, 7);
            assert_eq!(hash(&path).unwrap().to_hex().as_str(), expected, "{size} bytes");
        }
    }
}
