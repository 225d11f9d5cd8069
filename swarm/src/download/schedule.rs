//! Decides which piece to request from which provider. Pure: no socket, no clock, no random source of its own.
//!
//! The strategy is rarest first with random ties (Legout, Urvoy-Keller, Michiardi: "Rarest First and Choke Algorithms Are
//! Enough", IMC 2006), so that peers that download from the same provider soon have different pieces to exchange. The
//! number of requests in flight follows from the [`Window`](super::window::Window) of each provider.
//!
//! *Partial* providers are downloading too. While there are any, a *complete* provider is only asked for pieces that no
//! partial provider has, and with *super-seeding*: it may reply that it already sent the piece to another peer, together
//! with a bitmap of all pieces that it sent. Those pieces are then expected from partial providers. So a complete provider
//! sends each piece once and not once per downloader. If partial providers deliver nothing for a while, or a complete
//! provider is much faster than they are, it is asked for any piece.
//!
//! Partial providers with a much shorter round trip are preferred (`locality`). Distant ones are only asked for pieces
//! that no nearby one has, a few at a time, since each nearby peer does the same. So a piece crosses a long path a few
//! times and is then exchanged locally (Bindal and others: "Improving Traffic Locality in BitTorrent via Biased Neighbor
//! Selection", ICDCS 2006).
//!
//! Pieces that a reader waits for are requested before all others, in the order of the file.
//!
//! When every missing piece is requested, an idle provider is asked for the piece that has waited longest, if that is
//! longer than usual for the provider. The first reply wins and the other request is cancelled.
//!
//! A piece is *missing* (in `rarity`), *requested* (in `requests`) or *stored* (neither). `next` moves a piece from the
//! first state to the second, `arrived` to the third, and `failed`, `already_sent` and `remove_provider` back to the
//! first. Times are relative to any fixed origin.

mod bits;
mod locality;
mod provider;
mod rarity;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::bits::Bits;
use self::locality::Locality;
pub use self::provider::{Candidate, ProviderKey, connection_order};
use self::provider::{Others, ProviderState};
use self::rarity::Rarity;
use enjambre_core::runtime::HashMap;
use enjambre_core::{Bitmap, PieceIndex, PieceLayout};

/// Maximum number of parallel requests for the same piece, not counting overdue ones.
const MAX_DUPLICATES: usize = 2;
/// How long partial providers may deliver nothing before a complete provider is asked for pieces that it already sent: a
/// multiple of the latency of a piece from a partial provider, within these bounds.
const STARVATION_FACTOR: u32 = 4;
const MIN_STARVATION: Duration = Duration::from_millis(300);
const MAX_STARVATION: Duration = Duration::from_secs(10);
/// A complete provider that is faster than the average partial provider by this factor is asked for any piece.
const MUCH_FASTER_FACTOR: f64 = 4.0;
/// How long a provider is observed before its rate is used.
const MIN_OBSERVATION: Duration = Duration::from_millis(500);
/// A requested piece is also requested from a second provider that is faster by this factor.
const SLOW_FACTOR: u32 = 3;
/// Maximum number of requests in flight to distant providers while the nearby ones suffice.
const MAX_DISTANT_REQUESTS: usize = 2;

#[derive(Debug)]
struct InFlight {
    provider: ProviderKey,
    at: Duration,
    expected: Duration,
    super_seed: bool,
    /// Whether the reply is too late to count on.
    overdue: bool,
}

/// A piece to request from a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceRequest {
    /// The piece.
    pub piece: PieceIndex,
    /// Whether the provider may refuse because it already sent the piece to another peer.
    pub super_seed: bool,
}

/// The effect of a verified piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Whether the piece was still missing.
    pub is_new: bool,
    /// Other providers with a pending request for the same piece.
    pub cancel: Vec<ProviderKey>,
}

/// The state of one download: the missing pieces, the pieces of each provider, and the requests in flight.
#[derive(Debug)]
pub struct Schedule {
    layout: PieceLayout,
    rarity: Rarity,
    outstanding: Bits,
    requests: HashMap<PieceIndex, Vec<InFlight>>,
    providers: HashMap<ProviderKey, ProviderState>,
    partial_count: usize,
    /// When a partial provider last delivered a piece, or the first of them was added.
    last_partial_delivery: Duration,
    /// Number of pieces that complete providers have sent again since then.
    resent: usize,
    /// Average latency of a piece from a partial provider.
    partial_latency: Duration,
    locality: Locality,
    /// The pieces that readers wait for.
    wanted: Vec<Range<u32>>,
    rng: SmallRng,
}

