//! Which piece to ask of which provider: pure decisions, no socket, no clock, no random source of its own.
//!
//! Rarest first with random ties (Legout, Urvoy-Keller, Michiardi: "Rarest First and Choke Algorithms Are
//! Enough", IMC 2006), so that the downloaders of one source soon have different pieces to trade. How many requests
//! run ahead is up to the [`Window`] of each provider.
//!
//! Providers that have only a part are *traders*: they download too. While there are any, a source, which has the
//! whole file, is asked for what no trader has, and *sparingly*: it may answer that it gave the piece to somebody else
//! already, and which ones it gave, and then the piece is expected of the traders. So a source sends each piece once
//! and not once per downloader. Nobody starves of it: when no trader delivers anything for a while, or a source is
//! much faster than the traders are, it is asked for anything.
//!
//! Of the traders those that are much nearer than others, by the round trip, are asked for what they have; those that are far
//! away only for what no near one has, a few pieces at a time, for each of the near ones does so. So a piece crosses a long
//! way a few times and goes round where it is (Bindal and others, "Improving Traffic Locality in BitTorrent via Biased Neighbor
//! Selection", ICDCS 2006). Rarest first holds on both sides of that. Whether the near ones suffice is tried: everybody is
//! asked for a while, then the near ones, and when less comes of it than before, everybody again.
//!
//! When every missing piece is on its way, an idle provider is asked for the one that has waited longest, if it
//! has waited for longer than is usual there; whoever answers first wins and the other request is cancelled.
//!
//! A piece is in one of three states: *missing* (in `Rarity`), *on its way* (in `in_flight`), or *there* (neither).
//! `next` moves it from the first to the second, `arrived` to the third, `failed`, `elsewhere` and `remove_provider`
//! back to the first. Times are counted from any fixed moment.

mod bits;
mod rarity;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use self::bits::Bits;
use self::rarity::Rarity;
use super::pace::Pace;
use super::window::{Window, WindowSettings};
use crate::machine::HashMap;
use crate::model::bitmap::Bitmap;
use crate::model::layout::{PieceIndex, PieceLayout};

/// Names a provider within one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderKey(pub u32);

/// How many requests for the same piece there may be at once, when nothing else is left to ask for; those that are
/// overdue do not count.
const MAX_DUPLICATES: usize = 2;
/// How long no trader may have delivered anything before a source is asked for what it gave to others: this many
/// times what a piece takes from a trader, within these bounds.
const STARVING: u32 = 4;
const SHORTEST_PATIENCE: Duration = Duration::from_millis(300);
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);
/// A source that is this many times as fast as the traders are on average is asked for what they have.
const MUCH_FASTER: f64 = 4.0;
/// How long a provider is watched before its speed is believed.
const WATCHED: Duration = Duration::from_millis(500);
/// A piece on its way is asked of a second provider that would have sent it in this part of the time that is left.
const SLOW: u32 = 3;
/// What is expected of a provider that has not delivered anything yet.
const UNKNOWN: Duration = Duration::from_millis(500);
/// Who is further away than this many times the nearest trader and a little more is far away.
const FAR: u32 = 4;
const FAR_BEGINS: Duration = Duration::from_millis(5);
/// How long all traders are asked before it is tried with the near ones.
const TRIED: Duration = Duration::from_millis(500);
/// They suffice when after a while as large a part comes of what came from all.
const SETTLED: Duration = Duration::from_secs(2);
const SUFFICES: f64 = 0.8;
/// When they do not, all are asked for so long at first, and twice as long each time.
const APART: Duration = Duration::from_secs(8);
/// After so long it is tried again, whether they suffice or not.
const TRY_AGAIN: Duration = Duration::from_secs(64);
/// How many pieces are asked of the far ones at once while the near ones suffice.
const FAR_AT_ONCE: usize = 2;
/// How many times the product of bandwidth and delay is asked for ahead.
const AHEAD: f64 = 4.0;

#[derive(Debug)]
struct ProviderState {
    have: Bits,
    /// Whether it has the whole file: then its pieces are not counted as held.
    source: bool,
    /// What it said that it gave to others.
    given: Option<Bits>,
    in_flight: Vec<PieceIndex>,
    window: Window,
    pace: Pace,
    /// The least that a piece took of late, from the question to its arrival.
    quickest: Option<Duration>,
    /// What a question took that is answered with little.
    round_trip: Option<Duration>,
    far: bool,
}

/// Of whom pieces are asked that near traders have.
#[derive(Debug, Clone, Copy)]
enum Reach {
    /// Of all traders, at least until then.
    Wide { until: Duration },
    /// Of the near ones, since then, when so many pieces a second came from all.
    Near { since: Duration, all: f64 },
}

