//! The expected state of a simulation: published files, acknowledgements, and the files that each peer must have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use enjambre_core::{CatalogueId, FileId, FileKind};
use rand::RngExt;
use rand::rngs::StdRng;

const PIECE_SIZE: usize = 256 * 1024;

/// The original of a published file or directory.
#[derive(Debug, Clone)]
pub struct Original {
    /// The name.
    pub name: String,
    /// Whether it is a file or a directory.
    pub kind: FileKind,
    /// Paths and contents of the files in order. A single file has an empty path.
    pub files: Vec<(String, Bytes)>,
}

impl Original {
    /// Creates a random file or directory.
    pub fn draw(name: String, random: &mut StdRng) -> Self {
        if random.random_bool(0.25) {
            let count = random.random_range(1..5);
            let files = (0..count).map(|at| {
                let size =
                    if random.random_bool(0.2) { PIECE_SIZE + 10 } else { random.random_range(0..20_000) };
                (format!("{at}.bin"), content(size, random))
            });
            return Self { name, kind: FileKind::Collection, files: files.collect() };
        }
        let size = match random.random_range(0..8) {
            0 => 0,
            1 => random.random_range(1..2000),
            2 => PIECE_SIZE,
            3 => PIECE_SIZE + 1,
            4 => 5 * PIECE_SIZE + 77,
            _ => random.random_range(1..3 * PIECE_SIZE),
        };
        Self { name, kind: FileKind::File, files: vec![(String::new(), content(size, random))] }
    }

    /// Writes the file or directory into `folder` and returns its path.
    pub fn write(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let path = folder.join(&self.name);
        if self.kind == FileKind::Collection {
            std::fs::create_dir(&path)?;
        }
        for (file, content) in &self.files {
            std::fs::write(if file.is_empty() { path.clone() } else { path.join(file) }, content)?;
        }
        Ok(path)
    }
}

fn content(size: usize, random: &mut StdRng) -> Bytes {
    let mut bytes = vec![0; size];
    // Much faster than the generator in a debug build.
    let seed: [u8; 8] = random.random();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// A file or directory in the library of a peer, which trackers may know.
#[derive(Debug, Clone)]
pub struct PublishedFile {
    /// The original.
    pub original: Original,
    /// The size in the catalogue.
    pub size: u64,
    /// The peer that published it.
    pub publisher: usize,
    /// The acknowledged names, with the catalogue that acknowledged each.
    pub acknowledged: BTreeMap<String, CatalogueId>,
}

impl PublishedFile {
    /// Returns `id` and the ids of the files of a directory.
    pub fn ids(&self, id: FileId) -> Vec<FileId> {
        let files = match self.original.kind {
            FileKind::File | FileKind::Executable => &[],
            FileKind::Collection => &self.original.files[..],
        };
        std::iter::once(id).chain(files.iter().map(|(_, content)| file_id(content))).collect()
    }
}

/// Returns the id of a file with this content.
pub fn file_id(content: &[u8]) -> FileId {
    FileId::from_bytes(*blake3::hash(content).as_bytes())
}

/// The numbers of pieces of a file that a peer had at the end of its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct PieceCounts {
    /// All pieces.
    pub pieces: u32,
    /// Pieces that were acknowledged as durable.
    pub durable: u32,
}

/// The expected state of all peers and trackers.
#[derive(Debug, Default)]
pub struct Model {
    /// All published files and directories.
    pub known: BTreeMap<FileId, PublishedFile>,
    /// Complete files by peer, and whether they were acknowledged as durable.
    pub complete: BTreeMap<(usize, FileId), bool>,
    /// Pieces of files by peer.
    pub stored: BTreeMap<(usize, FileId), PieceCounts>,
    /// Files that a peer may remove, at the latest at its next start: removed files and their members.
    pub removing: BTreeSet<(usize, FileId)>,
    /// The number of removals.
    pub removals: u64,
    /// Downloads in progress.
    pub getting: BTreeSet<(usize, FileId)>,
    /// Publications in progress of files that were published before.
    pub publishing: BTreeSet<(usize, FileId)>,
    /// Violated guarantees.
    pub failures: Vec<String>,
    /// The number of verified downloads.
    pub delivered: u64,
}

impl Model {
    /// Records that a file of a peer was acknowledged as complete.
    pub fn completed(&mut self, peer: usize, id: FileId, durable: bool) {
        *self.complete.entry((peer, id)).or_default() |= durable;
        for id in self.known.get(&id).map_or_else(Vec::new, |known| known.ids(id)) {
            self.removing.remove(&(peer, id));
        }
    }

    /// Records that a peer is about to remove a file.
    pub fn removed(&mut self, peer: usize, id: FileId) {
        self.removals += 1;
        self.complete.remove(&(peer, id));
        for id in self.known.get(&id).map_or_else(Vec::new, |known| known.ids(id)) {
            self.removing.insert((peer, id));
            self.stored.remove(&(peer, id));
        }
    }

    /// Records the pieces of a peer at the end of its process.
    pub fn process_ended(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) {
        self.stored.retain(|(at, id), _| *at != peer || pieces.contains_key(id));
        for (id, pieces) in pieces.iter().filter(|(id, _)| !self.removing.contains(&(peer, **id))) {
            self.stored.entry((peer, *id)).or_default().pieces = *pieces;
        }
    }

    /// Records that these pieces of a peer were acknowledged as durable.
    pub fn synced(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) {
        for (id, pieces) in pieces.iter().filter(|(id, _)| !self.removing.contains(&(peer, **id))) {
            self.stored.entry((peer, *id)).or_default().durable = *pieces;
        }
    }

    /// Records that a peer may have lost everything that is not durable.
    pub fn power_cut(&mut self, peer: usize) {
        self.complete.retain(|(at, _), durable| *at != peer || *durable);
        self.stored.retain(|(at, _), stored| *at != peer || stored.durable > 0);
        for ((_, _), stored) in self.stored.iter_mut().filter(|((at, _), _)| *at == peer) {
            stored.pieces = stored.durable;
        }
    }

    /// Compares the pieces of a restarted peer with the expected ones. Returns a description of lost pieces.
    pub fn lost_pieces(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) -> Option<String> {
        let expected = self.stored.iter_mut().filter(|((at, _), _)| *at == peer);
        for ((_, id), stored) in expected {
            let now = pieces.get(id).copied().unwrap_or_default();
            if now < stored.pieces {
                return Some(format!("only {} of {} pieces of {id} are left", now, stored.pieces));
            }
            stored.pieces = 0;
        }
        None
    }

    /// Returns the complete files of a peer.
    pub fn complete_at(&self, peer: usize) -> Vec<FileId> {
        self.complete.keys().filter(|(at, _)| *at == peer).map(|(_, id)| *id).collect()
    }

    /// Records a violated guarantee.
    pub fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }
}