impl Schedule {
    /// Creates a schedule for the pieces that are not in `have`. The seed determines all random choices.
    pub fn new(layout: PieceLayout, have: &Bitmap, seed: u64) -> Self {
        let mut schedule = Self {
            layout,
            rarity: Rarity::new(layout.count()),
            outstanding: Bits::empty(layout.count()),
            requests: HashMap::default(),
            providers: HashMap::default(),
            partial_count: 0,
            last_partial_delivery: Duration::ZERO,
            resent: 0,
            partial_latency: Duration::ZERO,
            locality: Locality::new(layout.count()),
            wanted: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        };
        for piece in layout.pieces().filter(|&piece| !have.contains(piece)) {
            schedule.rarity.insert(piece.get());
            schedule.outstanding.insert(piece.get());
        }
        schedule
    }

    /// Sets the pieces to request first: those at these bytes of the file.
    pub fn set_wanted(&mut self, bytes: &[Range<u64>]) {
        let pieces = |bytes: &Range<u64>| {
            let first = self.layout.piece_at(bytes.start)?.get();
            let last = self.layout.piece_at(bytes.end.saturating_sub(1).min(self.layout.size() - 1))?.get();
            Some(first..last + 1)
        };
        self.wanted = bytes.iter().filter_map(pieces).collect();
    }

