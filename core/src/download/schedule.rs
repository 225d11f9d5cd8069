//! Which piece to ask of which provider: pure decisions, no socket, no clock, no random source of its own.
//!
//! Rarest first with random ties (Legout, Urvoy-Keller, Michiardi: "Rarest First and Choke Algorithms Are
//! Enough", IMC 2006), so that the downloaders of one source soon have different pieces to trade. How many requests
//! run ahead is up to the [`Window`] of each provider. When every missing piece is on its way, an idle provider is asked for the one that has waited longest; whoever answers first wins and the other request
//! is cancelled.
//!
//! A piece is in one of three states: *missing* (in the bucket of its availability), *on its way* (in
//! `in_flight`), or *there* (neither). `next` moves it from the first to the second, `arrived` to the third,
//! `failed` and `remove_provider` back to the first.

use std::collections::HashMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::window::{Window, WindowSettings};
use crate::model::bitmap::Bitmap;
use crate::model::layout::{PieceIndex, PieceLayout};

/// Names a provider within one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderKey(pub u32);

/// How many requests for the same piece there may be at once, when nothing else is left to ask for; those that are
/// overdue do not count.
const MAX_DUPLICATES: usize = 2;

#[derive(Debug)]
struct ProviderState {
    have: Bitmap,
    in_flight: Vec<PieceIndex>,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
struct Missing {
    bucket: u32,
    position: u32,
}

#[derive(Debug)]
struct Request {
    providers: Vec<ProviderKey>,
    /// Those of them that have owed the piece for too long to count on.
    overdue: Vec<ProviderKey>,
    /// The order of asking, so that the request that has waited longest is found.
    turn: u64,
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
    /// How many providers have each piece.
    availability: Vec<u32>,
    /// Missing pieces by their availability.
    buckets: Vec<Vec<PieceIndex>>,
    /// Where a missing piece stands in the buckets.
    missing: Vec<Option<Missing>>,
    missing_count: u32,
    in_flight: HashMap<PieceIndex, Request>,
    providers: HashMap<ProviderKey, ProviderState>,
    turn: u64,
    rng: SmallRng,
}

impl Schedule {
    /// A schedule for the pieces that are not in `have`. The seed decides every random choice.
    pub fn new(layout: PieceLayout, have: &Bitmap, settings: WindowSettings, seed: u64) -> Self {
        let count = layout.count() as usize;
        let mut schedule = Self {
            layout,
            settings,
            availability: vec![0; count],
            buckets: vec![Vec::new()],
            missing: vec![None; count],
            missing_count: 0,
            in_flight: HashMap::new(),
            providers: HashMap::new(),
            turn: 0,
            rng: SmallRng::seed_from_u64(seed),
        };
        for piece in layout.pieces().filter(|&piece| !have.contains(piece)) {
            schedule.put_missing(piece);
        }
        schedule
    }

    /// Whether every piece has arrived.
    pub fn is_complete(&self) -> bool {
        self.missing_count == 0 && self.in_flight.is_empty()
    }

    /// How many providers there are at the moment.
    pub fn provider_count(&self) -> usize {
        self.providers.len()
    }

    /// How many requests are on their way to a provider.
    pub fn in_flight(&self, provider: ProviderKey) -> usize {
        self.providers.get(&provider).map_or(0, |state| state.in_flight.len())
    }

    /// Whether the provider has a piece that has not arrived yet.
    pub fn is_useful(&self, provider: ProviderKey) -> bool {
        self.providers.get(&provider).is_some_and(|state| {
            self.in_flight.keys().any(|&piece| state.have.contains(piece))
                || self.buckets.iter().flatten().any(|&piece| state.have.contains(piece))
        })
    }

    /// A provider comes in with these pieces, or one that is there has others now.
    pub fn set_provider(&mut self, provider: ProviderKey, have: Bitmap) {
        let window = Window::new(self.settings, self.layout);
        let previous = self.providers.get(&provider).map(|state| state.have.clone());
        for piece in self.layout.pieces() {
            let before = previous.as_ref().is_some_and(|bitmap| bitmap.contains(piece));
            match (before, have.contains(piece)) {
                (false, true) => self.change_availability(piece, 1),
                (true, false) => self.change_availability(piece, -1),
                _ => {}
            }
        }
        self.providers
            .entry(provider)
            .or_insert_with(|| ProviderState {
                have: Bitmap::empty(self.layout),
                in_flight: Vec::new(),
                window,
            })
            .have = have;
    }

    /// A provider goes; what it was asked for is missing again, unless another one was asked too.
    pub fn remove_provider(&mut self, provider: ProviderKey) {
        let Some(state) = self.providers.remove(&provider) else { return };
        for piece in self.layout.pieces().filter(|&piece| state.have.contains(piece)) {
            self.change_availability(piece, -1);
        }
        for piece in state.in_flight {
            self.withdraw_request(provider, piece);
        }
    }