#[derive(Debug)]
struct Asked {
    provider: ProviderKey,
    at: Duration,
    /// When it is likely to be there.
    expected: Duration,
    sparing: bool,
    /// Owed for too long to count on.
    overdue: bool,
}

/// What to ask of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The piece.
    pub piece: PieceIndex,
    /// Only if it was not given to somebody else, who has it soon.
    pub sparing: bool,
}

/// What follows from the arrival of a verified piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Whether the piece was still wanted.
    pub wanted: bool,
    /// Other providers that were asked for the same piece and need not send it any more.
    pub cancel: Vec<ProviderKey>,
}

/// The state of one download: which pieces are missing, who has them, and what is on its way.
#[derive(Debug)]
pub struct Schedule {
    layout: PieceLayout,
    settings: WindowSettings,
    rarity: Rarity,
    /// What has not arrived.
    wanted: Bits,
    wanted_count: u32,
    in_flight: HashMap<PieceIndex, Vec<Asked>>,
    providers: HashMap<ProviderKey, ProviderState>,
    traders: usize,
    /// When a trader last delivered a piece, or the first of them came.
    traded: Duration,
    /// Pieces that sources have sent a second time since then.
    sent_again: usize,
    /// What a piece takes from a trader, from the question to its arrival, of late.
    trade_takes: Duration,
    /// Pieces that near traders have, and whether that changed since it was put together.
    near: Bits,
    near_changed: bool,
    /// None where no trader is far away.
    reach: Option<Reach>,
    /// For how long all are asked when the near ones do not suffice the next time.
    apart: Duration,
    rng: SmallRng,
}

impl Schedule {
    /// A schedule for the pieces that are not in `have`. The seed decides every random choice.
    pub fn new(layout: PieceLayout, have: &Bitmap, settings: WindowSettings, seed: u64) -> Self {
        let mut schedule = Self {
            layout,
            settings,
            rarity: Rarity::new(layout.count()),
            wanted: Bits::empty(layout.count()),
            wanted_count: 0,
            in_flight: HashMap::default(),
            providers: HashMap::default(),
            traders: 0,
            traded: Duration::ZERO,
            sent_again: 0,
            trade_takes: Duration::ZERO,
            near: Bits::empty(layout.count()),
            near_changed: false,
            reach: None,
            apart: APART,
            rng: SmallRng::seed_from_u64(seed),
        };
        for piece in layout.pieces().filter(|&piece| !have.contains(piece)) {
            schedule.rarity.put(piece.get());
            schedule.wanted.insert(piece.get());
            schedule.wanted_count += 1;
        }
        schedule
    }

    /// Whether every piece has arrived.
    pub fn is_complete(&self) -> bool {
        self.wanted_count == 0
    }

    /// How many providers there are at the moment.
    pub fn provider_count(&self) -> usize {
        self.providers.len()
    }

    /// How many providers have only a part.
    pub fn trader_count(&self) -> usize {
        self.traders
    }

    /// How many requests are on their way to a provider.
    pub fn in_flight(&self, provider: ProviderKey) -> usize {
        self.providers.get(&provider).map_or(0, |state| state.in_flight.len())
    }

    /// Whether the provider has a piece that has not arrived yet.
    pub fn is_useful(&self, provider: ProviderKey) -> bool {
        self.providers.get(&provider).is_some_and(|state| state.have.meets(&self.wanted))
    }

    /// Whether somebody else has a piece that this provider owes; those in `except` do not count.
    pub fn others_have(&self, provider: ProviderKey, except: &[ProviderKey]) -> bool {
        let Some(state) = self.providers.get(&provider) else { return false };
        let mut others = self.providers.iter().filter(|(key, _)| **key != provider && !except.contains(*key));
        others.any(|(_, other)| state.in_flight.iter().any(|piece| other.have.contains(piece.get())))
    }