    /// Whether every piece has arrived.
    pub fn is_complete(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Returns the number of requests in flight to a provider.
    pub fn in_flight(&self, provider: ProviderKey) -> usize {
        self.providers.get(&provider).map_or(0, |state| state.in_flight.len())
    }

    /// Whether the provider has a piece that has not arrived yet.
    pub fn is_useful(&self, provider: ProviderKey) -> bool {
        self.providers.get(&provider).is_some_and(|state| state.have.intersects(&self.outstanding))
    }

    /// Whether a provider other than those in `except` has a piece that is requested from `provider`.
    pub fn others_have(&self, provider: ProviderKey, except: &[ProviderKey]) -> bool {
        let Some(state) = self.providers.get(&provider) else { return false };
        let mut others = self.providers.iter().filter(|(key, _)| **key != provider && !except.contains(*key));
        others.any(|(_, other)| state.in_flight.iter().any(|piece| other.have.contains(piece.get())))
    }

    /// Adds a provider with these pieces, or updates the pieces of a known provider.
    pub fn set_provider(&mut self, provider: ProviderKey, have: &Bitmap, now: Duration) {
        let complete = have.is_full();
        let have = Bits::from_bitmap(have);
        let state = self.providers.entry(provider).or_insert_with(|| ProviderState::new(self.layout, now));
        self.locality.providers_changed();
        let was_complete = std::mem::replace(&mut state.complete, complete);
        let before = std::mem::replace(&mut state.have, have);
        if self.partial_count == 0 && !complete {
            self.last_partial_delivery = now;
        }
        self.partial_count = self.partial_count + usize::from(was_complete) - usize::from(complete);
        // The pieces of complete providers are not counted.
        let none = Bits::empty(self.layout.count());
        let before = if was_complete { &none } else { &before };
        let after = if complete { &none } else { &state.have };
        for piece in before.symmetric_difference(after) {
            self.rarity.change_holders(piece, if after.contains(piece) { 1 } else { -1 });
        }
    }

    /// Records the time that a provider took for a short reply.
    pub fn set_round_trip(&mut self, provider: ProviderKey, took: Duration) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.round_trip = Some(state.round_trip.map_or(took, |before| before.min(took)));
        }
    }

    /// Removes a provider. Its requested pieces are missing again, unless they are requested from another provider too.
    pub fn remove_provider(&mut self, provider: ProviderKey) {
        let Some(state) = self.providers.remove(&provider) else { return };
        self.locality.providers_changed();
        if !state.complete {
            state.have.iter().for_each(|piece| self.rarity.change_holders(piece, -1));
            self.partial_count -= 1;
        }
        for piece in state.in_flight {
            self.withdraw_request(provider, piece);
        }
    }

    /// Returns the providers with free request slots by preference: partial before complete ones, then by the expected
    /// time of the next piece.
    pub fn ready_providers(&mut self, now: Duration) -> Vec<ProviderKey> {
        self.locality.update(&mut self.providers, now);
        let others = self.others();
        let rng = &mut self.rng;
        let ready = self.providers.iter().filter(|(_, state)| state.has_free_slot(others, now));
        let mut order: Vec<_> = ready
            .map(|(&key, state)| (state.complete, state.expected_time(now), rng.random::<u32>(), key))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., key)| key).collect()
    }

    fn others(&self) -> Others {
        let deliver = self.providers.values().any(|state| state.min_latency.is_some());
        Others { partial: self.partial_count > 0, deliver }
    }

    /// Returns the position of the provider that is expected to deliver a piece first.
    pub fn fastest(&self, providers: &[ProviderKey], now: Duration) -> Option<usize> {
        let expected = |key| self.providers.get(key).map(|state| (state.complete, state.expected_time(now)));
        (0..providers.len()).min_by_key(|&at| expected(&providers[at]))
    }

    /// Returns the next piece to request from this provider, or `None` if its window is full or no piece should be
    /// requested from it now.
    pub fn next(&mut self, provider: ProviderKey, now: Duration) -> Option<PieceRequest> {
        let state = self.providers.get(&provider)?;
        if !state.has_free_slot(self.others(), now) {
            return None;
        }
        let wanted = self.choose_wanted(provider, now).map(|piece| (piece, false));
        let (piece, super_seed) = match wanted.or_else(|| self.choose_missing(provider, now)) {
            Some(choice) => choice,
            None => (self.choose_late(provider, now)?, false),
        };
        let piece = self.layout.piece(piece)?;
        self.rarity.remove(piece.get());
        let state = self.providers.get_mut(&provider)?;
        let expected = now + state.expected_time(now);
        state.in_flight.push(piece);
        let request = InFlight { provider, at: now, expected, super_seed, overdue: false };
        self.requests.entry(piece).or_default().push(request);
        Some(PieceRequest { piece, super_seed })
    }

    /// Chooses a piece that a reader waits for: a missing one, or one that this provider would deliver much sooner.
    fn choose_wanted(&self, provider: ProviderKey, now: Duration) -> Option<u32> {
        let state = self.providers.get(&provider).filter(|_| !self.wanted.is_empty())?;
        let missing = |piece: &u32| self.rarity.contains(*piece) && state.have.contains(*piece);
        let first = self.wanted.iter().find_map(|pieces| pieces.clone().find(missing));
        let is_wanted = |piece: u32| self.wanted.iter().any(|pieces| pieces.contains(&piece));
        first.or_else(|| self.late_piece(provider, now, is_wanted))
    }

    /// Chooses a missing piece to request from this provider, and whether to request it with super-seeding.
    fn choose_missing(&mut self, provider: ProviderKey, now: Duration) -> Option<(u32, bool)> {
        if self.rarity.is_empty() {
            return None;
        }
        let state = self.providers.get(&provider)?;
        let nearby = self.locality.nearby_pieces().filter(|_| state.distant);
        let rng = &mut self.rng;
        if !state.complete || self.partial_count == 0 {
            let have = (!state.complete).then_some(&state.have);
            let distant_requests =
                |state: &ProviderState| if state.distant { state.in_flight.len() } else { 0 };
            if nearby.is_some()
                && self.providers.values().map(distant_requests).sum::<usize>() >= MAX_DISTANT_REQUESTS
            {
                return None;
            }
            return Some((self.rarity.rarest(have, nearby, || rng.random())?, false));
        }
        if let Some(piece) = self.rarity.unheld(state.already_sent.as_ref(), rng.random()) {
            return Some((piece, true));
        }
        let starvation = (self.partial_latency * STARVATION_FACTOR).clamp(MIN_STARVATION, MAX_STARVATION);
        let in_flight = self.in_flight(provider);
        // Starts with one request at a time: a piece that is sent again delays pieces that were never sent.
        let starving = in_flight <= self.resent && now >= self.last_partial_delivery + starvation;
        if starving || self.is_much_faster(provider, now) {
            let rng = &mut self.rng;
            if in_flight == 0
                && starving
                && let Some(state) = self.providers.get_mut(&provider)
            {
                // The provider may have started a new round of super-seeding.
                state.already_sent = None;
            }
            return Some((self.rarity.rarest(None, None, || rng.random())?, false));
        }
        None
    }

    /// Whether a complete provider delivers far more than the average partial provider with missing pieces, or could
    /// deliver far more than all of them together. Its measured rate is low while the partial providers have the missing
    /// pieces, so its best latency counts as well.
    fn is_much_faster(&self, provider: ProviderKey, now: Duration) -> bool {
        let Some(state) = self.providers.get(&provider) else { return false };
        let useful = self.providers.values().filter(|other| {
            !other.complete
                && other.rate.observed(now) >= MIN_OBSERVATION
                && other.have.intersects(&self.outstanding)
        });
        let rates = useful.map(|other| other.rate.per_second(now));
        let (count, sum) = rates.fold((0.0, 0.0), |(count, sum), rate| (count + 1.0, sum + rate));
        let one_by_one = state.min_latency.map_or(0.0, |latency| 1.0 / latency.as_secs_f64().max(1e-6));
        count > 0.0
            && (state.rate.per_second(now) > MUCH_FASTER_FACTOR * sum / count
                || one_by_one > MUCH_FASTER_FACTOR * sum)
    }

    /// Records a verified piece from this provider.
    pub fn arrived(&mut self, provider: ProviderKey, piece: PieceIndex, now: Duration) -> Arrival {
        let requests = self.requests.remove(&piece).unwrap_or_default();
        if let Some(state) = self.providers.get_mut(&provider) {
            let request = requests.iter().find(|request| request.provider == provider);
            let latency = request.map(|request| now.saturating_sub(request.at));
            state.piece_arrived(piece, latency, now);
            if state.complete {
                self.resent += usize::from(request.is_some_and(|request| !request.super_seed));
            } else {
                self.last_partial_delivery = now;
                self.resent = 0;
                if let Some(latency) = latency {
                    self.partial_latency = (self.partial_latency * 7 + latency) / 8;
                }
            }
        }
        self.rarity.remove(piece.get());
        let is_new = self.outstanding.remove(piece.get());
        let others = requests.into_iter().map(|request| request.provider);
        let cancel: Vec<_> = others.filter(|&other| other != provider).collect();
        for other in &cancel {
            if let Some(state) = self.providers.get_mut(other) {
                state.in_flight.retain(|&requested| requested != piece);
            }
        }
        Arrival { is_new, cancel }
    }

    /// Records a failed request. The piece is missing again, unless it is requested from another provider too.
    pub fn failed(&mut self, provider: ProviderKey, piece: PieceIndex) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.in_flight.retain(|&other| other != piece);
        }
        self.withdraw_request(provider, piece);
    }

    /// Records that the provider already sent the piece to another peer, as well as all pieces in `sent`.
    pub fn already_sent(&mut self, provider: ProviderKey, piece: PieceIndex, sent: &Bitmap) {
        self.failed(provider, piece);
        if let Some(state) = self.providers.get_mut(&provider) {
            // Accumulated, so that the number of refusals is bounded by the number of pieces.
            let before = state.already_sent.get_or_insert_with(|| Bits::empty(self.layout.count()));
            before.extend(&Bits::from_bitmap(sent));
            before.insert(piece.get());
        }
    }

    /// Halves the window of a provider without a free slot.
    pub fn busy(&mut self, provider: ProviderKey) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.window.busy();
        }
    }

    /// Marks a request as overdue. The piece may then be requested from further providers without limit, so that a few
    /// providers that announce all pieces and send none cannot withhold a piece.
    pub fn overdue(&mut self, provider: ProviderKey, piece: PieceIndex) {
        let requests = self.requests.get_mut(&piece).into_iter().flatten();
        for request in requests.filter(|request| request.provider == provider) {
            request.overdue = true;
        }
    }

    fn withdraw_request(&mut self, provider: ProviderKey, piece: PieceIndex) {
        let Some(requests) = self.requests.get_mut(&piece) else { return };
        requests.retain(|request| request.provider != provider);
        if requests.is_empty() {
            self.requests.remove(&piece);
            self.rarity.insert(piece.get());
        }
    }

    /// Chooses a late piece for this provider when no piece is missing; before that only for an idle partial provider, so
    /// that it is not idle while other providers have a queue.
    fn choose_late(&self, provider: ProviderKey, now: Duration) -> Option<u32> {
        let state = self.providers.get(&provider)?;
        let is_distant = state.distant && self.locality.nearby_pieces().is_some();
        if !self.rarity.is_empty() && (state.complete || is_distant || !state.in_flight.is_empty()) {
            return None;
        }
        self.late_piece(provider, now, |_| true)
    }

    /// Returns a piece that is requested elsewhere and that this provider would deliver much sooner: the one whose last
    /// request is oldest.
    fn late_piece(
        &self,
        provider: ProviderKey,
        now: Duration,
        is_eligible: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let state = self.providers.get(&provider)?;
        let latency = state.expected_time(now);
        let eligible = self.requests.iter().filter(|(piece, _)| is_eligible(piece.get()));
        let late = eligible.filter_map(|(piece, requests)| {
            let overdue = requests.iter().filter(|request| request.overdue).count();
            let last = requests.last()?;
            // A request that exceeds its expected time is assumed to take as long again.
            let remaining = last.expected.saturating_sub(now).max(now.saturating_sub(last.at));
            let is_slow = overdue == requests.len() || remaining > latency * SLOW_FACTOR;
            let is_free = requests.len() < MAX_DUPLICATES + overdue
                && requests.iter().all(|request| request.provider != provider);
            (is_slow && is_free && state.have.contains(piece.get())).then_some((last.at, *piece))
        });
        late.min().map(|(_, piece)| piece.get())
    }
}
