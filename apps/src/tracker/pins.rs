//! Administration of the replicas of a tracker.

use enjambre_control::{Event, Events, Failure};
use enjambre_core::protocol::message::PinStatus;

use super::admin::AdminService;
use crate::peer::pins::find;

impl AdminService {
    pub(super) async fn pins(&self, events: &Events) -> Result<(), Failure> {
        for pin in self.all_pins().await? {
            events.send(Event::Pin(pin.into())).await;
        }
        Ok(())
    }

    pub(super) async fn unpin(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let id = find(query, &self.all_pins().await?)?;
        // In this order the space is only released once the replica is deleted. A stopped tracker deletes it at its start.
        if let Some(store) = &self.store {
            store.discard(&id).await.map_err(|error| Failure::failed(error.message))?;
        }
        self.catalogue.unpin(&id).await?;
        events.send(Event::Unpinned { id }).await;
        Ok(())
    }

    async fn all_pins(&self) -> Result<Vec<PinStatus>, Failure> {
        let (mut pins, mut after) = (Vec::new(), None);
        loop {
            let page = self.catalogue.pins(after.as_ref()).await?;
            let Some(last) = page.last() else { return Ok(pins) };
            after = Some(last.0);
            pins.extend(self.catalogue.describe_pins(page).await?);
        }
    }
}
