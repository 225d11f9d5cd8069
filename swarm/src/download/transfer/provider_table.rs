//! The known providers of a transfer: their keys, connection states and backoff.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::download::provider::ProviderError;
use crate::download::schedule::{Candidate, ProviderKey, connection_order};
use enjambre_core::runtime::HashMap;
use enjambre_core::runtime::backoff::Backoff;
use enjambre_core::{Bitmap, Connection, PeerId, Provider};

/// Interval of `have` requests to a partial provider that does not delay its replies until its pieces change.
pub(super) const HAVE_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum interval of `have` requests. An honest provider collects changes for longer than this.
const MIN_HAVE_INTERVAL: Duration = Duration::from_millis(10);
/// Number of successive `already_sent` replies after which each one pauses the requests to a provider.
const MAX_ALREADY_SENT: u32 = 16;
const ALREADY_SENT_PAUSE: Duration = Duration::from_millis(20);
const MAX_PROVIDERS: usize = 1000;
/// Bounds of the backoff after a provider was unreachable or refused a request.
pub(super) const MIN_BACKOFF: Duration = Duration::from_millis(500);
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Bounds of the backoff after a provider was busy, unless it requests a longer one.
const MIN_BUSY_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BUSY_BACKOFF: Duration = Duration::from_millis(500);

/// The state of the connection to a provider.
#[derive(Debug)]
pub(super) enum ConnectionState {
    /// Not connected, and not to be connected before this time.
    Idle {
        from: Instant,
    },
    Connecting,
    Active(ActiveProvider),
    /// The provider sent invalid data.
    Banned,
}

/// A connected provider.
#[derive(Debug)]
pub(super) struct ActiveProvider {
    pub(super) connection: Arc<dyn Connection>,
    pub(super) since: Instant,
    /// Whether it has all pieces, and how many it has, by its last reply.
    pub(super) complete: bool,
    pub(super) pieces: u32,
    /// The time of the next `have` request; `None` while one is pending.
    pub(super) next_have: Option<Instant>,
    pub(super) have_requested: Instant,
    /// No piece is requested before this time.
    paused_until: Option<Instant>,
    pub(super) delivered: Instant,
    already_sent: u32,
}

impl ActiveProvider {
    pub(super) const fn new(connection: Arc<dyn Connection>, now: Instant) -> Self {
        Self {
            connection,
            since: now,
            complete: false,
            pieces: 0,
            next_have: None,
            have_requested: now,
            paused_until: None,
            delivered: now,
            already_sent: 0,
        }
    }

    /// Whether pieces may be requested.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.paused_until.is_none_or(|until| now >= until)
    }

    /// Records a `have` reply and schedules the next request.
    pub(super) fn update_have(&mut self, have: &Bitmap) {
        let requested_long_ago = self.have_requested.elapsed() >= HAVE_INTERVAL;
        let has_changed = have.count() > self.pieces || requested_long_ago;
        self.complete = have.is_full();
        self.pieces = have.count();
        // A reply without changes was not delayed, so the provider does not support that. A provider that always
        // reports changes is not requested more often than the minimum interval either.
        self.next_have = Some(match has_changed {
            true => self.have_requested + MIN_HAVE_INTERVAL,
            false => Instant::now() + HAVE_INTERVAL,
        });
    }

    /// Records that the provider already sent a requested piece to another peer.
    pub(super) fn count_already_sent(&mut self) {
        self.already_sent += 1;
        if self.already_sent > MAX_ALREADY_SENT {
            self.paused_until = Some(Instant::now() + ALREADY_SENT_PAUSE);
        }
    }
}

#[derive(Debug)]
pub(super) struct ProviderEntry {
    pub(super) provider: Provider,
    pub(super) state: ConnectionState,
    /// Number of failures since the last verified piece.
    pub(super) failures: u32,
    /// Whether the provider sent a verified piece.
    proven: bool,
    backoff: Backoff,
    /// Set while the last reply was `busy`.
    busy: Option<Busy>,
}

#[derive(Debug)]
struct Busy {
    since: Instant,
    backoff: Backoff,
}

impl ProviderEntry {
    pub(super) const fn active(&self) -> Option<&ActiveProvider> {
        match &self.state {
            ConnectionState::Active(active) => Some(active),
            _ => None,
        }
    }

    pub(super) const fn active_mut(&mut self) -> Option<&mut ActiveProvider> {
        match &mut self.state {
            ConnectionState::Active(active) => Some(active),
            _ => None,
        }
    }

    pub(super) const fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Whether the provider sent a verified piece.
    pub(super) const fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether the provider became busy within this time.
    pub(super) fn became_busy_within(&self, time: Duration, now: Instant) -> bool {
        self.busy.as_ref().is_some_and(|busy| now < busy.since + time)
    }

    fn busy_backoff(&mut self, now: Instant, retry_after: Duration) -> Duration {
        let new = || Busy { since: now, backoff: Backoff::new(MIN_BUSY_BACKOFF, MAX_BUSY_BACKOFF) };
        self.busy.get_or_insert_with(new).backoff.next_delay().max(retry_after)
    }

    pub(super) fn piece_received(&mut self) {
        self.busy = None;
        if let Some(active) = self.active_mut() {
            active.already_sent = 0;
            active.delivered = Instant::now();
        }
    }

    pub(super) const fn piece_verified(&mut self) {
        self.failures = 0;
        self.proven = true;
        self.backoff.reset();
    }
}

/// The effect of an error on a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorEffect {
    Ignored,
    /// The provider stays connected and pauses.
    Paused,
    /// The provider is disconnected.
    Disconnected,
}

