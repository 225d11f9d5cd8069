//! Pins: files of which the tracker stores a replica, and the space that the replicas take.
//!
//! A new pin reserves no space. Its reservation grows as content arrives. One peer can reserve half of the quota.

use super::access::{ATTEMPTS, PAGE, after_key, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, FILES, FileEntry, META, PINNERS, PINS, PinRecord, ReservedRecord};
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::{Batch, FileId, PeerId, UnixMillis};

/// The largest number of pins.
pub(crate) const MAX_PINS: u64 = 100_000;
/// The largest number of pins of one peer.
pub(crate) const MAX_PINS_PER_PEER: u64 = 1000;
/// The number of pins that one page of the pins of a peer examines.
const MAX_EXAMINED: usize = 10_000;

/// The largest number of bytes that the pins of one peer reserve.
pub(crate) const fn share_of(quota: u64) -> u64 {
    quota / 2
}

impl Catalogue {
    /// Pins the file, durably. The pin reserves no space yet. An existing pin is returned unchanged.
    pub async fn pin(&self, id: FileId, by: PeerId, now: UnixMillis) -> Result<PinRecord, CatalogueError> {
        let new = PinRecord { size: 0, complete: false, at: now, by };
        let (_, pin) = self.change_pin(&id, u64::MAX, |pin| Some(pin.unwrap_or_else(|| new.clone()))).await?;
        Ok(pin.unwrap_or(new))
    }

    /// Changes the reservation of a pin, durably. Returns `false` if the file is not pinned.
    ///
    /// # Errors
    /// [`CatalogueError::QuotaFull`] if the quota does not allow the change; the reservation is unchanged then.
    pub async fn resize_pin(&self, id: &FileId, size: u64, quota: u64) -> Result<bool, CatalogueError> {
        let resize = |pin: Option<PinRecord>| Some(PinRecord { size, ..pin? });
        Ok(self.change_pin(id, quota, resize).await?.1.is_some())
    }

    /// Returns the largest size to which [`Self::resize_pin`] can change the pin now.
    pub async fn max_pin_size(&self, pin: &PinRecord, quota: u64) -> Result<u64, CatalogueError> {
        let own = self.read_record::<ReservedRecord>(PINNERS, &layout::peer_id_key(&pin.by)).await?;
        let own = own.map(|(record, _)| record.bytes).unwrap_or_default();
        let free = quota.saturating_sub(self.reserved().await?.bytes);
        Ok(free.min(share_of(quota).saturating_sub(own)).saturating_add(pin.size))
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

    /// Changes the pin of a file, the total of all pins and that of its peer, durably. `quota` limits the totals if they grow.
    /// Returns whether the file was pinned before, and its pin after the change.
    async fn change_pin(
        &self,
        id: &FileId,
        quota: u64,
        change: impl Fn(Option<PinRecord>) -> Option<PinRecord>,
    ) -> Result<(bool, Option<PinRecord>), CatalogueError> {
        let key = layout::file_key(id);
        let mut was_pinned = false;
        for _ in 0..ATTEMPTS {
            let (old, old_raw) = self.read_record::<PinRecord>(PINS, &key).await?.unzip();
            was_pinned |= old.is_some();
            let new = change(old.clone());
            let by = match old.as_ref().or(new.as_ref()) {
                // A commit with unknown outcome may have written it.
                _ if new == old => {
                    self.storage.sync().await?;
                    return Ok((was_pinned, new));
                }
                Some(pin) => pin.by,
                None => return Ok((was_pinned, None)),
            };
            let size = |pin: &Option<PinRecord>| pin.as_ref().map_or(0, |pin| pin.size);
            let grows = size(&new) > size(&old);
            let mut batch = Batch::new();
            require_same(&mut batch, PINS, key.clone(), old_raw);
            match &new {
                Some(pin) => batch.put(PINS, key.clone(), layout::encode(pin)),
                None => batch.delete(PINS, key.clone()),
            };
            for (space, key, quota, max_pins) in [
                (META, layout::meta_key("reserved"), quota, MAX_PINS),
                (PINNERS, layout::peer_id_key(&by), share_of(quota), MAX_PINS_PER_PEER),
            ] {
                let (total, raw) = self.read_record::<ReservedRecord>(space, &key).await?.unzip();
                let total = total.unwrap_or_default();
                let reserved = total.bytes.saturating_sub(size(&old));
                let bytes = reserved.saturating_add(size(&new));
                if grows && bytes > quota {
                    return Err(CatalogueError::QuotaFull { size: size(&new), reserved, quota });
                }
                if old.is_none() && total.pins >= max_pins {
                    return Err(CatalogueError::TooManyPins(max_pins));
                }
                let count = |pin: &Option<PinRecord>| u64::from(pin.is_some());
                let pins = total.pins.saturating_sub(count(&old)).saturating_add(count(&new));
                require_same(&mut batch, space, key.clone(), raw);
                if pins == 0 && space == PINNERS {
                    batch.delete(space, key);
                } else {
                    batch.put(space, key, layout::encode(&ReservedRecord { bytes, pins }));
                }
            }
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

    /// As [`Catalogue::pins`], for pins that a tracker may have written before it was killed.
    pub async fn durable_pins(
        &self,
        after: Option<&FileId>,
    ) -> Result<Vec<(FileId, PinRecord)>, CatalogueError> {
        let pins = self.pins(after).await?;
        self.storage.sync().await?;
        Ok(pins)
    }

    /// Returns at most `limit` pins of a peer by ascending id, starting behind `after`, and the start of the next page.
    pub async fn pins_of(
        &self,
        by: PeerId,
        after: Option<FileId>,
        limit: usize,
    ) -> Result<(Vec<PinStatus>, Option<FileId>), CatalogueError> {
        let (mut found, mut after, mut examined) = (Vec::new(), after, 0);
        while examined < MAX_EXAMINED {
            let page = self.pins(after.as_ref()).await?;
            if page.is_empty() {
                return Ok((self.describe_pins(found).await?, None));
            }
            for (id, pin) in page {
                if pin.by == by {
                    if found.len() == limit {
                        return Ok((self.describe_pins(found).await?, after));
                    }
                    found.push((id, pin));
                }
                (after, examined) = (Some(id), examined + 1);
            }
        }
        Ok((self.describe_pins(found).await?, after))
    }

    /// Adds the names of the files.
    pub async fn describe_pins(
        &self,
        pins: Vec<(FileId, PinRecord)>,
    ) -> Result<Vec<PinStatus>, CatalogueError> {
        let keys: Vec<_> = pins.iter().map(|(id, _)| layout::file_key(id)).collect();
        let entries = self.storage.get(FILES, &keys).await?;
        let described = pins.into_iter().zip(entries).map(|((id, pin), raw)| {
            let name = raw.map(|raw| layout::decode::<FileEntry>(FILES, &raw)).transpose()?;
            let name = name.map(|entry| entry.name);
            let PinRecord { size, complete, at, by } = pin;
            Ok(PinStatus { id, name, reserved: size, complete, pinned_ms: at, peer: by })
        });
        described.collect()
    }

    /// Returns the total of all pins.
    pub async fn reserved(&self) -> Result<ReservedRecord, CatalogueError> {
        let total = self.read_record(META, &layout::meta_key("reserved")).await?;
        Ok(total.map(|(record, _)| record).unwrap_or_default())
    }
}
