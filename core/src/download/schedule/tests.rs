//! What the schedule decides, and that no piece is lost whatever happens.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};

const A: ProviderKey = ProviderKey(1);
const B: ProviderKey = ProviderKey(2);
const C: ProviderKey = ProviderKey(3);
const NOW: Duration = Duration::ZERO;

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
    schedule.set_provider(A, &Bitmap::full(layout(5)), NOW);
    schedule.set_provider(B, &bitmap(5, &[0, 1, 3, 4]), NOW);
    assert_eq!(schedule.next(A, NOW).unwrap().piece.get(), 2);
}

#[test]
fn what_is_there_already_is_never_asked_for() {
    let layout = layout(4);
    let mut schedule = Schedule::new(layout, &bitmap(4, &[0, 2]), WindowSettings::default(), 1);
    schedule.set_provider(A, &Bitmap::full(layout), NOW);
    let mut asked: Vec<_> =
        std::iter::from_fn(|| schedule.next(A, NOW)).map(|question| question.piece.get()).collect();
    asked.sort_unstable();
    assert_eq!(asked, [1, 3]);
}

#[test]
fn a_dead_provider_s_pieces_are_asked_of_another() {
    let mut schedule = schedule(3);
    schedule.set_provider(A, &Bitmap::full(layout(3)), NOW);
    while schedule.next(A, NOW).is_some() {}
    schedule.set_provider(B, &bitmap(3, &[1]), NOW);
    schedule.remove_provider(A);
    assert_eq!(schedule.next(B, NOW).unwrap().piece.get(), 1);
    assert_eq!(schedule.next(B, NOW), None);
}

#[test]
fn at_the_end_what_is_late_is_asked_of_a_second_one_and_the_loser_cancelled() {
    let mut schedule = schedule(2);
    schedule.set_provider(A, &Bitmap::full(layout(2)), NOW);
    let first = schedule.next(A, NOW).unwrap().piece;
    let second = schedule.next(A, NOW + Duration::from_millis(1)).unwrap().piece;
    schedule.set_provider(B, &Bitmap::full(layout(2)), NOW);
    assert_eq!(schedule.next(B, NOW), None, "it is not late yet");
    let late = NOW + Duration::from_secs(10);
    assert_eq!(schedule.next(B, late).unwrap().piece, first);
    assert_eq!(schedule.next(B, late).unwrap().piece, second);
    assert_eq!(schedule.next(B, late * 2), None, "no provider is asked twice");
    assert_eq!(schedule.arrived(B, first, late), Arrival { wanted: true, cancel: vec![A] });
    assert_eq!(schedule.arrived(A, first, late), Arrival { wanted: false, cancel: vec![] });
    schedule.failed(A, second);
    assert!(!schedule.is_complete());
    assert!(schedule.arrived(B, second, late).wanted);
    assert!(schedule.is_complete());
}

#[test]
fn a_source_is_asked_sparingly_while_others_trade_and_for_anything_when_they_do_not() {
    let mut schedule = schedule(4);
    schedule.set_provider(A, &Bitmap::full(layout(4)), NOW);
    let question = schedule.next(A, NOW).unwrap();
    assert!(!question.sparing, "it is the only one");
    schedule.failed(A, question.piece);
    schedule.set_provider(B, &bitmap(4, &[]), NOW);
    let question = schedule.next(A, NOW).unwrap();
    assert!(question.sparing);
    schedule.elsewhere(A, question.piece, &bitmap(4, &[0, 1, 2, 3]));
    assert_eq!(schedule.next(A, NOW), None, "all of it comes from the others");
    assert!(!schedule.next(A, NOW + SHORTEST_PATIENCE).unwrap().sparing, "nothing comes from them");
}

#[test]
fn what_a_trader_has_is_not_asked_of_a_source() {
    let mut schedule = schedule(4);
    schedule.set_provider(A, &Bitmap::full(layout(4)), NOW);
    schedule.set_provider(B, &bitmap(4, &[0, 1, 2]), NOW);
    assert_eq!(schedule.by_turn(NOW), [B, A]);
    assert_eq!(schedule.next(A, NOW).unwrap().piece.get(), 3);
    assert_eq!(schedule.next(A, NOW), None);
    assert!(schedule.next(B, NOW).is_some());
}

#[test]
fn a_source_that_is_much_faster_than_the_traders_helps_with_what_they_have() {
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
    schedule.elsewhere(A, piece, &all);
    assert_eq!(schedule.next(A, now).map(|question| question.sparing), Some(false));
}