    /// A provider comes in with these pieces, or one that is there has others now.
    pub fn set_provider(&mut self, provider: ProviderKey, have: &Bitmap, now: Duration) {
        let source = have.is_full();
        let have = Bits::from_bitmap(have);
        let state = self.providers.entry(provider).or_insert_with(|| ProviderState {
            have: Bits::empty(self.layout.count()),
            // Nothing of it is counted yet, as with one that has the whole.
            source: true,
            given: None,
            in_flight: Vec::new(),
            window: Window::new(self.settings, self.layout),
            pace: Pace::new(now),
            quickest: None,
            round_trip: None,
            far: false,
        });
        self.near_changed = true;
        let was_source = std::mem::replace(&mut state.source, source);
        let before = std::mem::replace(&mut state.have, have);
        match (was_source, source) {
            (true, true) => {}
            (true, false) => {
                state.have.iter().for_each(|piece| self.rarity.add_holder(piece));
                if self.traders == 0 {
                    self.traded = now;
                }
                self.traders += 1;
            }
            (false, true) => {
                before.iter().for_each(|piece| self.rarity.remove_holder(piece));
                self.traders -= 1;
            }
            (false, false) => {
                for piece in before.difference(&state.have) {
                    match state.have.contains(piece) {
                        true => self.rarity.add_holder(piece),
                        false => self.rarity.remove_holder(piece),
                    }
                }
            }
        }
    }

