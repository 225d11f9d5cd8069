//! What must be so: what was published, who was told that it is, and who has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use enjambre_core::model::id::FileId;
use enjambre_core::model::record::FileKind;
use enjambre_core::protocol::message::CatalogueId;
use rand::RngExt;
use rand::rngs::StdRng;

const PIECE: usize = 256 * 1024;

/// A file or folder as its publisher has it.
#[derive(Debug, Clone)]
pub struct Original {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// The paths and contents of its files, in order; one without a path where it is no folder.
    pub files: Vec<(String, Bytes)>,
}

impl Original {
    /// Draws one.
    pub fn draw(name: String, random: &mut StdRng) -> Self {
        if random.random_bool(0.25) {
            let count = random.random_range(1..5);
            let files = (0..count).map(|at| {
                let size = if random.random_bool(0.2) { PIECE + 10 } else { random.random_range(0..20_000) };
                (format!("{at}.bin"), content(size, random))
            });
            return Self { name, kind: FileKind::Collection, files: files.collect() };
        }
        let size = match random.random_range(0..8) {
            0 => 0,
            1 => random.random_range(1..2000),
            2 => PIECE,
            3 => PIECE + 1,
            4 => 5 * PIECE + 77,
            _ => random.random_range(1..3 * PIECE),
        };
        Self { name, kind: FileKind::File, files: vec![(String::new(), content(size, random))] }
    }

    /// Writes it to the disk beneath a folder; returns where.
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
    // Much faster than the generator itself where that is not optimised.
    let seed: [u8; 8] = random.random();
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Something that is in a peer's library, and perhaps known to trackers.
#[derive(Debug, Clone)]
pub struct Known {
    /// What it is.
    pub original: Original,
    /// What trackers are told as its size.
    pub size: u64,
    /// The peer that published it.
    pub publisher: usize,
    /// The names under which somebody was told that it is published, and which catalogue said so.
    pub acknowledged: BTreeMap<String, CatalogueId>,
}

impl Known {
    /// It and, of a folder, its files.
    pub fn ids(&self, id: FileId) -> Vec<FileId> {
        let files = match self.original.kind {
            FileKind::File => &[],
            FileKind::Collection => &self.original.files[..],
        };
        std::iter::once(id).chain(files.iter().map(|(_, content)| file_id(content))).collect()
    }
}

/// The id of a file with this content.
pub fn file_id(content: &[u8]) -> FileId {
    FileId::from_bytes(*blake3::hash(content).as_bytes())
}

/// How many pieces of a file a peer had when it ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Had {
    /// In all.
    pub pieces: u32,
    /// Of which it was told that they survive a power cut.
    pub durable: u32,
}

/// What the world knows.
#[derive(Debug, Default)]
pub struct Model {
    /// Everything that was published.
    pub known: BTreeMap<FileId, Known>,
    /// What each peer was told to have in whole, and whether that survives a power cut.
    pub complete: BTreeMap<(usize, FileId), bool>,
    /// What each peer has in part.
    pub had: BTreeMap<(usize, FileId), Had>,
    /// What somebody wanted to remove at a peer, and what may go with it, perhaps only at its next start.
    pub doomed: BTreeSet<(usize, FileId)>,
    /// How often something was removed.
    pub removals: u64,
    /// Who gets what at the moment.
    pub getting: BTreeSet<(usize, FileId)>,
    /// Who publishes what at the moment that was published before.
    pub publishing: BTreeSet<(usize, FileId)>,
    /// What must not have happened.
    pub failures: Vec<String>,
    /// How often something was delivered and compared.
    pub delivered: u64,
}

impl Model {
    /// A peer was told that it has something in whole.
    pub fn completed(&mut self, peer: usize, id: FileId, durable: bool) {
        *self.complete.entry((peer, id)).or_default() |= durable;
        for id in self.known.get(&id).map_or_else(Vec::new, |known| known.ids(id)) {
            self.doomed.remove(&(peer, id));
        }
    }

    /// Somebody wants to remove something at a peer.
    pub fn removed(&mut self, peer: usize, id: FileId) {
        self.removals += 1;
        self.complete.remove(&(peer, id));
        for id in self.known.get(&id).map_or_else(Vec::new, |known| known.ids(id)) {
            self.doomed.insert((peer, id));
            self.had.remove(&(peer, id));
        }
    }

    /// A peer that has so many pieces of its files ends.
    pub fn ends(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) {
        self.had.retain(|(at, id), _| *at != peer || pieces.contains_key(id));
        for (id, pieces) in pieces.iter().filter(|(id, _)| !self.doomed.contains(&(peer, **id))) {
            self.had.entry((peer, *id)).or_default().pieces = *pieces;
        }
    }

    /// A peer was told that so many pieces of its files are durable.
    pub fn synced(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) {
        for (id, pieces) in pieces.iter().filter(|(id, _)| !self.doomed.contains(&(peer, **id))) {
            self.had.entry((peer, *id)).or_default().durable = *pieces;
        }
    }

    /// A peer lost what no sync had made safe.
    pub fn power_cut(&mut self, peer: usize) {
        self.complete.retain(|(at, _), durable| *at != peer || *durable);
        self.had.retain(|(at, _), had| *at != peer || had.durable > 0);
        for ((_, _), had) in self.had.iter_mut().filter(|((at, _), _)| *at == peer) {
            had.pieces = had.durable;
        }
    }

    /// What a peer that has begun anew lost, given how many pieces it has.
    pub fn lost(&mut self, peer: usize, pieces: &BTreeMap<FileId, u32>) -> Option<String> {
        let of_it = self.had.iter_mut().filter(|((at, _), _)| *at == peer);
        for ((_, id), had) in of_it {
            let now = pieces.get(id).copied().unwrap_or_default();
            if now < had.pieces {
                return Some(format!("{} of {} pieces of {id} are left", now, had.pieces));
            }
            had.pieces = 0;
        }
        None
    }

    /// What a peer has in whole.
    pub fn complete_at(&self, peer: usize) -> Vec<FileId> {
        self.complete.keys().filter(|(at, _)| *at == peer).map(|(_, id)| *id).collect()
    }

    /// Notes that something must not have happened.
    pub fn fail(&mut self, what: String) {
        self.failures.push(what);
    }
}
