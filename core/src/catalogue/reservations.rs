//! Names that only one peer may publish.

use bytes::Bytes;

use super::Catalogue;
use super::error::CatalogueError;
use super::layout::{self, RECORD, RESERVATIONS, ReservationRecord};
use crate::model::id::PeerId;
use crate::model::name::Name;
use crate::storage::error::StorageError;
use crate::storage::value::{Batch, Durability};

impl Catalogue {
    /// From now on only this peer publishes the name, durably; whoever had it reserved before. What was published
    /// stays.
    pub async fn reserve(&self, name: &Name, by: PeerId, now: u64) -> Result<(), StorageError> {
        let record = ReservationRecord { v: RECORD, by, at: now };
        let mut batch = Batch::new();
        batch.put(RESERVATIONS, layout::reservation_key(name), layout::encode(&record));
        self.storage.commit(batch, Durability::Durable).await
    }

    /// From now on everybody publishes the name, durably. False where it was not reserved.
    pub async fn release(&self, name: &Name) -> Result<bool, StorageError> {
        let key = layout::reservation_key(name);
        let known = self.read(RESERVATIONS, &key).await?.is_some();
        let mut batch = Batch::new();
        batch.delete(RESERVATIONS, key);
        self.storage.commit(batch, Durability::Durable).await?;
        Ok(known)
    }

    /// The reservation of a name as it lies in the database, if there is one and it is this peer's.
    pub(super) async fn may_publish(
        &self,
        name: &Name,
        peer: PeerId,
    ) -> Result<Option<Bytes>, CatalogueError> {
        let Some(raw) = self.read(RESERVATIONS, &layout::reservation_key(name)).await? else {
            return Ok(None);
        };
        let ReservationRecord { by, .. } = layout::decode(RESERVATIONS, &raw)?;
        if by == peer { Ok(Some(raw)) } else { Err(CatalogueError::NameReserved { name: name.clone(), by }) }
    }
}

/// The name is reserved so, or not at all.
pub(super) fn require(batch: &mut Batch, name: &Name, reservation: Option<&Bytes>) {
    let key = layout::reservation_key(name);
    match reservation {
        Some(raw) => batch.require(RESERVATIONS, key, raw.clone()),
        None => batch.require_absent(RESERVATIONS, key),
    };
}