    /// A question that is answered with little took this long at the provider.
    pub fn set_round_trip(&mut self, provider: ProviderKey, took: Duration) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.round_trip = Some(state.round_trip.map_or(took, |before| before.min(took)));
        }
    }

    /// A provider goes; what it was asked for is missing again, unless another one was asked too.
    pub fn remove_provider(&mut self, provider: ProviderKey) {
        let Some(state) = self.providers.remove(&provider) else { return };
        self.near_changed = true;
        if !state.source {
            state.have.iter().for_each(|piece| self.rarity.remove_holder(piece));
            self.traders -= 1;
        }
        for piece in state.in_flight {
            self.withdraw_request(provider, piece);
        }
    }

    /// The providers that may be asked for more, those first that should be: traders before sources, and from whom a
    /// piece is likely to come first, by what it owes, what it delivers and how far away it is.
    pub fn by_turn(&mut self, now: Duration) -> Vec<ProviderKey> {
        self.look_around(now);
        let rng = &mut self.rng;
        let trading = self.traders > 0;
        let open =
            self.providers.iter().filter(|(_, state)| state.in_flight.len() < state.limit(trading, now));
        let mut order: Vec<_> =
            open.map(|(&key, state)| (state.source, state.expected(now), rng.random::<u32>(), key)).collect();
        order.sort_unstable();
        order.into_iter().map(|(.., key)| key).collect()
    }

    /// Of some providers, by whom a piece is likely to come first: the place in the list.
    pub fn soonest(&self, of: &[ProviderKey], now: Duration) -> Option<usize> {
        let expected = |key| self.providers.get(key).map(|state| (state.source, state.expected(now)));
        (0..of.len()).min_by_key(|&at| expected(&of[at]))
    }

    /// Sees which traders are far away, what the others have, and whether that is enough.
    fn look_around(&mut self, now: Duration) {
        let traders = self.providers.values().filter(|state| !state.source);
        let nearest = traders.filter_map(ProviderState::distance).min();
        let begins = nearest.map_or(Duration::MAX, |nearest| nearest * FAR + FAR_BEGINS);
        let (mut near, mut all, mut any_far) = (0.0, 0.0, false);
        for state in self.providers.values_mut().filter(|state| !state.source) {
            let is_far = state.distance().is_some_and(|distance| distance > begins);
            self.near_changed |= std::mem::replace(&mut state.far, is_far) != is_far;
            let pace = state.pace.per_second(now);
            all += pace;
            near += if is_far { 0.0 } else { pace };
            any_far |= is_far;
        }
        self.reach = any_far.then(|| match self.reach {
            None => Reach::Wide { until: now + TRIED },
            Some(Reach::Wide { until }) if now >= until => Reach::Near { since: now, all },
            Some(Reach::Near { since, all }) if now >= since + SETTLED && near < all * SUFFICES => {
                let apart = self.apart;
                self.apart = (apart * 2).min(TRY_AGAIN);
                Reach::Wide { until: now + apart }
            }
            Some(Reach::Near { since, .. }) if now >= since + TRY_AGAIN => {
                self.apart = APART;
                Reach::Wide { until: now + TRIED }
            }
            Some(reach) => reach,
        });
        if self.near_suffice() && std::mem::take(&mut self.near_changed) {
            self.near = Bits::empty(self.layout.count());
            let near = self.providers.values().filter(|state| !state.source && !state.far);
            near.for_each(|state| self.near.join(&state.have));
        }
    }

    fn near_suffice(&self) -> bool {
        matches!(self.reach, Some(Reach::Near { .. }))
    }

    /// The next piece to ask of this provider; `None` when its window is full or it has nothing that is to be asked
    /// of it now.
    pub fn next(&mut self, provider: ProviderKey, now: Duration) -> Option<Question> {
        let state = self.providers.get(&provider)?;
        if state.in_flight.len() >= state.limit(self.traders > 0, now) {
            return None;
        }
        let (piece, sparing) = match self.choose(provider, now) {
            Some(choice) => choice,
            None => (self.late(provider, now)?, false),
        };
        let piece = self.layout.piece(piece)?;
        self.rarity.take(piece.get());
        let state = self.providers.get_mut(&provider)?;
        let asked = Asked { provider, at: now, expected: now + state.expected(now), sparing, overdue: false };
        state.in_flight.push(piece);
        self.in_flight.entry(piece).or_default().push(asked);
        Some(Question { piece, sparing })
    }

    /// A missing piece to ask of this provider, and whether sparingly.
    fn choose(&mut self, provider: ProviderKey, now: Duration) -> Option<(u32, bool)> {
        if self.rarity.missing_count() == 0 {
            return None;
        }
        let state = self.providers.get(&provider)?;
        let near_only = state.far && self.near_suffice();
        let rng = &mut self.rng;
        if !state.source || self.traders == 0 {
            let have = (!state.source).then_some(&state.have);
            let except = near_only.then_some(&self.near);
            let owed = |state: &ProviderState| if state.far { state.in_flight.len() } else { 0 };
            if except.is_some() && self.providers.values().map(owed).sum::<usize>() >= FAR_AT_ONCE {
                return None;
            }
            return Some((self.rarity.rarest(have, except, || rng.random())?, false));
        }
        if let Some(piece) = self.rarity.unheld(state.given.as_ref(), rng.random()) {
            return Some((piece, true));
        }
        let patience = (self.trade_takes * STARVING).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE);
        let in_flight = self.in_flight(provider);
        // One at a time at first: what it sends again it cannot send to somebody else for the first time.
        let starving = in_flight <= self.sent_again && now >= self.traded + patience;
        if starving || self.is_much_faster(provider, now) {
            let rng = &mut self.rng;
            if in_flight == 0
                && starving
                && let Some(state) = self.providers.get_mut(&provider)
            {
                // It may have begun to give everything again.
                state.given = None;
            }
            return Some((self.rarity.rarest(None, None, || rng.random())?, false));
        }
        None
    }

    /// Whether a source delivers far more than a trader does on average that has something to deliver, or could deliver
    /// far more than all of them do: it is not asked for much while they have what is missing.
    fn is_much_faster(&self, source: ProviderKey, now: Duration) -> bool {
        let Some(state) = self.providers.get(&source) else { return false };
        let traders = self.providers.values().filter(|state| !state.source);
        let useful =
            traders.filter(|state| state.pace.watched(now) >= WATCHED && state.have.meets(&self.wanted));
        let paces = useful.map(|state| state.pace.per_second(now));
        let (count, sum) = paces.fold((0.0, 0.0), |(count, sum), pace| (count + 1.0, sum + pace));
        let one_by_one = state.quickest.map_or(0.0, |quickest| 1.0 / quickest.as_secs_f64().max(1e-6));
        count > 0.0
            && (state.pace.per_second(now) > MUCH_FASTER * sum / count || one_by_one > MUCH_FASTER * sum)
    }

    /// A piece has come from this provider and is verified.
    pub fn arrived(&mut self, provider: ProviderKey, piece: PieceIndex, now: Duration) -> Arrival {
        let asked = self.in_flight.remove(&piece).unwrap_or_default();
        if let Some(state) = self.providers.get_mut(&provider) {
            state.in_flight.retain(|&other| other != piece);
            state.pace.arrived(now);
            let request = asked.iter().find(|request| request.provider == provider);
            let takes = request.map(|request| now.saturating_sub(request.at));
            state.window.arrived(takes, now);
            if let Some(takes) = takes {
                // A little more each time, so that it follows when the way becomes longer.
                state.quickest = Some(state.quickest.map_or(takes, |before| takes.min(before + before / 64)));
            }
            if state.source {
                self.sent_again += usize::from(request.is_some_and(|request| !request.sparing));
            } else {
                self.traded = now;
                self.sent_again = 0;
                self.trade_takes = takes.map_or(self.trade_takes, |takes| (self.trade_takes * 7 + takes) / 8);
            }
        }
        self.rarity.take(piece.get());
        let wanted = self.wanted.remove(piece.get());
        self.wanted_count -= u32::from(wanted);
        let others = asked.into_iter().map(|request| request.provider);
        let cancel: Vec<_> = others.filter(|&other| other != provider).collect();
        for other in &cancel {
            if let Some(state) = self.providers.get_mut(other) {
                state.in_flight.retain(|&asked| asked != piece);
            }
        }
        Arrival { wanted, cancel }
    }

    /// A request gave no piece. It is missing again, unless another provider was asked too.
    pub fn failed(&mut self, provider: ProviderKey, piece: PieceIndex) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.in_flight.retain(|&other| other != piece);
        }
        self.withdraw_request(provider, piece);
    }

    /// The provider was asked sparingly and gave the piece to somebody else, as it did with all of `given`.
    pub fn elsewhere(&mut self, provider: ProviderKey, piece: PieceIndex, given: &Bitmap) {
        self.failed(provider, piece);
        if let Some(state) = self.providers.get_mut(&provider) {
            // What was once said stays, so that each refusal leaves one question less.
            let before = state.given.get_or_insert_with(|| Bits::empty(self.layout.count()));
            before.join(&Bits::from_bitmap(given));
            before.insert(piece.get());
        }
    }

    /// A provider has no free slot: ask it for half as much.
    pub fn busy(&mut self, provider: ProviderKey) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.window.busy();
        }
    }

    /// The provider has owed the piece for long: at the end another one may be asked in its stead, however many were
    /// asked already. A few that promise everything and send nothing cannot keep a piece from coming.
    pub fn overdue(&mut self, provider: ProviderKey, piece: PieceIndex) {
        let requests = self.in_flight.get_mut(&piece).into_iter().flatten();
        for request in requests.filter(|request| request.provider == provider) {
            request.overdue = true;
        }
    }

    fn withdraw_request(&mut self, provider: ProviderKey, piece: PieceIndex) {
        let Some(requests) = self.in_flight.get_mut(&piece) else { return };
        requests.retain(|request| request.provider != provider);
        if requests.is_empty() {
            self.in_flight.remove(&piece);
            self.rarity.put(piece.get());
        }
    }

    /// A piece on its way that the provider has and was not asked for, and would send far sooner than whoever owes it:
    /// the one that has waited longest since it was last asked for. At the end; before it only of a trader that has nothing
    /// else to send, so that no trader is idle while others have a queue.
    fn late(&self, provider: ProviderKey, now: Duration) -> Option<u32> {
        let state = self.providers.get(&provider)?;
        let leaves_it = state.source || state.far && self.near_suffice() || !state.in_flight.is_empty();
        if self.rarity.missing_count() > 0 && leaves_it {
            return None;
        }
        let takes = state.expected(now);
        let waits = self.in_flight.iter().filter_map(|(piece, requests)| {
            let overdue = requests.iter().filter(|request| request.overdue).count();
            let last = requests.last()?;
            // What takes longer than was to be expected takes about as long again.
            let left = last.expected.saturating_sub(now).max(now.saturating_sub(last.at));
            let slow = overdue == requests.len() || left > takes * SLOW;
            let free = requests.len() < MAX_DUPLICATES + overdue
                && requests.iter().all(|request| request.provider != provider);
            (slow && free && state.have.contains(piece.get())).then_some((last.at, *piece))
        });
        waits.min().map(|(_, piece)| piece.get())
    }
}

