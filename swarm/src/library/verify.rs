//! Verifying every stored piece of a file.

use std::sync::Arc;

use super::entry::VerifyReport;
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::FileStore;
use super::layout::MAX_COPIES;
use super::library::Library;
use enjambre_core::{FileId, PieceIndex};

impl Library {
    /// Reads and hashes every stored piece. Drops invalid pieces, and offers a withdrawn file again if its
    /// content is valid.
    ///
    /// # Errors
    /// [`LibraryError::Changed`] if a linked file was changed or deleted; it is withdrawn.
    pub async fn verify(&self, id: &FileId) -> Result<VerifyReport> {
        let Some(record) = self.inner.state.lock().slots.get(id).map(|slot| slot.record.clone()) else {
            return Err(LibraryError::not_found(id));
        };
        if record.withdrawn.is_some() && record.complete {
            self.files.restore_now(id).await?;
        }
        // A linked file may be at another path.
        for _ in 0..=MAX_COPIES {
            let Some(file) = self.files.open(id).await? else { break };
            if let Some(report) = verify_open(&file).await? {
                return Ok(report);
            }
        }
        Err(LibraryError::Changed { id: *id, path: record.place.path().unwrap_or_default() })
    }
}

/// Verifies an open file. Returns `None` if it is a linked file with other content.
async fn verify_open(file: &Arc<LibraryFile>) -> Result<Option<VerifyReport>> {
    let linked = match file.state.lock().store.clone() {
        FileStore::Linked(linked) => Some(linked),
        _ => None,
    };
    let layout = file.layout();
    let have = file.have();
    let stored: Vec<PieceIndex> = layout.pieces().filter(|piece| have.contains(*piece)).collect();
    let missing = layout.count() - stored.len() as u32;
    let mut bad = Vec::new();
    for piece in &stored {
        let valid = {
            // The content does not move meanwhile.
            let _gate = file.gate.read().await;
            file.check_piece(*piece).await
        };
        match (valid, &linked) {
            (Ok(true), _) => {}
            (found @ (Ok(false) | Err(LibraryError::Changed { .. })), Some(linked)) => {
                file.relink(linked, found.is_ok()).await?;
                return Ok(None);
            }
            (Ok(false), None) => bad.push(*piece),
            (Err(error), _) => return Err(error),
        }
    }
    if !bad.is_empty() {
        file.drop_pieces(&bad).await?;
    }
    let good = (stored.len() - bad.len()) as u32;
    let bad = bad.iter().map(|piece| piece.get()).collect();
    Ok(Some(VerifyReport { id: file.id(), good, bad, missing }))
}