#[test]
fn a_trader_that_has_almost_everything_and_sends_little_does_not_hold_up_a_source() {
    let mut schedule = schedule(100);
    let at = |millis| NOW + Duration::from_millis(millis);
    schedule.set_provider(A, &Bitmap::full(layout(100)), NOW);
    schedule.set_provider(B, &bitmap(100, &(0..99).collect::<Vec<_>>()), NOW);
    let unheld = schedule.next(A, NOW).unwrap().piece;
    schedule.arrived(A, unheld, at(20));
    assert_eq!(schedule.next(A, at(20)), None, "the trader is not watched for long");
    let piece = schedule.next(B, NOW).unwrap().piece;
    schedule.arrived(B, piece, at(1000));
    let question = schedule.next(A, at(1000)).unwrap();
    assert!(!question.sparing);
    schedule.failed(A, question.piece);
    // Another trader that comes changes nothing about that.
    schedule.set_provider(C, &bitmap(100, &[1]), at(1000));
    assert!(schedule.next(A, at(1000)).is_some());
}

#[test]
fn a_source_is_asked_for_more_and_more_while_the_traders_send_nothing() {
    let mut schedule = schedule(100);
    let all = bitmap(100, &(0..100).collect::<Vec<_>>());
    schedule.set_provider(A, &Bitmap::full(layout(100)), NOW);
    schedule.set_provider(B, &bitmap(100, &[]), NOW);
    let mut now = NOW + LONGEST_PATIENCE;
    let mut asked = Vec::new();
    for _ in 0..20 {
        let mut pieces = Vec::new();
        while let Some(Question { piece, sparing }) = schedule.next(A, now) {
            match sparing {
                true => schedule.elsewhere(A, piece, &all),
                false => pieces.push(piece),
            }
        }
        asked.push(pieces.len());
        now += Duration::from_millis(100);
        for piece in pieces {
            schedule.arrived(A, piece, now);
        }
    }
    assert_eq!(asked[0], 1);
    assert!(asked[1..].iter().any(|&pieces| pieces >= 4), "{asked:?}");
}

