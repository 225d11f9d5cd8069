//! Replicas that trackers store for the peer.

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
        let id = find(query, &self.known_pins(events).await?)?;
        self.presence()?.unpin(id).await?;
        events.send(Event::Unpinned { id }).await;
        Ok(())
    }
}

/// Returns the only pinned file with this name, id or prefix of an id.
pub(crate) fn find<'a>(
    query: &str,
    pins: impl IntoIterator<Item = &'a PinStatus>,
) -> Result<FileId, Failure> {
    let digits = query.to_ascii_lowercase();
    let is_prefix = is_id_or_prefix(query);
    let matches = |pin: &&PinStatus| {
        pin.name.as_ref().is_some_and(|name| name.as_str() == query)
            || (is_prefix && pin.id.to_string().starts_with(&digits))
    };
    let mut found = pins.into_iter().filter(matches).map(|pin| pin.id);
    match (found.next(), found.next()) {
        (None, _) => Err(Failure::not_found(format!("{query:?} is not pinned"))),
        (Some(id), None) => Ok(id),
        _ => Err(Failure::usage(format!("several pins match {query:?}; specify the id"))),
    }
}
