//! Decisions of the schedule, and a property test that no piece is lost.

use std::collections::{BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const A: ProviderKey = ProviderKey(1);
const B: ProviderKey = ProviderKey(2);
const C: ProviderKey = ProviderKey(3);
const NOW: Duration = Duration::ZERO;

fn layout(pieces: u32) -> PieceLayout {
    PieceLayout::new(u64::from(pieces) * 256 * 1024).unwrap()
}

fn schedule(pieces: u32) -> Schedule {
    let layout = layout(pieces);
    Schedule::new(layout, &Bitmap::empty(layout), 7)
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
fn rarest_piece_is_requested_first() {
    let mut schedule = schedule(5);
    schedule.set_provider(A, &Bitmap::full(layout(5)), NOW);
    schedule.set_provider(B, &bitmap(5, &[0, 1, 3, 4]), NOW);
    assert_eq!(schedule.next(A, NOW).unwrap().piece.get(), 2);
}

#[test]
fn stored_pieces_are_never_requested() {
    let layout = layout(4);
    let mut schedule = Schedule::new(layout, &bitmap(4, &[0, 2]), 1);
    schedule.set_provider(A, &Bitmap::full(layout), NOW);
    let mut requested: Vec<_> =
        std::iter::from_fn(|| schedule.next(A, NOW)).map(|request| request.piece.get()).collect();
    requested.sort_unstable();
    assert_eq!(requested, [1, 3]);
}

#[test]
fn pieces_of_dead_provider_are_requested_elsewhere() {
    let mut schedule = schedule(3);
    schedule.set_provider(A, &Bitmap::full(layout(3)), NOW);
    while schedule.next(A, NOW).is_some() {}
    schedule.set_provider(B, &bitmap(3, &[1]), NOW);
    schedule.remove_provider(A);
    assert_eq!(schedule.next(B, NOW).unwrap().piece.get(), 1);
    assert_eq!(schedule.next(B, NOW), None);
}

#[test]
fn late_piece_is_requested_twice_and_loser_cancelled() {
    let mut schedule = schedule(2);
    schedule.set_provider(A, &Bitmap::full(layout(2)), NOW);
    let first = schedule.next(A, NOW).unwrap().piece;
    let second = schedule.next(A, NOW + Duration::from_millis(1)).unwrap().piece;
    schedule.set_provider(B, &Bitmap::full(layout(2)), NOW);
    assert_eq!(schedule.next(B, NOW), None, "not late yet");
    let late = NOW + Duration::from_secs(10);
    assert_eq!(schedule.next(B, late).unwrap().piece, first);
    assert_eq!(schedule.next(B, late).unwrap().piece, second);
    assert_eq!(schedule.next(B, late * 2), None, "no provider gets the same request twice");
    assert_eq!(schedule.arrived(B, first, late), Arrival { is_new: true, cancel: vec![A] });
    assert_eq!(schedule.arrived(A, first, late), Arrival { is_new: false, cancel: vec![] });
    schedule.failed(A, second);
    assert!(!schedule.is_complete());
    assert!(schedule.arrived(B, second, late).is_new);
    assert!(schedule.is_complete());
}

#[test]
fn complete_provider_super_seeds_until_starvation() {
    let mut schedule = schedule(4);
    schedule.set_provider(A, &Bitmap::full(layout(4)), NOW);
    let request = schedule.next(A, NOW).unwrap();
    assert!(!request.super_seed, "the only provider");
    schedule.failed(A, request.piece);
    schedule.set_provider(B, &bitmap(4, &[]), NOW);
    let request = schedule.next(A, NOW).unwrap();
    assert!(request.super_seed);
    schedule.already_sent(A, request.piece, &bitmap(4, &[0, 1, 2, 3]));
    assert_eq!(schedule.next(A, NOW), None, "all pieces are expected from partial providers");
    assert!(!schedule.next(A, NOW + MIN_STARVATION).unwrap().super_seed, "partial providers deliver nothing");
}

#[test]
fn piece_of_partial_provider_is_not_requested_from_complete() {
    let mut schedule = schedule(4);
    schedule.set_provider(A, &Bitmap::full(layout(4)), NOW);
    schedule.set_provider(B, &bitmap(4, &[0, 1, 2]), NOW);
    assert_eq!(schedule.ready_providers(NOW), [B, A]);
    assert_eq!(schedule.next(A, NOW).unwrap().piece.get(), 3);
    assert_eq!(schedule.next(A, NOW), None);
    assert!(schedule.next(B, NOW).is_some());
}

#[test]
fn much_faster_complete_provider_sends_any_piece() {
    let mut schedule = schedule(1000);
    let held: Vec<u32> = (0..500).collect();
    schedule.set_provider(A, &Bitmap::full(layout(1000)), NOW);
    schedule.set_provider(B, &bitmap(1000, &held), NOW);
    for step in 1..=10 {
        let now = NOW + Duration::from_millis(100) * step;
        for _ in 0..10 {
            let piece = schedule.next(A, now).unwrap().piece;
            schedule.arrived(A, piece, now);
        }
        let piece = schedule.next(B, now).unwrap().piece;
        schedule.arrived(B, piece, now);
    }
    let now = NOW + Duration::from_secs(1);
    let all = bitmap(1000, &(0..1000).collect::<Vec<_>>());
    let piece = schedule.next(A, now).unwrap().piece;
    schedule.already_sent(A, piece, &all);
    assert_eq!(schedule.next(A, now).map(|request| request.super_seed), Some(false));
}

#[test]
fn slow_partial_provider_does_not_block_complete_one() {
    let mut schedule = schedule(100);
    let at = |millis| NOW + Duration::from_millis(millis);
    schedule.set_provider(A, &Bitmap::full(layout(100)), NOW);
    schedule.set_provider(B, &bitmap(100, &(0..99).collect::<Vec<_>>()), NOW);
    let unheld = schedule.next(A, NOW).unwrap().piece;
    schedule.arrived(A, unheld, at(20));
    assert_eq!(schedule.next(A, at(20)), None, "the partial provider is not observed for long enough");
    let piece = schedule.next(B, NOW).unwrap().piece;
    schedule.arrived(B, piece, at(1000));
    let request = schedule.next(A, at(1000)).unwrap();
    assert!(!request.super_seed);
    schedule.failed(A, request.piece);
    // Another partial provider does not change that.
    schedule.set_provider(C, &bitmap(100, &[1]), at(1000));
    assert!(schedule.next(A, at(1000)).is_some());
}

#[test]
fn starving_download_requests_more_from_complete_provider() {
    let mut schedule = schedule(100);
    let all = bitmap(100, &(0..100).collect::<Vec<_>>());
    schedule.set_provider(A, &Bitmap::full(layout(100)), NOW);
    schedule.set_provider(B, &bitmap(100, &[]), NOW);
    let mut now = NOW + MAX_STARVATION;
    let mut requested = Vec::new();
    for _ in 0..20 {
        let mut pieces = Vec::new();
        while let Some(PieceRequest { piece, super_seed }) = schedule.next(A, now) {
            match super_seed {
                true => schedule.already_sent(A, piece, &all),
                false => pieces.push(piece),
            }
        }
        requested.push(pieces.len());
        now += Duration::from_millis(100);
        for piece in pieces {
            schedule.arrived(A, piece, now);
        }
    }
    assert_eq!(requested[0], 1);
    assert!(requested[1..].iter().any(|&pieces| pieces >= 4), "{requested:?}");
}

/// An event of a schedule.
#[derive(Debug, Clone)]
enum Step {
    Have(u32, u32),
    Complete(u32),
    Remove(u32),
    Next(u32),
    Arrive(u32),
    Fail(u32),
    AlreadySent(u32, u32),
    Overdue(u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u32..6;
    let step = prop_oneof![
        1 => (key.clone(), any::<u32>()).prop_map(|(key, bits)| Step::Have(key, bits)),
        1 => key.clone().prop_map(Step::Complete),
        1 => key.clone().prop_map(Step::Remove),
        4 => key.clone().prop_map(Step::Next),
        3 => key.clone().prop_map(Step::Arrive),
        1 => key.clone().prop_map(Step::Fail),
        1 => (key.clone(), any::<u32>()).prop_map(|(key, bits)| Step::AlreadySent(key, bits)),
        1 => key.prop_map(Step::Overdue),
        1 => (0u64..3000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// After any sequence of events: a piece is only requested from a provider that has it, never twice in parallel from the
    /// same provider, and all pieces arrive if one provider has all of them.
    #[test]
    fn every_piece_arrives(seed in any::<u64>(), pieces in 1u32..150, steps in steps()) {
        let layout = layout(pieces);
        let mut schedule = Schedule::new(layout, &Bitmap::empty(layout), seed);
        let mut requested: BTreeSet<(ProviderKey, PieceIndex)> = BTreeSet::new();
        let mut has: HashMap<ProviderKey, Bitmap> = HashMap::new();
        let mut stored = HashSet::new();
        let mut now = NOW;
        let some = |bits: u32| {
            bitmap(pieces, &(0..pieces).filter(|piece| bits >> (piece % 31) & 1 == 1).collect::<Vec<_>>())
        };
        for step in steps {
            let pending = |key| requested.iter().find(|(provider, _)| *provider == ProviderKey(key)).copied();
            match step {
                Step::Have(key, bits) => {
                    schedule.set_provider(ProviderKey(key), &some(bits), now);
                    has.insert(ProviderKey(key), some(bits));
                }
                Step::Complete(key) => {
                    schedule.set_provider(ProviderKey(key), &Bitmap::full(layout), now);
                    has.insert(ProviderKey(key), Bitmap::full(layout));
                }
                Step::Remove(key) => {
                    schedule.remove_provider(ProviderKey(key));
                    has.remove(&ProviderKey(key));
                    requested.retain(|(provider, _)| *provider != ProviderKey(key));
                }
                Step::Next(key) => if let Some(request) = schedule.next(ProviderKey(key), now) {
                    prop_assert!(requested.insert((ProviderKey(key), request.piece)));
                    prop_assert!(!stored.contains(&request.piece));
                    prop_assert!(has[&ProviderKey(key)].contains(request.piece));
                },
                Step::Arrive(key) => if let Some((provider, piece)) = pending(key) {
                    requested.remove(&(provider, piece));
                    let arrival = schedule.arrived(provider, piece, now);
                    prop_assert_eq!(arrival.is_new, stored.insert(piece));
                    for other in arrival.cancel {
                        prop_assert!(requested.remove(&(other, piece)));
                    }
                },
                Step::Fail(key) => if let Some((provider, piece)) = pending(key) {
                    requested.remove(&(provider, piece));
                    schedule.failed(provider, piece);
                },
                Step::AlreadySent(key, bits) => if let Some((provider, piece)) = pending(key) {
                    requested.remove(&(provider, piece));
                    schedule.already_sent(provider, piece, &some(bits));
                },
                Step::Overdue(key) => if let Some((provider, piece)) = pending(key) {
                    schedule.overdue(provider, piece);
                },
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            for (&provider, have) in &has {
                let useful = layout.pieces().any(|piece| have.contains(piece) && !stored.contains(&piece));
                prop_assert_eq!(schedule.is_useful(provider), useful);
                let in_flight = requested.iter().filter(|(key, _)| *key == provider).count();
                prop_assert_eq!(schedule.in_flight(provider), in_flight);
            }
        }
        let last = ProviderKey(99);
        schedule.set_provider(last, &Bitmap::full(layout), now);
        // The other providers stay and are silent.
        now += MAX_STARVATION + Duration::from_secs(600);
        for (provider, piece) in requested {
            schedule.overdue(provider, piece);
        }
        while !schedule.is_complete() {
            let Some(request) = schedule.next(last, now) else {
                prop_assert!(false, "stuck with {} pieces", stored.len());
                break;
            };
            prop_assert!(schedule.arrived(last, request.piece, now).is_new);
            prop_assert!(stored.insert(request.piece));
        }
        prop_assert_eq!(stored.len() as u32, pieces);
    }
}

/// A partial provider in the simulation of one download.
#[derive(Clone, Copy)]
struct Sender {
    round_trip: Duration,
    /// The time to send a piece; `None` for a silent provider.
    sends: Option<Duration>,
    /// The number of pieces, from the first one on.
    has: u32,
}

/// Simulates a download of `pieces` pieces. Returns its time, and the number of pieces from each provider.
fn simulate(pieces: u32, senders: &[Sender]) -> (Duration, Vec<u32>) {
    const STEP: Duration = Duration::from_millis(5);
    // No provider has the last piece, so all of them are partial.
    let mut schedule = schedule(pieces + 1);
    let key = |at: usize| ProviderKey(u32::try_from(at).unwrap());
    for (at, sender) in senders.iter().enumerate() {
        schedule.set_provider(key(at), &bitmap(pieces + 1, &(0..sender.has).collect::<Vec<_>>()), NOW);
        schedule.set_round_trip(key(at), sender.round_trip);
    }
    let (mut free, mut sent) = (vec![NOW; senders.len()], vec![0; senders.len()]);
    let mut in_flight: BTreeSet<(Duration, usize, PieceIndex)> = BTreeSet::new();
    let (mut now, mut missing) = (NOW, pieces);
    while missing > 0 && now < Duration::from_secs(600) {
        while in_flight.first().is_some_and(|&(arrival, ..)| arrival <= now) {
            let (arrival, at, piece) = in_flight.pop_first().unwrap();
            sent[at] += 1;
            missing -= u32::from(schedule.arrived(key(at), piece, arrival).is_new);
        }
        let mut ready = schedule.ready_providers(now);
        while let Some(at) = schedule.fastest(&ready, now) {
            let provider = ready[at];
            let Some(request) = schedule.next(provider, now) else {
                ready.remove(at);
                continue;
            };
            let at = provider.0 as usize;
            if let Some(sends) = senders[at].sends {
                free[at] = free[at].max(now + senders[at].round_trip / 2) + sends;
                in_flight.insert((free[at] + senders[at].round_trip / 2, at, request.piece));
            }
        }
        now += STEP;
    }
    (now, sent)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const FAST: Sender = Sender { round_trip: millis(1), sends: Some(millis(10)), has: 1500 };
const DISTANT: Sender = Sender { round_trip: millis(80), sends: Some(millis(3)), has: 1500 };

#[test]
fn slow_nearby_providers_do_not_block_distant_ones() {
    let (alone, _) = simulate(1500, &[DISTANT]);
    for sends in [15, 60, 250] {
        let slow = Sender { sends: Some(millis(sends)), ..FAST };
        for senders in [vec![slow, DISTANT], vec![slow, slow, slow, DISTANT]] {
            let (took, sent) = simulate(1500, &senders);
            assert!(took < alone * 2, "{sends}: {took:?} {sent:?}, {alone:?} alone");
        }
    }
}

#[test]
fn silent_nearby_provider_does_not_block_distant_one() {
    let (alone, _) = simulate(1500, &[DISTANT]);
    let silent = Sender { sends: None, ..FAST };
    let honest = Sender { has: 500, ..FAST };
    for senders in [vec![silent, DISTANT], vec![silent, honest, DISTANT]] {
        let (took, sent) = simulate(1500, &senders);
        assert!(took < alone * 2, "{took:?} {sent:?}, {alone:?} alone");
    }
}

#[test]
fn sufficient_nearby_providers_spare_distant_ones() {
    let nearby = Sender { sends: Some(millis(80)), ..FAST };
    let distant = Sender { sends: Some(millis(480)), ..DISTANT };
    let (took, sent) = simulate(1500, &[nearby, distant]);
    // Measured initially, and after a minute.
    assert!((2..10).contains(&sent[1]) && took < Duration::from_secs(125), "{took:?} {sent:?}");
}

#[test]
fn wanted_pieces_are_requested_first_in_the_order_of_the_file() {
    let mut schedule = schedule(40);
    let piece = 256 * 1024;
    schedule.set_wanted(&[20 * piece + 5..22 * piece, 5 * piece..u64::MAX]);
    schedule.set_provider(A, &Bitmap::full(layout(40)), NOW);
    let mut next = || schedule.next(A, NOW).map(|request| request.piece.get());
    assert_eq!([next(), next(), next()], [Some(20), Some(21), Some(5)]);
}

#[test]
fn wanted_piece_is_also_requested_from_much_faster_provider() {
    let mut schedule = schedule(40);
    schedule.set_provider(A, &Bitmap::full(layout(40)), NOW);
    schedule.set_wanted(std::slice::from_ref(&(0..1)));
    let first = schedule.next(A, NOW).unwrap().piece;
    assert_eq!(first.get(), 0);
    schedule.set_provider(B, &Bitmap::full(layout(40)), NOW);
    let later = NOW + Duration::from_secs(60);
    assert_eq!(schedule.next(B, later).unwrap().piece, first, "the reader waits for it");
}
