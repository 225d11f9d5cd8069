//! Queries of a peer to the catalogues of its trackers.

use std::time::Duration;

use enjambre_control::{
    CatalogueLine, CataloguePage, Event, Events, Failure, FileDetail, MAX_VERSIONS, Replica,
};
use enjambre_core::protocol::message::MAX_LIST;
use enjambre_swarm::catalogue::pattern::Pattern;
use enjambre_swarm::tracker_client::error::TrackerError;
use enjambre_swarm::tracker_client::listing::ListCursor;
use tokio::time::{Instant, timeout_at};

use super::Node;
use crate::find::{check_whole, find};

/// Time after which a search reports what it has found.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

impl Node {
    pub(super) async fn search(
        &self,
        pattern: &str,
        cursor: Option<&str>,
        limit: usize,
        events: &Events,
    ) -> Result<(), Failure> {
        let begin: Option<ListCursor> = cursor.map(str::parse).transpose().map_err(Failure::usage)?;
        let limit = limit.clamp(1, MAX_LIST);
        let mut listing = self.trackers.list_from(pattern, begin, limit);
        let mut files: Vec<CatalogueLine> = Vec::new();
        let until = Instant::now() + SEARCH_TIMEOUT;
        while files.len() < limit {
            match timeout_at(until, listing.next()).await {
                Ok(Ok(Some(file))) => files.push(file.into()),
                Ok(Err(error)) if files.is_empty() => return Err(error.into()),
                _ => break,
            }
        }
        let next = listing.cursor().map(|cursor| cursor.to_string());
        if files.is_empty() && next.is_none() && until <= Instant::now() {
            return Err(Failure::unreachable("no tracker replied in time"));
        }
        events.send(Event::Catalogue(CataloguePage { files, next })).await;
        Ok(())
    }

    pub(super) async fn file(&self, query: &str, events: &Events) -> Result<(), Failure> {
        let file = self.trackers.find(query).await?;
        let providers = match self.trackers.providers(&file.id).await {
            // The file expired meanwhile.
            Err(TrackerError::NotFound { .. }) => Vec::new(),
            found => found?,
        };
        let mut listing = self.trackers.list_from(&Pattern::exactly(&file.name), None, MAX_VERSIONS);
        let mut versions = Vec::new();
        while versions.len() < MAX_VERSIONS
            && let Some(version) = listing.next().await?
            && version.name == file.name
        {
            versions.push(version);
        }
        events.send(Event::FileDetail(FileDetail::new(file, providers, versions))).await;
        Ok(())
    }

    /// Requests a replica of a published file, or reports the progress of the replica.
    pub(super) async fn request_pin(&self, query: &str, events: &Events) -> Result<(), Failure> {
        check_whole(query)?;
        let found = find(&self.services.library, &self.trackers, query).await?;
        let progress = self.presence()?.pin(found.id).await?;
        let replica = Replica { id: found.id, stored: progress.stored, complete: progress.complete };
        events.send(Event::Replica(replica)).await;
        Ok(())
    }
}