    /// The next piece to ask of this provider; `None` when its window is full or it has nothing that is wanted.
    pub fn next(&mut self, provider: ProviderKey) -> Option<PieceIndex> {
        let state = self.providers.get(&provider)?;
        if state.in_flight.len() >= state.window.limit() {
            return None;
        }
        let piece = self.rarest_missing(provider).or_else(|| self.longest_waiting(provider))?;
        self.take_missing(piece);
        self.turn += 1;
        let turn = self.turn;
        let request = self.in_flight.entry(piece).or_insert_with(|| Request {
            providers: Vec::new(),
            overdue: Vec::new(),
            turn,
        });
        request.providers.push(provider);
        request.turn = turn;
        self.providers.get_mut(&provider)?.in_flight.push(piece);
        Some(piece)
    }

    /// A piece has come from this provider and is verified.
    pub fn arrived(&mut self, provider: ProviderKey, piece: PieceIndex) -> Arrival {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.in_flight.retain(|&other| other != piece);
            state.window.arrived();
        }
        let was_missing = self.take_missing(piece);
        let request = self.in_flight.remove(&piece);
        let wanted = was_missing || request.is_some();
        let mut cancel: Vec<_> = request.map(|request| request.providers).unwrap_or_default();
        cancel.retain(|&other| other != provider);
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

    /// A provider has no free slot: ask it for half as much.
    pub fn busy(&mut self, provider: ProviderKey) {
        if let Some(state) = self.providers.get_mut(&provider) {
            state.window.busy();
        }
    }

    /// The provider has owed the piece for long: at the end another one may be asked in its stead, however many were
    /// asked already. A few that promise everything and send nothing cannot keep a piece from coming.
    pub fn overdue(&mut self, provider: ProviderKey, piece: PieceIndex) {
        if let Some(request) = self.in_flight.get_mut(&piece)
            && request.providers.contains(&provider)
            && !request.overdue.contains(&provider)
        {
            request.overdue.push(provider);
        }
    }

    fn withdraw_request(&mut self, provider: ProviderKey, piece: PieceIndex) {
        let Some(request) = self.in_flight.get_mut(&piece) else { return };
        request.providers.retain(|&other| other != provider);
        request.overdue.retain(|&other| other != provider);
        if request.providers.is_empty() {
            self.in_flight.remove(&piece);
            self.put_missing(piece);
        }
    }

    /// A missing piece that the provider has, of those that the fewest providers have, chosen at random.
    fn rarest_missing(&mut self, provider: ProviderKey) -> Option<PieceIndex> {
        let have = &self.providers.get(&provider)?.have;
        for bucket in self.buckets.iter().filter(|bucket| !bucket.is_empty()) {
            // From a random place on, so that ties are broken at random.
            let start = self.rng.random_range(0..bucket.len());
            let (before, from) = bucket.split_at(start);
            if let Some(&piece) = from.iter().chain(before).find(|&&piece| have.contains(piece)) {
                return Some(piece);
            }
        }
        None
    }

    /// The piece on its way whose last request is the oldest, that the provider has and was not asked for.
    fn longest_waiting(&self, provider: ProviderKey) -> Option<PieceIndex> {
        if self.missing_count > 0 {
            return None;
        }
        let have = &self.providers.get(&provider)?.have;
        self.in_flight
            .iter()
            .filter(|(piece, request)| {
                have.contains(**piece)
                    && request.providers.len() < MAX_DUPLICATES + request.overdue.len()
                    && !request.providers.contains(&provider)
            })
            .min_by_key(|(_, request)| request.turn)
            .map(|(&piece, _)| piece)
    }

    fn change_availability(&mut self, piece: PieceIndex, by: i32) {
        let is_missing = self.take_missing(piece);
        let count = &mut self.availability[piece.as_usize()];
        *count = count.saturating_add_signed(by);
        if is_missing {
            self.put_missing(piece);
        }
    }

    fn put_missing(&mut self, piece: PieceIndex) {
        let bucket = self.availability[piece.as_usize()];
        if self.buckets.len() <= bucket as usize {
            self.buckets.resize_with(bucket as usize + 1, Vec::new);
        }
        let entries = &mut self.buckets[bucket as usize];
        self.missing[piece.as_usize()] = Some(Missing { bucket, position: entries.len() as u32 });
        entries.push(piece);
        self.missing_count += 1;
    }

