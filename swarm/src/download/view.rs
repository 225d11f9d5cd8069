//! The sources and pieces of a download, for observers.

use serde::{Deserialize, Serialize};

use super::activity::Delivered;
use super::schedule::ProviderKey;
use crate::library::library::Library;
use enjambre_core::{Endpoint, FileId, FileKind, PeerId, PieceIndex, PieceLayout};

/// Maximum number of cells of a piece map.
pub const MAX_CELLS: u32 = 2048;
/// Maximum number of sources in [`Details`].
pub const MAX_SOURCES: usize = 252;
/// The cell of a missing piece.
pub const MISSING: u8 = 0;
/// The cell of a requested piece.
pub const IN_FLIGHT: u8 = 1;
/// The cell of a piece of the first source. The next numbers are those of the next sources.
pub const FIRST_SOURCE: u8 = 2;
/// The cell of a piece that was stored before, or of a source that is not listed.
pub const STORED: u8 = 255;

/// The connection to a source. The first ones are the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Connected.
    Active,
    /// Connected, and refuses requests at the moment.
    Busy,
    /// Being connected.
    Connecting,
    /// Not connected until the backoff after a failure ends.
    BackedOff,
    /// Not connected.
    Idle,
    /// Excluded because it sent invalid data.
    Banned,
}

/// A provider that a download uses or used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The provider.
    pub peer: PeerId,
    /// Its endpoint, if known.
    pub endpoint: Option<Endpoint>,
    /// Verified bytes per second over a few seconds.
    pub rate: u64,
    /// Verified bytes since the start of the download.
    pub received_bytes: u64,
    /// The connection.
    pub state: SourceState,
}

/// A piece in each cell: all pieces in their order, or every n-th of a file with more than [`MAX_CELLS`] pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceMap {
    /// Number of pieces of the file.
    pub count: u32,
    /// [`MISSING`], [`IN_FLIGHT`], [`FIRST_SOURCE`] plus the index of the source, or [`STORED`].
    pub cells: Vec<u8>,
}

/// The sources and the pieces of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// The sources.
    pub sources: Vec<Source>,
    /// The pieces of a file. `None` for a directory, and before the size of the file is proven.
    pub pieces: Option<PieceMap>,
}

/// The state of one transfer. The indexes in the map are those of its sources.
#[derive(Debug)]
pub(super) struct TransferView {
    pub(super) sources: Vec<(PeerId, Option<Endpoint>, SourceState)>,
    pub(super) pieces: Option<PieceMap>,
}

/// The sources of the pieces that a map shows.
#[derive(Debug)]
pub(super) struct Samples {
    count: u32,
    sources: Vec<Option<ProviderKey>>,
}

impl Samples {
    pub(super) fn new(layout: PieceLayout) -> Self {
        let count = layout.count();
        Self { count, sources: vec![None; count.min(MAX_CELLS) as usize] }
    }

    /// Records the source of a piece.
    pub(super) fn insert(&mut self, piece: PieceIndex, from: ProviderKey) {
        let (count, cells) = (u64::from(self.count), self.sources.len() as u64);
        // The first cell whose piece is not before this one.
        let cell = (u64::from(piece.get()) * cells).div_ceil(count) as usize;
        if sampled(self.count, cell, self.sources.len()) == piece.get()
            && let Some(source) = self.sources.get_mut(cell)
        {
            *source = Some(from);
        }
    }

    /// Returns the numbers of the pieces in the map, and their sources.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Option<ProviderKey>)> {
        let cells = self.sources.len();
        self.sources.iter().enumerate().map(move |(cell, source)| (sampled(self.count, cell, cells), *source))
    }
}

/// Returns the number of the piece that a cell shows.
const fn sampled(count: u32, cell: usize, cells: usize) -> u32 {
    (cell as u64 * count as u64 / cells as u64) as u32
}

/// Combines the views of all transfers of a file or directory, and what providers have delivered. The first view of a whole
/// file provides its pieces.
pub(super) async fn merge(
    library: &Library,
    id: &FileId,
    mut views: Vec<(TransferView, bool)>,
    delivered: Vec<(PeerId, Delivered, u64)>,
) -> Details {
    let is_file = library.entry(id).is_some_and(|entry| entry.kind != FileKind::Collection);
    // The indexes in its map remain valid.
    views.sort_by_key(|(_, is_whole)| !is_whole);
    let mut pieces = None;
    let mut sources: Vec<Source> = Vec::new();
    for (view, is_whole) in views {
        for (peer, endpoint, state) in view.sources {
            match sources.iter_mut().find(|source| source.peer == peer) {
                Some(source) => source.state = source.state.min(state),
                None => sources.push(Source { peer, endpoint, rate: 0, received_bytes: 0, state }),
            }
        }
        pieces = pieces.or(view.pieces.filter(|_| is_whole && is_file));
    }
    for (peer, Delivered { endpoint, bytes, .. }, rate) in delivered {
        match sources.iter_mut().find(|source| source.peer == peer) {
            Some(source) => (source.rate, source.received_bytes) = (rate, bytes),
            None => {
                let state = if rate > 0 { SourceState::Active } else { SourceState::Idle };
                sources.push(Source { peer, endpoint, rate, received_bytes: bytes, state });
            }
        }
    }
    sources.truncate(MAX_SOURCES);
    if pieces.is_none()
        && is_file
        && let Ok(Some(file)) = library.open_file(id).await
    {
        let layout = file.layout();
        let shown = Samples::new(layout);
        let state = |(number, _)| match layout.piece(number) {
            Some(piece) if file.has(piece) => STORED,
            _ => MISSING,
        };
        pieces = Some(PieceMap { count: layout.count(), cells: shown.iter().map(state).collect() });
    }
    Details { sources, pieces }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_shows_every_piece_or_a_regular_sample() {
        for count in [1_u32, 5, 2047, 2048, 2049, 3000, 100_000] {
            let layout = PieceLayout::new(u64::from(count) * 256 * 1024).unwrap();
            let count = layout.count();
            let mut samples = Samples::new(layout);
            for piece in layout.pieces() {
                samples.insert(piece, ProviderKey(piece.get()));
            }
            let shown: Vec<_> = samples.iter().collect();
            assert_eq!(shown.len(), count.min(MAX_CELLS) as usize);
            assert!(shown.iter().all(|(piece, source)| *source == Some(ProviderKey(*piece))), "{count}");
            assert!(shown.is_sorted_by(|a, b| a.0 < b.0) && shown[0].0 == 0, "{count}");
        }
        assert_eq!(Samples::new(PieceLayout::new(0).unwrap()).iter().count(), 0);
    }
}