#[derive(Debug, Default)]
pub(super) struct ProviderTable {
    entries: HashMap<ProviderKey, ProviderEntry>,
    keys: HashMap<PeerId, ProviderKey>,
    next_key: u32,
}

impl ProviderTable {
    pub(super) fn get(&self, key: ProviderKey) -> Option<&ProviderEntry> {
        self.entries.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: ProviderKey) -> Option<&mut ProviderEntry> {
        self.entries.get_mut(&key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProviderKey, &ProviderEntry)> {
        self.entries.iter().map(|(&key, entry)| (key, entry))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &ProviderEntry> {
        self.entries.values()
    }

    pub(super) fn active(&self, key: ProviderKey) -> Option<&ActiveProvider> {
        self.get(key)?.active()
    }

    pub(super) fn active_mut(&mut self, key: ProviderKey) -> Option<&mut ActiveProvider> {
        self.get_mut(key)?.active_mut()
    }

    pub(super) fn all_active(&self) -> impl Iterator<Item = (ProviderKey, &ActiveProvider)> {
        self.entries.iter().filter_map(|(&key, entry)| Some((key, entry.active()?)))
    }

    pub(super) fn all_active_mut(&mut self) -> impl Iterator<Item = (ProviderKey, &mut ActiveProvider)> {
        self.entries.iter_mut().filter_map(|(&key, entry)| Some((key, entry.active_mut()?)))
    }

    /// Number of providers that are active or being connected.
    pub(super) fn engaged_count(&self) -> usize {
        let engaged = |entry: &&ProviderEntry| {
            matches!(entry.state, ConnectionState::Active(_) | ConnectionState::Connecting)
        };
        self.entries.values().filter(engaged).count()
    }

    /// Returns the providers that may be connected now, in the order in which to connect them.
    pub(super) fn candidates(&self, now: Instant) -> Vec<ProviderKey> {
        let idle = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.state, ConnectionState::Idle { from } if now >= from));
        let candidates = idle.map(|(&key, entry)| Candidate {
            key,
            unproven: !entry.proven,
            failures: entry.failures,
            partial: !entry.provider.complete,
        });
        connection_order(candidates.collect())
    }

    /// Adds a provider, or updates its endpoints. Ignores it if the table is full of providers without failures.
    pub(super) fn update(&mut self, provider: Provider, now: Instant) {
        let is_new = !self.keys.contains_key(&provider.peer);
        if is_new && self.entries.len() >= MAX_PROVIDERS && !self.evict() {
            return;
        }
        let key = *self.keys.entry(provider.peer).or_insert(ProviderKey(self.next_key));
        self.next_key += u32::from(is_new);
        let entry = self.entries.entry(key).or_insert_with(|| ProviderEntry {
            provider: provider.clone(),
            state: ConnectionState::Idle { from: now },
            failures: 0,
            proven: false,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
            busy: None,
        });
        // The backoff applies to the old endpoints.
        if entry.provider.endpoints != provider.endpoints
            && let ConnectionState::Idle { from } = &mut entry.state
        {
            *from = now;
        }
        entry.provider = provider;
    }

    /// Removes the provider with the most failures, or else a banned one, to admit new providers. Returns `false` if there
    /// is no such provider.
    fn evict(&mut self) -> bool {
        let failed = self.entries.iter().filter_map(|(&key, entry)| match entry.state {
            ConnectionState::Idle { .. } if entry.failures > 0 => Some((entry.failures, key)),
            ConnectionState::Banned => Some((0, key)),
            _ => None,
        });
        let Some((_, key)) = failed.max() else { return false };
        self.entries.remove(&key).is_some_and(|entry| self.keys.remove(&entry.provider.peer).is_some())
    }

    /// Disconnects a provider until this time and ranks it behind other providers.
    pub(super) fn release(&mut self, key: ProviderKey, until: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = ConnectionState::Idle { from: until };
            entry.failures += 1;
        }
    }

    pub(super) fn release_all(&mut self) {
        for entry in self.entries.values_mut() {
            if entry.active().is_some() {
                entry.state = ConnectionState::Idle { from: Instant::now() };
            }
        }
    }

    /// Applies the failure of a request to the state of the provider.
    pub(super) fn apply_error(
        &mut self,
        key: ProviderKey,
        error: &ProviderError,
        now: Instant,
    ) -> ErrorEffect {
        let Some(entry) = self.entries.get_mut(&key) else { return ErrorEffect::Ignored };
        if matches!(entry.state, ConnectionState::Banned) {
            return ErrorEffect::Ignored;
        }
        entry.state = match error {
            ProviderError::AlreadySent(_) => return ErrorEffect::Ignored,
            ProviderError::InvalidData(_) => ConnectionState::Banned,
            ProviderError::Busy { retry_after } => {
                if entry.active().is_some_and(|active| !active.is_ready(now)) {
                    // Requests that were sent together are refused together and count as one refusal.
                    return ErrorEffect::Paused;
                }
                let until = now + entry.busy_backoff(now, *retry_after);
                if let Some(active) = entry.active_mut() {
                    active.paused_until = Some(until);
                    return ErrorEffect::Paused;
                }
                entry.failures += 1;
                ConnectionState::Idle { from: until }
            }
            // A peer that was just announced may soon have its first piece.
            ProviderError::NotFound => ConnectionState::Idle { from: now + HAVE_INTERVAL },
            ProviderError::Unreachable(_) | ProviderError::Refused(_) => {
                entry.failures += 1;
                ConnectionState::Idle { from: now + entry.backoff.next_delay() }
            }
        };
        ErrorEffect::Disconnected
    }
}
