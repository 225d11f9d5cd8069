//! Pins: files of which the tracker stores a replica, and the space that the replicas take.
//!
//! Each peer that pins a file has a pin of its own; they share the replica, which exists until the last of them is removed.
//! A new pin reserves no space. Its reservation grows as content arrives. One peer can reserve half of the quota. A shared
//! replica counts in the share of each of its peers, and once in the quota.

use bytes::Bytes;

use super::access::{ATTEMPTS, PAGE, after_key, require_same};
use super::catalogue::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, FILES, FileEntry, META, PINNED, PINNERS, PINS, PinId, PinRecord, ReservedRecord};
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::{Batch, FileId, Key, KeyRange, PeerId, Space, UnixMillis};

/// The largest number of pins.
pub(crate) const MAX_PINS: u64 = 100_000;
/// The largest number of pins of one peer.
pub(crate) const MAX_PINS_PER_PEER: u64 = 1000;

/// The largest number of bytes that the pins of one peer reserve.
pub(crate) const fn share_of(quota: u64) -> u64 {
    quota / 2
}

impl Catalogue {
    /// Pins a file for a peer, durably. The pin reserves no space yet. An existing pin is returned unchanged.
    pub async fn pin(&self, id: &PinId, now: UnixMillis) -> Result<PinRecord, CatalogueError> {
        let new = PinRecord { size: 0, complete: false, at: now };
        let (_, pin) = self.change_pin(id, u64::MAX, |pin| Some(pin.unwrap_or_else(|| new.clone()))).await?;
        Ok(pin.unwrap_or(new))
    }

    /// Changes the reservation of a pin, durably. Returns `false` if the pin does not exist.
    ///
    /// # Errors
    /// [`CatalogueError::QuotaFull`] if the quota does not allow the change; the reservation is unchanged then.
    pub async fn resize_pin(&self, id: &PinId, size: u64, quota: u64) -> Result<bool, CatalogueError> {
        let resize = |pin: Option<PinRecord>| Some(PinRecord { size, ..pin? });
        Ok(self.change_pin(id, quota, resize).await?.1.is_some())
    }

    /// Returns the largest size to which [`Self::resize_pin`] can change the pin now.
    pub async fn max_pin_size(&self, id: &PinId, quota: u64) -> Result<u64, CatalogueError> {
        let size = self.pinned(id).await?.map_or(0, |pin| pin.size);
        let shared = self.reserved_for(&id.file).await?.bytes;
        let left = |quota: u64, reserved: ReservedRecord, own| {
            quota.saturating_sub(reserved.bytes.saturating_sub(own))
        };
        let share = left(share_of(quota), self.reserved_by(&id.by).await?, size);
        Ok(share.min(left(quota, self.reserved().await?, shared)))
    }

    /// Returns the pin.
    pub async fn pinned(&self, id: &PinId) -> Result<Option<PinRecord>, CatalogueError> {
        let pin = self.read_record(PINS, &layout::pin_key(id)).await?;
        Ok(pin.map(|(record, _)| record))
    }

    /// Records durably whether the replica is complete. Returns `false` if the pin does not exist.
    pub async fn set_complete(&self, id: &PinId, complete: bool) -> Result<bool, CatalogueError> {
        let change = |pin: Option<PinRecord>| Some(PinRecord { complete, ..pin? });
        Ok(self.change_pin(id, u64::MAX, change).await?.1.is_some())
    }

    /// Removes the pin and its reservation, durably. Returns whether it existed.
    pub async fn unpin(&self, id: &PinId) -> Result<bool, CatalogueError> {
        Ok(self.change_pin(id, u64::MAX, |_| None).await?.0)
    }

