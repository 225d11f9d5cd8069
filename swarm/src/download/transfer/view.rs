//! The view of a transfer for observers.

use super::provider_table::{ConnectionState, ProviderEntry};
use super::state::{OpenFile, Transfer};
use crate::download::schedule::ProviderKey;
use crate::download::view::{
    FIRST_SOURCE, IN_FLIGHT, MAX_SOURCES, MISSING, PieceMap, STORED, SourceState, TransferView,
};
use enjambre_core::runtime::HashMap;

impl Transfer<'_> {
    pub(super) fn view(&self) -> TransferView {
        let mut used: Vec<_> = self
            .providers
            .iter()
            .filter_map(|(key, entry)| Some((key, entry, entry.source_state()?)))
            .collect();
        used.sort_unstable_by_key(|(key, ..)| *key);
        used.truncate(MAX_SOURCES);
        let index: HashMap<ProviderKey, u8> = used.iter().map(|(key, ..)| *key).zip(FIRST_SOURCE..).collect();
        let sources = used.iter().map(|(_, ProviderEntry { provider, .. }, state)| {
            (provider.peer, provider.endpoints.first().cloned(), *state)
        });
        let sources = sources.collect();
        let pieces = self.open.as_ref().map(|OpenFile { file, samples, .. }| {
            let layout = file.layout();
            let mut is_in_flight = vec![false; layout.count() as usize];
            for (_, piece) in self.requests.keys() {
                is_in_flight[piece.as_usize()] = true;
            }
            let cells = samples.iter().map(|(number, from)| match layout.piece(number) {
                Some(piece) if file.has(piece) => {
                    from.and_then(|from| index.get(&from).copied()).unwrap_or(STORED)
                }
                Some(piece) if is_in_flight[piece.as_usize()] => IN_FLIGHT,
                _ => MISSING,
            });
            PieceMap { count: layout.count(), cells: cells.collect() }
        });
        TransferView { sources, pieces }
    }
}

impl ProviderEntry {
    /// Returns the state of a provider that was used.
    fn source_state(&self) -> Option<SourceState> {
        Some(match &self.state {
            ConnectionState::Active(_) if self.is_busy() => SourceState::Busy,
            ConnectionState::Active(_) => SourceState::Active,
            ConnectionState::Connecting => SourceState::Connecting,
            ConnectionState::Banned => SourceState::Banned,
            ConnectionState::Idle { .. } if self.failures > 0 => SourceState::BackedOff,
            ConnectionState::Idle { .. } if self.is_proven() => SourceState::Idle,
            ConnectionState::Idle { .. } => return None,
        })
    }
}