/// What can happen to a schedule.
#[derive(Debug, Clone)]
enum Step {
    Has(u32, u32),
    IsWhole(u32),
    Leaves(u32),
    Next(u32),
    Arrives(u32),
    Fails(u32),
    Elsewhere(u32, u32),
    Overdue(u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0u32..6;
    let step = prop_oneof![
        1 => (who.clone(), any::<u32>()).prop_map(|(who, what)| Step::Has(who, what)),
        1 => who.clone().prop_map(Step::IsWhole),
        1 => who.clone().prop_map(Step::Leaves),
        4 => who.clone().prop_map(Step::Next),
        3 => who.clone().prop_map(Step::Arrives),
        1 => who.clone().prop_map(Step::Fails),
        1 => (who.clone(), any::<u32>()).prop_map(|(who, what)| Step::Elsewhere(who, what)),
        1 => who.prop_map(Step::Overdue),
        1 => (0u64..3000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// Whatever happens in whatever order: a piece is only asked of who has it and of nobody twice at the same time,
    /// and while one provider has everything, everything arrives.
    #[test]
    fn every_piece_arrives(seed in any::<u64>(), pieces in 1u32..150, steps in steps()) {
        let layout = layout(pieces);
        let mut schedule = Schedule::new(layout, &Bitmap::empty(layout), WindowSettings::default(), seed);
        let mut asked: BTreeSet<(ProviderKey, PieceIndex)> = BTreeSet::new();
        let mut has: HashMap<ProviderKey, Bitmap> = HashMap::new();
        let mut there = HashSet::new();
        let mut now = NOW;
        let some = |what: u32| {
            bitmap(pieces, &(0..pieces).filter(|piece| what >> (piece % 31) & 1 == 1).collect::<Vec<_>>())
        };
        for step in steps {
            let of = |who| asked.iter().find(|(provider, _)| *provider == ProviderKey(who)).copied();
            match step {
                Step::Has(who, what) => {
                    schedule.set_provider(ProviderKey(who), &some(what), now);
                    has.insert(ProviderKey(who), some(what));
                }
                Step::IsWhole(who) => {
                    schedule.set_provider(ProviderKey(who), &Bitmap::full(layout), now);
                    has.insert(ProviderKey(who), Bitmap::full(layout));
                }
                Step::Leaves(who) => {
                    schedule.remove_provider(ProviderKey(who));
                    has.remove(&ProviderKey(who));
                    asked.retain(|(provider, _)| *provider != ProviderKey(who));
                }
                Step::Next(who) => if let Some(question) = schedule.next(ProviderKey(who), now) {
                    prop_assert!(asked.insert((ProviderKey(who), question.piece)));
                    prop_assert!(!there.contains(&question.piece));
                    prop_assert!(has[&ProviderKey(who)].contains(question.piece));
                },
                Step::Arrives(who) => if let Some((provider, piece)) = of(who) {
                    asked.remove(&(provider, piece));
                    let arrival = schedule.arrived(provider, piece, now);
                    prop_assert_eq!(arrival.wanted, there.insert(piece));
                    for other in arrival.cancel {
                        prop_assert!(asked.remove(&(other, piece)));
                    }
                },
                Step::Fails(who) => if let Some((provider, piece)) = of(who) {
                    asked.remove(&(provider, piece));
                    schedule.failed(provider, piece);
                },
                Step::Elsewhere(who, what) => if let Some((provider, piece)) = of(who) {
                    asked.remove(&(provider, piece));
                    schedule.elsewhere(provider, piece, &some(what));
                },
                Step::Overdue(who) => if let Some((provider, piece)) = of(who) {
                    schedule.overdue(provider, piece);
                },
                Step::Wait(millis) => now += Duration::from_millis(millis),
            }
            for (&provider, have) in &has {
                let useful = layout.pieces().any(|piece| have.contains(piece) && !there.contains(&piece));
                prop_assert_eq!(schedule.is_useful(provider), useful);
                let in_flight = asked.iter().filter(|(who, _)| *who == provider).count();
                prop_assert_eq!(schedule.in_flight(provider), in_flight);
            }
        }
        let last = ProviderKey(99);
        schedule.set_provider(last, &Bitmap::full(layout), now);
        // The others stay and are silent.
        now += LONGEST_PATIENCE + Duration::from_secs(600);
        for (provider, piece) in asked {
            schedule.overdue(provider, piece);
        }
        while !schedule.is_complete() {
            let Some(question) = schedule.next(last, now) else {
                prop_assert!(false, "it is stuck with {} pieces", there.len());
                break;
            };
            prop_assert!(schedule.arrived(last, question.piece, now).wanted);
            prop_assert!(there.insert(question.piece));
        }
        prop_assert_eq!(there.len() as u32, pieces);
    }
}

/// A trader in a play of one download: how far away it is, and how long it sends a piece; for ever, where there is none.
#[derive(Clone, Copy)]
struct Sender {
    round_trip: Duration,
    sends: Option<Duration>,
    /// Has the pieces before this one.
    has: u32,
}

/// How long it takes until all these pieces have come, and how many each has sent.
fn play(pieces: u32, senders: &[Sender]) -> (Duration, Vec<u32>) {
    const STEP: Duration = Duration::from_millis(5);
    // Nobody has the last piece, so all of them are traders.
    let mut schedule = schedule(pieces + 1);
    let key = |at: usize| ProviderKey(u32::try_from(at).unwrap());
    for (at, sender) in senders.iter().enumerate() {
        schedule.set_provider(key(at), &bitmap(pieces + 1, &(0..sender.has).collect::<Vec<_>>()), NOW);
        schedule.set_round_trip(key(at), sender.round_trip);
    }
    let (mut free, mut sent) = (vec![NOW; senders.len()], vec![0; senders.len()]);
    let mut on_way: BTreeSet<(Duration, usize, PieceIndex)> = BTreeSet::new();
    let (mut now, mut missing) = (NOW, pieces);
    while missing > 0 && now < Duration::from_secs(600) {
        while on_way.first().is_some_and(|&(comes, ..)| comes <= now) {
            let (comes, at, piece) = on_way.pop_first().unwrap();
            sent[at] += 1;
            missing -= u32::from(schedule.arrived(key(at), piece, comes).wanted);
        }
        let mut open = schedule.by_turn(now);
        while let Some(place) = schedule.soonest(&open, now) {
            let provider = open[place];
            let Some(question) = schedule.next(provider, now) else {
                open.remove(place);
                continue;
            };
            let at = provider.0 as usize;
            if let Some(sends) = senders[at].sends {
                free[at] = free[at].max(now + senders[at].round_trip / 2) + sends;
                on_way.insert((free[at] + senders[at].round_trip / 2, at, question.piece));
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
const FAR_AWAY: Sender = Sender { round_trip: millis(80), sends: Some(millis(3)), has: 1500 };

#[test]
fn near_traders_that_send_little_do_not_keep_far_ones_from_sending() {
    let (alone, _) = play(1500, &[FAR_AWAY]);
    for sends in [15, 60, 250] {
        let slow = Sender { sends: Some(millis(sends)), ..FAST };
        for senders in [vec![slow, FAR_AWAY], vec![slow, slow, slow, FAR_AWAY]] {
            let (took, sent) = play(1500, &senders);
            assert!(took < alone * 2, "{sends}: {took:?} {sent:?}, and {alone:?} alone");
        }
    }
}

#[test]
fn a_near_trader_that_promises_much_and_sends_nothing_does_not_keep_a_far_one_from_sending() {
    let (alone, _) = play(1500, &[FAR_AWAY]);
    let silent = Sender { sends: None, ..FAST };
    let honest = Sender { has: 500, ..FAST };
    for senders in [vec![silent, FAR_AWAY], vec![silent, honest, FAR_AWAY]] {
        let (took, sent) = play(1500, &senders);
        assert!(took < alone * 2, "{took:?} {sent:?}, and {alone:?} alone");
    }
}

#[test]
fn far_traders_are_left_alone_where_the_near_ones_suffice_and_tried_now_and_then() {
    let near = Sender { sends: Some(millis(80)), ..FAST };
    let far = Sender { sends: Some(millis(480)), ..FAR_AWAY };
    let (took, sent) = play(1500, &[near, far]);
    // At first, and after a minute.
    assert!((2..10).contains(&sent[1]) && took < Duration::from_secs(125), "{took:?} {sent:?}");
}