    /// Changes a pin and the totals of its file, of its peer and of all pins, durably. `quota` limits the totals if they grow.
    /// Returns whether the pin existed before, and the pin after the change.
    async fn change_pin(
        &self,
        id: &PinId,
        quota: u64,
        change: impl Fn(Option<PinRecord>) -> Option<PinRecord>,
    ) -> Result<(bool, Option<PinRecord>), CatalogueError> {
        let key = layout::pin_key(id);
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
            let mut batch = Batch::new();
            require_same(&mut batch, PINS, key.clone(), old_raw);
            match &new {
                Some(pin) => batch.put(PINS, key.clone(), layout::encode(pin)),
                None => batch.delete(PINS, key.clone()),
            };
            let count = |pins: u64| {
                pins.saturating_sub(u64::from(old.is_some())).saturating_add(u64::from(new.is_some()))
            };
            let size = |pin: &Option<PinRecord>| pin.as_ref().map_or(0, |pin| pin.size);
            let file = self.total(PINNED, layout::file_key(&id.file)).await?;
            let replica = match &new {
                _ if count(file.record.pins) == 0 => 0,
                // The size of the complete replica, which is that of all pins.
                Some(new) if new.size < size(&old) => new.size,
                new => file.record.bytes.max(size(new)),
            };
            let shared = file.record.bytes;
            let peer = self.total(PINNERS, layout::peer_id_key(&id.by)).await?;
            let all = self.total(META, layout::meta_key("reserved")).await?;
            for (total, (before, after), quota, max_pins) in [
                (file, (shared, replica), u64::MAX, u64::MAX),
                (peer, (size(&old), size(&new)), share_of(quota), MAX_PINS_PER_PEER),
                (all, (shared, replica), quota, MAX_PINS),
            ] {
                let Total { space, key, raw, record } = total;
                let reserved = record.bytes.saturating_sub(before);
                let bytes = reserved.saturating_add(after);
                if after > before && bytes > quota {
                    return Err(CatalogueError::QuotaFull { size: after, reserved, quota });
                }
                if old.is_none() && record.pins >= max_pins {
                    return Err(CatalogueError::TooManyPins(max_pins));
                }
                require_same(&mut batch, space, key.clone(), raw);
                match count(record.pins) {
                    0 if space != META => batch.delete(space, key),
                    pins => batch.put(space, key, layout::encode(&ReservedRecord { bytes, pins })),
                };
            }
            if self.commit_durably(batch).await? {
                return Ok((was_pinned, new));
            }
        }
        Err(CatalogueError::Conflict)
    }

    async fn total(&self, space: Space, key: Key) -> Result<Total, CatalogueError> {
        let (record, raw) = self.read_record::<ReservedRecord>(space, &key).await?.unzip();
        Ok(Total { space, key, raw, record: record.unwrap_or_default() })
    }

    /// Returns one page of all pins by ascending peer and file, starting behind `after`. An empty page is the end.
    pub async fn pins(&self, after: Option<&PinId>) -> Result<Vec<(PinId, PinRecord)>, CatalogueError> {
        let range = after_key(after.map(layout::pin_key));
        read_pins(&self.storage.scan(PINS, range, PAGE).await?)
    }

    /// As [`Catalogue::pins`], for pins that a tracker may have written before it was killed.
    pub async fn durable_pins(
        &self,
        after: Option<&PinId>,
    ) -> Result<Vec<(PinId, PinRecord)>, CatalogueError> {
        let pins = self.pins(after).await?;
        self.storage.sync().await?;
        Ok(pins)
    }

    /// Returns at most `limit` pins of a peer by ascending file, starting behind `after`, and the start of the next page.
    /// An empty page is the end.
    pub async fn pins_of(
        &self,
        by: PeerId,
        after: Option<FileId>,
        limit: usize,
    ) -> Result<(Vec<PinStatus>, Option<FileId>), CatalogueError> {
        let all = KeyRange::prefix(by.as_bytes());
        let range = after.map_or(all.clone(), |file| all.after(&layout::pin_key(&PinId { by, file })));
        let pins = read_pins(&self.storage.scan(PINS, range, limit).await?)?;
        let next = pins.last().map(|(id, _)| id.file);
        Ok((self.describe_pins(pins).await?, next))
    }

    /// Adds the names of the files.
    pub async fn describe_pins(
        &self,
        pins: Vec<(PinId, PinRecord)>,
    ) -> Result<Vec<PinStatus>, CatalogueError> {
        let keys: Vec<_> = pins.iter().map(|(id, _)| layout::file_key(&id.file)).collect();
        let entries = self.storage.get(FILES, &keys).await?;
        let described = pins.into_iter().zip(entries).map(|((id, pin), raw)| {
            let name = raw.map(|raw| layout::decode::<FileEntry>(FILES, &raw)).transpose()?;
            let name = name.map(|entry| entry.name);
            let (PinId { file, by }, PinRecord { size, complete, at }) = (id, pin);
            Ok(PinStatus { id: file, name, reserved: size, complete, pinned_ms: at, peer: by })
        });
        described.collect()
    }

    /// Returns the total of all pins.
    pub async fn reserved(&self) -> Result<ReservedRecord, CatalogueError> {
        Ok(self.total(META, layout::meta_key("reserved")).await?.record)
    }

    /// Returns the total of the pins of a file, which share its replica.
    pub async fn reserved_for(&self, file: &FileId) -> Result<ReservedRecord, CatalogueError> {
        Ok(self.total(PINNED, layout::file_key(file)).await?.record)
    }

    /// Returns the total of the pins of a peer.
    pub async fn reserved_by(&self, peer: &PeerId) -> Result<ReservedRecord, CatalogueError> {
        Ok(self.total(PINNERS, layout::peer_id_key(peer)).await?.record)
    }
}

fn read_pins(entries: &[(Key, Bytes)]) -> Result<Vec<(PinId, PinRecord)>, CatalogueError> {
    let pins = entries.iter().map(|(key, raw)| {
        Ok((layout::read_pin_key(key.as_bytes())?, layout::decode::<PinRecord>(PINS, raw)?))
    });
    pins.collect()
}

/// A stored total of pins.
struct Total {
    space: Space,
    key: Key,
    raw: Option<Bytes>,
    record: ReservedRecord,
}
