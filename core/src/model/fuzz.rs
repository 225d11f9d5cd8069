//! Fuzz targets: names, endpoints, collections, manifests and bitmaps from untrusted peers.

use std::path::{Component, Path};

use super::bitmap::Bitmap;
use super::collection::{Collection, MAX_ENCODED, MAX_PATH};
use super::endpoint::{Endpoint, MAX_ENDPOINT};
use super::id::{FileId, PeerId};
use super::layout::{MAX_FILE_SIZE, PieceLayout};
use super::manifest::Manifest;
use super::name::{MAX_NAME, Name};

fn first_bytes<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    data.split_first_chunk().map_or(([0; N], &[]), |(first, rest)| (*first, rest))
}

/// Names and ids.
pub(crate) fn name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let id = text.parse::<FileId>();
    if let Ok(id) = &id {
        assert_eq!(id.to_string(), text.to_lowercase());
    }
    let Ok(name) = text.parse::<Name>() else { return };
    assert!(id.is_err(), "a name is not an id");
    assert_eq!(name.as_str(), text);
    assert!(text.len() <= MAX_NAME && !text.chars().any(char::is_control));
    let mut parts = Path::new(text).components();
    assert!(matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none());
}

/// Endpoints. A parsed endpoint remains valid after its id and host are replaced.
pub(crate) fn endpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(endpoint) = text.parse::<Endpoint>() else { return };
    let long = "2001:db8:1111:2222:3333:4444:5555:6666".parse().expect("an address");
    let with_id = endpoint.with_id(Some(PeerId::from_bytes([1; 32])));
    for endpoint in [with_id.with_address(long), with_id.with_port(u16::MAX), endpoint] {
        let shown = endpoint.to_string();
        assert!(shown.len() <= MAX_ENDPOINT && !shown.chars().any(char::is_control));
        assert_eq!(shown.parse().as_ref(), Ok(&endpoint));
    }
}

/// Collections: no path escapes the target directory, and the encoding is unique.
pub(crate) fn collection(data: &[u8]) {
    let Ok(collection) = Collection::decode(data) else { return };
    assert!(data.len() <= MAX_ENCODED);
    assert_eq!(collection.encode(), data);
    let mut total = 0;
    for member in collection.members() {
        let path = member.path.as_str();
        assert!(!path.is_empty() && path.len() <= MAX_PATH && member.size <= MAX_FILE_SIZE);
        assert!(Path::new(path).components().all(|part| matches!(part, Component::Normal(_))));
        let inside = |other: &str| other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        assert!(!collection.members().iter().any(|other| inside(other.path.as_str())));
        total += member.size;
    }
    assert_eq!(collection.total_size(), total);
    let _ = collection.folding_collision();
    let (members, directories) = (collection.members().to_vec(), collection.directories().to_vec());
    assert_eq!(Collection::with_directories(members, directories).as_ref(), Ok(&collection));
}

/// Manifests: a size of 8 bytes, then the hashes.
pub(crate) fn manifest(data: &[u8]) {
    let (size, rest) = first_bytes(data);
    // Reduces most sizes to ones that the input can have hashes for.
    let size = u64::from_le_bytes(size);
    let Ok(layout) = PieceLayout::new(if size >> 60 == 0 { size } else { size >> 40 }) else { return };
    let hashes = rest.as_chunks::<32>().0.to_vec();
    let Ok(manifest) = Manifest::from_hashes(layout, hashes.clone()) else {
        assert_ne!(hashes.len(), layout.count() as usize);
        return;
    };
    assert_eq!((manifest.layout(), manifest.hashes()), (layout, &hashes[..]));
    assert_eq!(Manifest::verify(manifest.id(), layout, hashes.clone()), Ok(manifest));
    assert!(Manifest::verify(FileId::from_bytes([1; 32]), layout, hashes).is_err());
    for piece in layout.pieces() {
        assert!(layout.offset(piece) + layout.len(piece) as u64 <= layout.size() && layout.len(piece) > 0);
    }
}

/// Bitmaps: the number of pieces in 2 bytes, then the bits.
pub(crate) fn bitmap(data: &[u8]) {
    let (pieces, bits) = first_bytes(data);
    let pieces = u16::from_le_bytes(pieces);
    let layout = PieceLayout::new(u64::from(pieces) * 256 * 1024).expect("a small file");
    let Ok(bitmap) = Bitmap::from_bytes(layout, bits) else { return };
    assert_eq!(bitmap.as_bytes(), bits);
    let here: Vec<_> = layout.pieces().filter(|piece| bitmap.contains(*piece)).collect();
    assert_eq!(here.len(), bitmap.count() as usize);
    assert_eq!(bitmap.is_full(), here.len() == layout.count() as usize);
    let mut other = Bitmap::empty(layout);
    for piece in here {
        assert!(other.insert(piece) && !other.insert(piece));
    }
    assert_eq!(other, bitmap);
}