impl ProviderState {
    /// How long one more piece is likely to take: what is owed already comes first.
    fn expected(&self, now: Duration) -> Duration {
        let rate = self.pace.per_second(now);
        let ahead = self.in_flight.len() as f64;
        match self.quickest {
            Some(quickest) => quickest + Duration::from_secs_f64((ahead / rate.max(0.01)).min(60.0)),
            None => self.alone() * (self.in_flight.len() as u32 + 1),
        }
    }

    /// How long a piece takes when nothing else is owed.
    fn alone(&self) -> Duration {
        self.quickest.unwrap_or(UNKNOWN + self.round_trip.unwrap_or_default())
    }

    /// How long a question and its answer are on their way, at most.
    fn distance(&self) -> Option<Duration> {
        self.round_trip
            .map(|round_trip| self.quickest.map_or(round_trip, |quickest| quickest.min(round_trip)))
    }

    /// How many requests may be on their way. Where there are several who could send a piece, one that waits in a long
    /// queue is lost to those who could send it now. So no more are asked for than it takes to keep the
    /// provider at work: what it delivers in the time that a piece takes when nothing is ahead of it (the product of
    /// bandwidth and delay), a few times over.
    fn limit(&self, trading: bool, now: Duration) -> usize {
        let most = self.window.limit();
        match (trading, self.quickest) {
            (false, _) => most,
            (true, None) => most.min(1),
            (true, Some(quickest)) => {
                let product = self.pace.per_second(now) * quickest.as_secs_f64();
                most.min(1 + (AHEAD * product).round() as usize)
            }
        }
    }
}
