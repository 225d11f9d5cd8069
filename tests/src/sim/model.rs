//! What must be so: what was published, who was told that it is, and who has it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use enjambre_core::model::id::FileId;
use enjambre_core::model::record::FileKind;
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
    /// The names under which somebody was told that it is published.
    pub acknowledged: BTreeSet<String>,
}

/// What the world knows.
#[derive(Debug, Default)]
pub struct Model {
    /// Everything that was published.
    pub known: BTreeMap<FileId, Known>,
    /// What each peer was told to have in whole, and whether that survives a power cut.
    pub complete: BTreeMap<(usize, FileId), bool>,
    /// Who gets what at the moment.
    pub getting: BTreeSet<(usize, FileId)>,
    /// What must not have happened.
    pub failures: Vec<String>,
    /// How often something was delivered and compared.
    pub delivered: u64,
}

impl Model {
    /// A peer was told that it has something in whole.
    pub fn completed(&mut self, peer: usize, id: FileId, durable: bool) {
        *self.complete.entry((peer, id)).or_default() |= durable;
    }

    /// A peer lost what no sync had made safe.
    pub fn power_cut(&mut self, peer: usize) {
        self.complete.retain(|(at, _), durable| *at != peer || *durable);
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
