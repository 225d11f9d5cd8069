//! Replicas that trackers store for the peer.

use std::collections::BTreeSet;
use std::time::Duration;

use enjambre_control::{Event, Events, Failure, ResultContext};
use enjambre_core::model::id::is_id_or_prefix;
use enjambre_core::protocol::message::PinStatus;
use enjambre_core::{FileId, Publication};
use tokio::time::{MissedTickBehavior, interval};

use super::Node;

/// Interval of requests for the progress of a replica.
const PIN_INTERVAL: Duration = Duration::from_millis(500);

impl Node {
    /// Requests a replica and waits until it is complete.
    pub(super) async fn pin(
        &self,
        publication: &Publication,
        total: u64,
        events: &Events,
    ) -> Result<(), Failure> {
        let presence = self.presence()?;
        let mut ticks = interval(PIN_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let name = publication.name.clone();
            let progress = presence.pin(publication.id).await;
            let progress =
                progress.context(format!("{name} is published, but no tracker stores a replica"))?;
            if progress.complete {
                events.send(Event::Pinned { name }).await;
                return Ok(());
            }
            if self.listen.is_empty() {
                return Err(Failure::failed(format!(
                    "{name} is published, but trackers cannot fetch a replica: this node offers no files, because \
                     the port of transport.listen is in use or not set"
                )));
            }
            events.progress(Event::Pinning { name, done: progress.stored.min(total), total });
        }
    }

    pub(super) async fn pins(&self, events: &Events) -> Result<(), Failure> {
        for pin in self.known_pins(events).await? {
            events.send(Event::Pin(pin.into())).await;
        }
        Ok(())
    }

    /// Returns the pins at all trackers that reply. Reports the others.
    async fn known_pins(&self, events: &Events) -> Result<Vec<PinStatus>, Failure> {
        let (pins, errors) = self.presence()?.pins().await?;
        for error in errors {
            events.warn(format!("replicas of a tracker are not listed: {error}")).await;
        }
        Ok(pins)
    }

    pub(super) async fn unpin(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let pins = self.known_pins(events).await?;
        let stored = self.services.library.find(query).map(|entry| entry.id);
        let named = async {
            match stored {
                Ok(id) if pins.iter().any(|pin| pin.id == id) => Some(id),
                _ => self.trackers.find(query).await.ok().map(|file| file.id),
            }
        };
        let id = find(query, &pins, named).await?;
        self.presence()?.unpin(id).await?;
        events.send(Event::Unpinned { id }).await;
        Ok(())
    }
}

/// Returns the only pinned file with this name, id or prefix of an id. A pin has the newest name of its file; if none matches,
/// `named` is the file with the name.
pub(crate) async fn find(
    query: &str,
    pins: &[PinStatus],
    named: impl Future<Output = Option<FileId>>,
) -> Result<FileId, Failure> {
    let digits = query.to_ascii_lowercase();
    let is_prefix = is_id_or_prefix(query);
    let matches = |pin: &&PinStatus| {
        pin.name.as_ref().is_some_and(|name| name.as_str() == query)
            || (is_prefix && pin.id.to_string().starts_with(&digits))
    };
    let mut found: BTreeSet<FileId> = pins.iter().filter(matches).map(|pin| pin.id).collect();
    if found.is_empty() {
        let named = named.await;
        found.extend(pins.iter().map(|pin| pin.id).find(|id| Some(*id) == named));
    }
    match (found.pop_first(), found.is_empty()) {
        (None, _) => Err(Failure::not_found(format!("{query:?} is not pinned"))),
        (Some(id), true) => Ok(id),
        _ => Err(Failure::usage(format!("several pins match {query:?}; specify the id"))),
    }
}

#[cfg(test)]
mod tests {
    use enjambre_core::{PeerId, UnixMillis};

    use super::*;

    #[tokio::test]
    async fn pin_is_found_by_other_names_of_its_file() {
        let id = |n| FileId::from_bytes([n; 32]);
        let pin = |n, by, name: &str| PinStatus {
            id: id(n),
            name: name.parse().ok(),
            reserved: 1,
            complete: true,
            pinned_ms: UnixMillis(1),
            peer: PeerId::from_bytes([by; 32]),
        };
        let pins = [pin(1, 1, "new"), pin(1, 2, "new"), pin(2, 1, "same"), pin(3, 1, "same")];
        let found = async |query: &str, named| find(query, &pins, async { named }).await.ok();
        assert_eq!(found("new", Some(id(2))).await, Some(id(1)), "pinned by two peers");
        assert_eq!(found("old", Some(id(1))).await, Some(id(1)));
        assert_eq!(found("old", Some(id(4))).await, None, "another file, which is not pinned");
        assert_eq!(found("old", None).await, None);
        assert_eq!(found("same", Some(id(2))).await, None, "ambiguous");
        assert_eq!(found(&id(2).to_string()[..8], None).await, Some(id(2)));
    }
}
