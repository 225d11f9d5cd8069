//! Verifying every stored piece of a file.

use rustix::fs::OFlags;

use super::entry::{LibraryEvent, VerifyReport};
use super::error::{LibraryError, Result};
use super::layout::{ContentPlace, LinkState, Record};
use super::library::Library;
use super::linked::{open_regular, verified_fingerprint};
use super::load::load_manifest;
use super::task::blocking;
use enjambre_core::{Durability, FileId, PieceIndex};

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
        if record.withdrawn && record.complete {
            self.verify_withdrawn(id, &record).await?;
        }
        let changed = || LibraryError::Changed { id: *id, path: record.place.path().unwrap_or_default() };
        let Some(file) = self.files.open(id).await? else { return Err(changed()) };
        let layout = file.layout();
        let have = file.have();
        let stored: Vec<PieceIndex> = layout.pieces().filter(|piece| have.contains(*piece)).collect();
        let missing = layout.count() - stored.len() as u32;
        let mut bad = Vec::new();
        for piece in &stored {
            match file.check_piece(*piece).await {
                Ok(true) => {}
                Ok(false) => bad.push(*piece),
                Err(error @ LibraryError::Changed { .. }) => {
                    file.withdraw().await?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        if !bad.is_empty() {
            if matches!(record.place, ContentPlace::Linked { state: LinkState::Whole(_), .. }) {
                file.withdraw().await?;
                return Err(changed());
            }
            file.drop_pieces(&bad).await?;
        }
        let good = (stored.len() - bad.len()) as u32;
        Ok(VerifyReport { id: *id, good, bad: bad.iter().map(|piece| piece.get()).collect(), missing })
    }

    /// Offers a withdrawn file again if the linked file has the right content.
    async fn verify_withdrawn(&self, id: &FileId, record: &Record) -> Result<()> {
        let inner = &self.inner;
        let (Some(path), Some((root, rel))) = (record.place.path(), record.place.root_and_rel()) else {
            return Ok(());
        };
        let manifest = load_manifest(&*inner.index, id, record.layout()?).await?;
        let opened = path.clone();
        let fingerprint = blocking(move || match open_regular(&opened, OFlags::empty()) {
            Ok((file, metadata)) => Ok(verified_fingerprint(&manifest, &file, &metadata)),
            Err(_) => Ok(None),
        })
        .await?;
        let Some(fingerprint) = fingerprint else { return Err(LibraryError::Changed { id: *id, path }) };
        let place = ContentPlace::linked(root, rel, LinkState::Whole(fingerprint));
        let _guard = inner.lock(id).await;
        if let Some(slot) = inner.state.lock().slots.get_mut(id) {
            if slot.record.place != record.place {
                // A download was started meanwhile.
                return Ok(());
            }
            slot.record.place = place;
            slot.record.withdrawn = false;
            slot.stored = false;
            slot.have = record.layout()?.count();
        }
        inner.store_record(id, Durability::Durable).await?;
        inner.notify(LibraryEvent::Added(*id));
        inner.notify(LibraryEvent::Completed(*id));
        Ok(())
    }
}
