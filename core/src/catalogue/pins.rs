//! Files of which the tracker keeps a copy, and the room that is promised to them.

use super::error::CatalogueError;
use super::layout::{self, META, PINS, PinRecord, RECORD, ReservedRecord};
use super::{ATTEMPTS, Catalogue};
use crate::model::id::{FileId, PeerId};
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability, KeyRange};

/// A file of which the tracker keeps a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The file.
    pub id: FileId,
    /// The bytes reserved for it.
    pub size: u64,
    /// Whether the tracker has the whole file, durably.
    pub held: bool,
    /// Who asked for it.
    pub by: PeerId,
}

impl Catalogue {
    /// Promises to keep a copy of the file: reserves `size` of `quota` bytes, durably. A pin that is there already
    /// is returned as it is.
    pub async fn pin(
        &self,
        id: FileId,
        size: u64,
        quota: u64,
        by: PeerId,
        now: u64,
    ) -> Result<Pin, CatalogueError> {
        let mut doubtful = false;
        for _ in 0..ATTEMPTS {
            if let Some(pin) = self.pinned(&id).await? {
                if doubtful {
                    self.storage.sync().await?;
                }
                return Ok(pin);
            }
            let (reserved, mut batch) = self.reserved_with_condition().await?;
            let bytes = reserved.bytes.checked_add(size).filter(|bytes| *bytes <= quota);
            let Some(bytes) = bytes else {
                return Err(CatalogueError::QuotaFull { size, reserved: reserved.bytes, quota });
            };
            let reserved = ReservedRecord { v: RECORD, bytes, pins: reserved.pins.saturating_add(1) };
            let record = PinRecord { v: RECORD, size, held: false, at: now, by };
            batch.require_absent(PINS, layout::file_key(&id));
            batch.put(PINS, layout::file_key(&id), layout::encode(&record));
            batch.put(META, layout::meta_key("reserved"), layout::encode(&reserved));
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => return Ok(Pin { id, size, held: false, by }),
                Ok(false) => {}
                // After the outcome is known, the next round finds the pin or makes it.
                Err(StorageError::Indeterminate { .. }) => doubtful = true,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Reserves another number of bytes for a pin, durably: what it takes may be known only later. False where it
    /// is not pinned any more; where the quota does not allow it, nothing is changed.
    pub async fn resize_pin(&self, id: &FileId, size: u64, quota: u64) -> Result<bool, CatalogueError> {
        let key = layout::file_key(id);
        for _ in 0..ATTEMPTS {
            let raw = self.read(PINS, &key).await?;
            let Some(raw) = raw else { return Ok(false) };
            let record: PinRecord = layout::decode(PINS, &raw)?;
            if record.size == size {
                // It may have been written a moment ago by a commit of which the outcome was not known.
                self.storage.sync().await?;
                return Ok(true);
            }
            let (reserved, mut batch) = self.reserved_with_condition().await?;
            let others = reserved.bytes.saturating_sub(record.size);
            let bytes = others.checked_add(size).filter(|bytes| *bytes <= quota || size < record.size);
            let Some(bytes) = bytes else {
                return Err(CatalogueError::QuotaFull { size, reserved: others, quota });
            };
            batch.require(PINS, key.clone(), raw);
            batch.put(PINS, key.clone(), layout::encode(&PinRecord { size, ..record }));
            let reserved = ReservedRecord { bytes, ..reserved };
            batch.put(META, layout::meta_key("reserved"), layout::encode(&reserved));
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => return Ok(true),
                Ok(false) | Err(StorageError::Indeterminate { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// The pin of this file.
    pub async fn pinned(&self, id: &FileId) -> Result<Option<Pin>, CatalogueError> {
        let raw = self.read(PINS, &layout::file_key(id)).await?;
        let Some(raw) = raw else { return Ok(None) };
        let PinRecord { size, held, by, .. } = layout::decode(PINS, &raw)?;
        Ok(Some(Pin { id: *id, size, held, by }))
    }

    /// Writes down, durably, whether the tracker has the whole file. False where it is not pinned any more.
    pub async fn set_held(&self, id: &FileId, held: bool) -> Result<bool, CatalogueError> {
        let key = layout::file_key(id);
        for _ in 0..ATTEMPTS {
            let raw = self.read(PINS, &key).await?;
            let Some(raw) = raw else { return Ok(false) };
            let record: PinRecord = layout::decode(PINS, &raw)?;
            if record.held == held {
                // It may have been written a moment ago by a commit of which the outcome was not known.
                self.storage.sync().await?;
                return Ok(true);
            }
            let mut batch = Batch::new();
            batch.require(PINS, key.clone(), raw);
            batch.put(PINS, key.clone(), layout::encode(&PinRecord { held, ..record }));
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => return Ok(true),
                Ok(false) | Err(StorageError::Indeterminate { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// Takes the pin away and frees its room, durably. False where there is none.
    pub async fn unpin(&self, id: &FileId) -> Result<bool, CatalogueError> {
        let key = layout::file_key(id);
        let mut tried = false;
        for _ in 0..ATTEMPTS {
            let raw = self.read(PINS, &key).await?;
            let Some(raw) = raw else {
                self.storage.sync().await?;
                return Ok(tried);
            };
            let record: PinRecord = layout::decode(PINS, &raw)?;
            let (reserved, mut batch) = self.reserved_with_condition().await?;
            let reserved = ReservedRecord {
                v: RECORD,
                bytes: reserved.bytes.saturating_sub(record.size),
                pins: reserved.pins.saturating_sub(1),
            };
            batch.require(PINS, key.clone(), raw).delete(PINS, key.clone());
            batch.put(META, layout::meta_key("reserved"), layout::encode(&reserved));
            match self.try_commit(batch, Durability::Durable).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(StorageError::Indeterminate { .. }) => tried = true,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CatalogueError::Conflict)
    }

    /// One page of all pins in the order of their ids, after `after`. An empty page is the end.
    pub async fn pins(&self, after: Option<&FileId>) -> Result<Vec<Pin>, CatalogueError> {
        let range = KeyRange::all();
        let range = after.map_or(range.clone(), |id| range.after(&layout::file_key(id)));
        let mut pins = Vec::new();
        for (key, raw) in self.storage.scan(PINS, range, super::PAGE).await? {
            let PinRecord { size, held, by, .. } = layout::decode(PINS, &raw)?;
            pins.push(Pin { id: layout::read_file_key(PINS, key.as_bytes())?, size, held, by });
        }
        Ok(pins)
    }

    /// What is promised to all pins together.
    pub async fn reserved(&self) -> Result<ReservedRecord, CatalogueError> {
        Ok(self.reserved_with_condition().await?.0)
    }

    async fn reserved_with_condition(&self) -> Result<(ReservedRecord, Batch), StorageError> {
        let key = layout::meta_key("reserved");
        let raw = self.read(META, &key).await?;
        let mut batch = Batch::new();
        let record = match raw {
            Some(raw) => {
                let record = layout::decode(META, &raw)?;
                batch.require(META, key, raw);
                record
            }
            None => {
                batch.require_absent(META, key);
                ReservedRecord::default()
            }
        };
        Ok((record, batch))
    }
}
