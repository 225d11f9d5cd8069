//! Provider lookups, connections, `have` requests and provider errors of a transfer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use tokio::time::Instant;

use super::connect::connect;
use super::event::{Connected, Event, Received};
use super::provider_table::{
    ActiveProvider, ConnectionState, ErrorEffect, HAVE_INTERVAL, MAX_BACKOFF, MIN_BACKOFF,
};
use super::state::{MAX_LOOKUP_INTERVAL, OpenFile, Transfer};
use crate::download::error::DownloadError;
use crate::download::provider::{self, ConnectedProvider, ProviderError};
use crate::download::schedule::ProviderKey;
use enjambre_core::protocol::message::HaveWait;
use enjambre_core::{Bitmap, Deadline, PieceIndex, PieceLayout, Provider};

/// Maximum interval of lookups while fewer than [`ENOUGH_PROVIDERS`] are active.
const MAX_SEARCH_INTERVAL: Duration = Duration::from_secs(2);
const ENOUGH_PROVIDERS: usize = 4;
/// How long a partial provider stays connected without useful pieces.
const PROBATION: Duration = Duration::from_secs(5);
/// Number of providers that are asked in parallel to prove the size and the hashes of the file. While none succeeds, another
/// one is asked at each interval, so that slow providers do not keep out the others.
const MAX_PROVERS: usize = 3;
const PROVER_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which the limit of active providers grows while it is below its maximum.
const GROWTH_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of the check whether a useless provider blocks another one.
const REVIEW_INTERVAL: Duration = Duration::from_millis(100);

