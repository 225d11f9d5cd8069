//! Pins: files of which the tracker stores a replica, and the space reserved for them.

use super::access::{ATTEMPTS, PAGE, after_key, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, META, PINS, PinRecord, ReservedRecord};
use enjambre_core::{Batch, FileId, PeerId, UnixMillis};

impl Catalogue {
    /// Pins the file and reserves `size` of `quota` bytes for its replica, durably. An existing pin is returned unchanged.
    pub async fn pin(
        &self,
        id: FileId,
        size: u64,
        quota: u64,
        by: PeerId,
        now: UnixMillis,
    ) -> Result<PinRecord, CatalogueError> {
        let new = PinRecord { size, complete: false, at: now, by };
        let (_, pin) = self.change_pin(&id, quota, |pin| Some(pin.unwrap_or_else(|| new.clone()))).await?;
        Ok(pin.unwrap_or(new))
    }

    /// Changes the reservation of a pin, durably, because the size of the replica may be known only later. Returns `false` if
    /// the file is not pinned.
    ///
    /// # Errors
    /// [`CatalogueError::QuotaFull`] if the quota does not allow the change; the reservation is unchanged then.
    pub async fn resize_pin(&self, id: &FileId, size: u64, quota: u64) -> Result<bool, CatalogueError> {
        let resize = |pin: Option<PinRecord>| Some(PinRecord { size, ..pin? });
        Ok(self.change_pin(id, quota, resize).await?.1.is_some())
    }

    /// Returns the pin of the file.
    pub async fn pinned(&self, id: &FileId) -> Result<Option<PinRecord>, CatalogueError> {
        let pin = self.read_record(PINS, &layout::file_key(id)).await?;
        Ok(pin.map(|(record, _)| record))
    }

    /// Records durably whether the replica is complete. Returns `false` if the file is not pinned.
    pub async fn set_complete(&self, id: &FileId, complete: bool) -> Result<bool, CatalogueError> {
        let change = |pin: Option<PinRecord>| Some(PinRecord { complete, ..pin? });
        Ok(self.change_pin(id, u64::MAX, change).await?.1.is_some())
    }

    /// Removes the pin and its reservation, durably. Returns whether the file was pinned.
    pub async fn unpin(&self, id: &FileId) -> Result<bool, CatalogueError> {
        Ok(self.change_pin(id, u64::MAX, |_| None).await?.0)
    }

    /// Changes the pin of a file and the total of all pins, durably. `quota` limits the total if it grows. Returns whether the
    /// file was pinned before, and its pin after the change.
    async fn change_pin(
        &self,
        id: &FileId,
        quota: u64,
        change: impl Fn(Option<PinRecord>) -> Option<PinRecord>,
    ) -> Result<(bool, Option<PinRecord>), CatalogueError> {
        let (key, total_key) = (layout::file_key(id), layout::meta_key("reserved"));
        let mut was_pinned = false;
        for _ in 0..ATTEMPTS {
            let (old, old_raw) = self.read_record::<PinRecord>(PINS, &key).await?.unzip();
            was_pinned |= old.is_some();
            let new = change(old.clone());
            if new == old {
                // A commit with unknown outcome may have written it.
                self.storage.sync().await?;
                return Ok((was_pinned, new));
            }
            let (total, total_raw) = self.read_record::<ReservedRecord>(META, &total_key).await?.unzip();
            let total = total.unwrap_or_default();
            let size = |pin: &Option<PinRecord>| pin.as_ref().map_or(0, |pin| pin.size);
            let count = |pin: &Option<PinRecord>| u64::from(pin.is_some());
            let reserved = total.bytes.saturating_sub(size(&old));
            let bytes = reserved.saturating_add(size(&new));
            let grows = old.is_none() || size(&new) > size(&old);
            if grows && bytes > quota {
                return Err(CatalogueError::QuotaFull { size: size(&new), reserved, quota });
            }
            let pins = total.pins.saturating_sub(count(&old)).saturating_add(count(&new));
            let mut batch = Batch::new();
            require_same(&mut batch, PINS, key.clone(), old_raw);
            require_same(&mut batch, META, total_key.clone(), total_raw);
            match &new {
                Some(pin) => batch.put(PINS, key.clone(), layout::encode(pin)),
                None => batch.delete(PINS, key.clone()),
            };
            let total = ReservedRecord { bytes, pins };
            batch.put(META, total_key.clone(), layout::encode(&total));
            if self.commit_durably(batch).await? {
                return Ok((was_pinned, new));
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Returns one page of all pins by ascending id, starting behind `after`. An empty page is the end.
    pub async fn pins(&self, after: Option<&FileId>) -> Result<Vec<(FileId, PinRecord)>, CatalogueError> {
        let range = after_key(after.map(layout::file_key));
        let page = self.storage.scan(PINS, range, PAGE).await?;
        let pins = page.iter().map(|(key, raw)| {
            Ok((layout::read_file_key(PINS, key.as_bytes())?, layout::decode::<PinRecord>(PINS, raw)?))
        });
        pins.collect()
    }

    /// Returns the total of all pins.
    pub async fn reserved(&self) -> Result<ReservedRecord, CatalogueError> {
        let total = self.read_record(META, &layout::meta_key("reserved")).await?;
        Ok(total.map(|(record, _)| record).unwrap_or_default())
    }
}
