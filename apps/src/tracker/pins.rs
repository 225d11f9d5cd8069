//! Administration of the replicas of a tracker.

use enjambre_control::{Event, Events, Failure};
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_swarm::catalogue::layout::PinId;

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
        let pins = self.all_pins().await?;
        let named = async { self.catalogue.find(query, SystemClock.now()).await.ok().map(|file| file.id) };
        let id = find(query, &pins, named).await?;
        for pin in pins.iter().filter(|pin| pin.id == id) {
            let pin = PinId { file: id, by: pin.peer };
            if let Some(store) = &self.store {
                store.unpin(&pin).await.map_err(|error| Failure::failed(error.message))?;
            } else {
                // A tracker deletes the replica at its start.
                self.catalogue.unpin(&pin).await?;
            }
        }
        events.send(Event::Unpinned { id }).await;
        Ok(())
    }

    /// Returns all pins by ascending file and peer.
    async fn all_pins(&self) -> Result<Vec<PinStatus>, Failure> {
        let (mut pins, mut after) = (Vec::new(), None);
        loop {
            let page = self.catalogue.pins(after.as_ref()).await?;
            let Some(last) = page.last() else {
                pins.sort_by_key(|pin: &PinStatus| (pin.id, pin.peer));
                return Ok(pins);
            };
            after = Some(last.0);
            pins.extend(self.catalogue.describe_pins(page).await?);
        }
    }
}