impl Transfer<'_> {
    pub(super) fn look_up_providers(&mut self) {
        if self.lookup_pending || Instant::now() < self.next_lookup {
            return;
        }
        self.lookup_pending = true;
        let source = Arc::clone(&self.request.providers);
        let id = self.request.announced_as;
        self.events.push(async move { Event::Providers(source.providers(&id).await) }.boxed());
    }

    pub(super) fn connect_providers(&mut self) {
        let now = Instant::now();
        let mut engaged = self.providers.engaged_count();
        let growth = (self.elapsed().as_millis() / GROWTH_INTERVAL.as_millis()) as usize;
        let (prove, max) = match &self.open {
            None => {
                let more = (self.elapsed().as_millis() / PROVER_INTERVAL.as_millis()) as usize;
                let max = self.context.settings.max_providers.max(MAX_PROVERS);
                (true, (MAX_PROVERS.min(1 + growth) + more).min(max))
            }
            // For a file of few pieces most providers would only be asked for their bitmap.
            Some(OpenFile { file, .. }) => {
                let useful = (file.layout().count() as usize * 2).saturating_add(growth);
                (false, self.context.settings.max_providers.min(useful))
            }
        };
        if engaged >= max {
            // The table may contain a thousand providers, and few events change the active ones.
            if now < self.next_review {
                return;
            }
            self.next_review = now + REVIEW_INTERVAL;
        }
        for key in self.providers.candidates(now) {
            if engaged >= max {
                // A provider without missing pieces must not block one that may have them.
                let Some(useless) = self.find_useless_provider() else { break };
                self.providers.release(useless, now + MAX_BACKOFF);
                self.cancel_requests_to(useless);
                engaged -= 1;
            }
            let Some(entry) = self.providers.get_mut(key) else { continue };
            entry.state = ConnectionState::Connecting;
            engaged += 1;
            let context = Arc::clone(self.context);
            let provider = entry.provider.clone();
            let (id, sizes) = (self.request.id, self.request.accepted_sizes.clone());
            let attempt =
                async move { Event::Connected(key, connect(&context, &provider, id, sizes, prove).await) };
            self.events.push(attempt.boxed());
        }
    }

    /// Returns an active provider that has no missing piece or has stalled.
    fn find_useless_provider(&self) -> Option<ProviderKey> {
        let Some(OpenFile { schedule, .. }) = &self.open else { return None };
        let now = Instant::now();
        let stalled = self.stalled_providers(now);
        let is_useless = |key, active: &ActiveProvider| {
            let is_final = active.complete || now >= active.since + PROBATION;
            (is_final && !schedule.is_useful(key)) || stalled.contains(&key)
        };
        self.providers.all_active().find(|(key, active)| is_useless(*key, active)).map(|(key, _)| key)
    }

    /// Removes a provider from the schedule and aborts the requests to it.
    fn cancel_requests_to(&mut self, key: ProviderKey) {
        if let Some(open) = &mut self.open {
            open.schedule.remove_provider(key);
        }
        self.requests.retain(|(provider, _), request| {
            if *provider == key {
                request.abort.abort();
            }
            *provider != key
        });
    }

    pub(super) fn request_have(&mut self) {
        let now = Instant::now();
        let (id, silence) = (self.request.id, self.context.settings.silence_timeout);
        // Well below the silence timeout, after which the connection would count as lost.
        let timeout_ms = u64::try_from(silence.as_millis() / 2).unwrap_or(u64::MAX);
        for (key, active) in self.providers.all_active_mut() {
            if active.complete || active.next_have.is_none_or(|next| now < next) {
                continue;
            }
            active.next_have = None;
            active.have_requested = now;
            let wait = HaveWait { known: active.pieces, timeout_ms };
            let (connection, since) = (Arc::clone(&active.connection), active.since);
            let request = async move {
                let deadline = Deadline::Silence(silence);
                Event::Have(key, since, provider::have(&*connection, id, Some(wait), deadline).await)
            };
            self.events.push(request.boxed());
        }
    }

    pub(super) fn on_providers(&mut self, result: Result<Vec<Provider>, String>) {
        self.lookup_pending = false;
        let now = Instant::now();
        match result {
            Ok(providers) => {
                if providers.is_empty() {
                    self.last_error = Some("trackers list no live provider".to_owned());
                }
                for provider in providers {
                    if Some(provider.peer) != self.context.me {
                        self.providers.update(provider, now);
                    }
                }
            }
            Err(reason) => self.last_error = Some(reason),
        }
        let enough = self.context.settings.max_providers.min(ENOUGH_PROVIDERS);
        let has_enough = self.providers.all_active().count() >= enough;
        let max = if has_enough { MAX_LOOKUP_INTERVAL } else { MAX_SEARCH_INTERVAL };
        self.next_lookup = now + self.lookup_backoff.next_delay().min(max);
    }

    pub(super) async fn on_connected(
        &mut self,
        key: ProviderKey,
        connected: Connected,
    ) -> Result<(), DownloadError> {
        let Connected { provider, proof } = connected;
        let ConnectedProvider { connection, layout, have, round_trip } = provider;
        if self.open.is_none() {
            let Some((manifest, last)) = proof else {
                // Without the last piece the provider cannot prove the size.
                self.on_error(key, ProviderError::NotFound);
                return Ok(());
            };
            self.check_size(layout.size())?;
            self.create(manifest).await?;
            if let (Some((content, permit)), Some(piece)) = (last, layout.last())
                && let Some(open) = &mut self.open
                && open.schedule.arrived(key, piece, self.start.elapsed()).is_new
            {
                self.pipeline.queue.push(Received { from: key, piece, content, _permit: permit });
            }
        }
        let Some(entry) = self.providers.get_mut(key) else { return Ok(()) };
        let now = Instant::now();
        entry.state = ConnectionState::Active(ActiveProvider::new(connection, now));
        self.on_have(key, layout, &have);
        if let Some(OpenFile { schedule, .. }) = &mut self.open {
            schedule.set_round_trip(key, round_trip);
        }
        if let Some(active) = self.providers.active_mut(key) {
            // The first reply is not delayed until the pieces change, but the next one is.
            active.next_have = Some(now);
        }
        Ok(())
    }

    pub(super) fn on_have_reply(
        &mut self,
        key: ProviderKey,
        since: Instant,
        result: Result<(PieceLayout, Bitmap), ProviderError>,
    ) {
        let Some(active) = self.providers.active_mut(key).filter(|active| active.since == since) else {
            return;
        };
        match result {
            Ok((layout, have)) => self.on_have(key, layout, &have),
            Err(error) => {
                // A busy provider stays connected, so it is asked again.
                active.next_have = Some(Instant::now() + HAVE_INTERVAL);
                self.on_error(key, error);
            }
        }
    }

    fn on_have(&mut self, key: ProviderKey, layout: PieceLayout, have: &Bitmap) {
        let now = self.elapsed();
        let (Some(OpenFile { schedule, file, .. }), Some(active)) =
            (&mut self.open, self.providers.active_mut(key))
        else {
            return;
        };
        if layout != file.manifest().layout() {
            self.on_error(key, ProviderError::InvalidData("size differs from the proven size"));
            return;
        }
        active.update_have(have);
        schedule.set_provider(key, have, now);
    }

    /// Handles an `already_sent` reply. The bitmap `sent` contains all pieces that the provider has sent.
    pub(super) fn on_already_sent(&mut self, key: ProviderKey, piece: PieceIndex, sent: &[u8]) {
        let Some(OpenFile { schedule, file, .. }) = &mut self.open else { return };
        if let Some(active) = self.providers.active_mut(key) {
            active.count_already_sent();
        }
        match Bitmap::from_bytes(file.layout(), sent) {
            Ok(sent) => schedule.already_sent(key, piece, &sent),
            Err(_) => {
                schedule.failed(key, piece);
                self.on_error(key, ProviderError::InvalidData("bitmap does not match the size"));
            }
        }
    }

    pub(super) fn on_error(&mut self, key: ProviderKey, error: ProviderError) {
        let now = Instant::now();
        let effect = self.providers.apply_error(key, &error, now);
        let Some(entry) = self.providers.get(key).filter(|_| effect != ErrorEffect::Ignored) else { return };
        let peer = entry.provider.peer;
        self.last_error = Some(format!("peer {}: {error}", peer.short()));
        match error {
            ProviderError::InvalidData(reason) => {
                tracing::warn!(%peer, id = %self.request.id, reason, "provider banned: invalid data");
            }
            error => tracing::debug!(peer = %peer.short(), %error, "provider request failed"),
        }
        if effect == ErrorEffect::Paused {
            if let Some(open) = &mut self.open {
                open.schedule.busy(key);
            }
            return;
        }
        self.cancel_requests_to(key);
        self.next_lookup = self.next_lookup.min(now + MIN_BACKOFF);
    }
}