    /// Takes the piece out of its bucket, if it is missing; the last of the bucket fills its place.
    fn take_missing(&mut self, piece: PieceIndex) -> bool {
        let Some(Missing { bucket, position }) = self.missing[piece.as_usize()].take() else { return false };
        let entries = &mut self.buckets[bucket as usize];
        entries.swap_remove(position as usize);
        if let Some(moved) = entries.get(position as usize) {
            self.missing[moved.as_usize()] = Some(Missing { bucket, position });
        }
        self.missing_count -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const A: ProviderKey = ProviderKey(1);
    const B: ProviderKey = ProviderKey(2);

    fn layout(pieces: u32) -> PieceLayout {
        PieceLayout::new(u64::from(pieces) * 256 * 1024).unwrap()
    }

    fn schedule(pieces: u32) -> Schedule {
        let layout = layout(pieces);
        Schedule::new(layout, &Bitmap::empty(layout), WindowSettings::default(), 7)
    }

    fn bitmap(pieces: u32, of: &[u32]) -> Bitmap {
        let layout = layout(pieces);
        let mut bitmap = Bitmap::empty(layout);
        for &piece in of {
            bitmap.insert(layout.piece(piece).unwrap());
        }
        bitmap
    }

    #[test]
    fn the_rarest_piece_is_asked_for_first() {
        let mut schedule = schedule(5);
        schedule.set_provider(A, Bitmap::full(layout(5)));
        schedule.set_provider(B, bitmap(5, &[0, 1, 3, 4]));
        assert_eq!(schedule.next(A).unwrap().get(), 2);
    }

    #[test]
    fn what_is_there_already_is_never_asked_for() {
        let layout = layout(4);
        let mut schedule = Schedule::new(layout, &bitmap(4, &[0, 2]), WindowSettings::default(), 1);
        schedule.set_provider(A, Bitmap::full(layout));
        let mut asked: Vec<_> = std::iter::from_fn(|| schedule.next(A)).map(PieceIndex::get).collect();
        asked.sort_unstable();
        assert_eq!(asked, [1, 3]);
    }

    #[test]
    fn a_dead_provider_s_pieces_are_asked_of_another() {
        let mut schedule = schedule(3);
        schedule.set_provider(A, Bitmap::full(layout(3)));
        while schedule.next(A).is_some() {}
        schedule.set_provider(B, bitmap(3, &[1]));
        schedule.remove_provider(A);
        assert_eq!(schedule.next(B).unwrap().get(), 1);
        assert_eq!(schedule.next(B), None);
    }

    #[test]
    fn at_the_end_the_longest_wait_is_doubled_once_and_the_loser_cancelled() {
        let mut schedule = schedule(2);
        schedule.set_provider(A, Bitmap::full(layout(2)));
        let first = schedule.next(A).unwrap();
        let second = schedule.next(A).unwrap();
        schedule.set_provider(B, Bitmap::full(layout(2)));
        assert_eq!(schedule.next(B), Some(first));
        assert_eq!(schedule.next(B), Some(second));
        assert_eq!(schedule.next(B), None, "no provider is asked twice");
        assert_eq!(schedule.arrived(B, first), Arrival { wanted: true, cancel: vec![A] });
        assert_eq!(schedule.arrived(A, first), Arrival { wanted: false, cancel: vec![] });
        schedule.failed(A, second);
        assert!(!schedule.is_complete());
        assert!(schedule.arrived(B, second).wanted);
        assert!(schedule.is_complete());
    }

    proptest! {
        /// Whatever happens in whatever order: while one provider has everything, everything arrives, and no
        /// piece is asked of one provider twice at the same time.
        #[test]
        fn every_piece_arrives(
            seed in any::<u64>(), pieces in 1u32..60,
            steps in prop::collection::vec((0u32..5, 0u32..5, any::<u32>()), 0..400),
        ) {
            let layout = layout(pieces);
            let mut schedule = Schedule::new(layout, &Bitmap::empty(layout), WindowSettings::default(), seed);
            let mut asked: HashSet<(ProviderKey, PieceIndex)> = HashSet::new();
            let mut there = HashSet::new();
            for (action, who, what) in steps {
                let who = ProviderKey(who);
                match action {
                    0 => {
                        let some: Vec<_> = (0..pieces).filter(|piece| what >> (piece % 32) & 1 == 1).collect();
                        schedule.set_provider(who, bitmap(pieces, &some));
                    }
                    1 => {
                        schedule.remove_provider(who);
                        asked.retain(|(provider, _)| *provider != who);
                    }
                    2 => if let Some(piece) = schedule.next(who) {
                        prop_assert!(asked.insert((who, piece)));
                        prop_assert!(!there.contains(&piece));
                    },
                    action => if let Some(&(provider, piece)) = asked.iter().find(|(provider, _)| *provider == who) {
                        asked.remove(&(provider, piece));
                        if action == 3 {
                            let arrival = schedule.arrived(provider, piece);
                            prop_assert_eq!(arrival.wanted, there.insert(piece));
                            for other in arrival.cancel {
                                prop_assert!(asked.remove(&(other, piece)));
                            }
                        } else {
                            schedule.failed(provider, piece);
                        }
                    },
                }
            }
            let last = ProviderKey(99);
            for other in 0..5 {
                schedule.remove_provider(ProviderKey(other));
            }
            schedule.set_provider(last, Bitmap::full(layout));
            while let Some(piece) = schedule.next(last) {
                prop_assert!(schedule.arrived(last, piece).wanted);
                prop_assert!(there.insert(piece));
            }
            prop_assert!(schedule.is_complete());
            prop_assert_eq!(there.len() as u32, pieces);
        }
    }
}
