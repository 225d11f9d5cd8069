//! Torrent files (BEP 3), so that tools that speak BitTorrent can take part: one file, or a folder without folders in it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha1::{Digest, Sha1};

/// A value of a torrent file or of a tracker's answer.
#[derive(Debug, Clone)]
pub(crate) enum Bencode {
    /// A whole number.
    Number(u64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Values in their order.
    List(Vec<Bencode>),
    /// Values by key; the keys must be given in ascending order.
    Map(Vec<(&'static str, Bencode)>),
}

impl Bencode {
    /// Bytes out of a text.
    pub(crate) fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    /// The encoded value.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Number(number) => out.extend(format!("i{number}e").bytes()),
            Self::Bytes(bytes) => write_bytes(bytes, out),
            Self::List(items) => {
                out.push(b'l');
                items.iter().for_each(|item| item.write(out));
                out.push(b'e');
            }
            Self::Map(fields) => {
                debug_assert!(fields.is_sorted_by_key(|(key, _)| key), "keys are in order");
                out.push(b'd');
                for (key, value) in fields {
                    write_bytes(key.as_bytes(), out);
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend(format!("{}:", bytes.len()).bytes());
    out.extend(bytes);
}

/// Writes the torrent of a file or folder to `target`. The name in it is that of the file or folder.
pub(crate) fn write(content: &Path, announce: &str, target: &Path) -> Result<()> {
    let name = content.file_name().and_then(|name| name.to_str()).context("a name in UTF-8")?;
    let files = files_of(content)?;
    let mut sizes = Vec::new();
    for file in &files {
        sizes.push(fs::metadata(file)?.len());
    }
    let piece = piece_size(sizes.iter().sum());
    let pieces = hash_pieces(&files, piece)?;
    let mut info = Vec::new();
    if content.is_dir() {
        let entries = files.iter().zip(&sizes).map(|(file, size)| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let path = Bencode::List(vec![Bencode::text(&name)]);
            Bencode::Map(vec![("length", Bencode::Number(*size)), ("path", path)])
        });
        info.push(("files", Bencode::List(entries.collect())));
    } else {
        info.push(("length", Bencode::Number(sizes.iter().sum())));
    }
    info.push(("name", Bencode::text(name)));
    info.push(("piece length", Bencode::Number(piece)));
    info.push(("pieces", Bencode::Bytes(pieces)));
    let torrent = Bencode::Map(vec![("announce", Bencode::text(announce)), ("info", Bencode::Map(info))]);
    fs::write(target, torrent.encode())?;
    Ok(())
}

fn files_of(content: &Path) -> Result<Vec<PathBuf>> {
    if !content.is_dir() {
        return Ok(vec![content.to_owned()]);
    }
    let mut files = fs::read_dir(content)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(files.iter().all(|file| file.is_file()), "{} has folders in it", content.display());
    files.sort();
    Ok(files)
}

/// About 2,000 pieces, as the usual tools choose it.
fn piece_size(size: u64) -> u64 {
    size.div_ceil(2048).next_power_of_two().clamp(16 << 10, 4 << 20)
}

/// Returns the SHA-1 hashes of all pieces; pieces span files.
fn hash_pieces(files: &[PathBuf], piece: u64) -> Result<Vec<u8>> {
    let mut hashes = Vec::new();
    let mut buffer = vec![0; usize::try_from(piece)?];
    let mut filled = 0;
    for path in files {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
            if filled == buffer.len() {
                hashes.extend_from_slice(&Sha1::digest(&buffer));
                filled = 0;
            }
        }
    }
    if filled > 0 {
        hashes.extend_from_slice(&Sha1::digest(&buffer[..filled]));
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_as_bep_3_says() {
        let value = Bencode::Map(vec![
            ("cow", Bencode::text("moo")),
            (
                "spam",
                Bencode::List(vec![Bencode::text("a"), Bencode::Number(0), Bencode::Bytes(vec![0, 255])]),
            ),
        ]);
        assert_eq!(value.encode(), b"d3:cow3:moo4:spaml1:ai0e2:\x00\xffee");
    }

    #[test]
    fn pieces_span_files() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..50_000u32).map(|number| number as u8).collect();
        fs::write(folder.path().join("a"), &content[..20_000]).unwrap();
        fs::write(folder.path().join("b"), &content[20_000..]).unwrap();
        let whole: Vec<u8> =
            content.chunks(16 << 10).flat_map(|piece| Sha1::digest(piece).to_vec()).collect();
        assert_eq!(hash_pieces(&files_of(folder.path()).unwrap(), 16 << 10).unwrap(), whole);
    }

    #[test]
    fn piece_sizes_follow_the_size() {
        assert_eq!(piece_size(1), 16 << 10);
        assert_eq!(piece_size(1 << 30), 512 << 10);
        assert_eq!(piece_size(1 << 40), 4 << 20);
    }
}
