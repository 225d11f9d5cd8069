//! Swarms of hundreds, simulated: the real [`Schedule`], the real choice of providers and the real [`Given`] of the source,
//! with time in ticks. In a tick everybody uploads one piece.
//!
//! The ideal is that of Mundinger, Weber and Weiss, "Optimal scheduling of peer-to-peer file dissemination" (Journal of Scheduling
//! 11, 2008): with equal upload capacities and unlimited downloads, a file of M pieces reaches N peers in
//! M + floor(log2 N) ticks, that is (1 + floor(log2 N) / M) times what one copy takes to upload.

use std::collections::VecDeque;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::choice::{self, Candidate};
use super::schedule::{ProviderKey, Question, Schedule};
use super::wanted::DownloadSettings;
use crate::given::Given;
use crate::model::bitmap::Bitmap;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::protocol::message::MAX_PROVIDERS;

/// How long a tick is: a piece of 256 KiB at 12.5 MB/s.
const TICK: Duration = Duration::from_millis(20);
/// The source's place among the nodes.
const SOURCE: usize = 0;

struct Node {
    have: Bitmap,
    /// None for the source.
    schedule: Option<Schedule>,
    /// Whom it downloads from, and who downloads from it.
    providers: Vec<usize>,
    readers: Vec<usize>,
    /// What it was asked for, by who asked; those who ask take turns.
    asked: VecDeque<(usize, VecDeque<Question>)>,
    given: Given,
    sent: u64,
    changed: bool,
}

struct Swarm {
    layout: PieceLayout,
    nodes: Vec<Node>,
    budget: usize,
    rng: SmallRng,
}

/// How it went.
#[derive(Debug)]
struct Outcome {
    /// The time until the last was complete over the ideal.
    ratio: f64,
    /// How many copies the source sent.
    copies: f64,
    /// Pieces that were sent and no longer wanted, over all that were wanted.
    waste: f64,
}

fn key(node: usize) -> ProviderKey {
    ProviderKey(node as u32)
}

impl Swarm {
    /// One source and so many peers that begin at once.
    fn new(peers: usize, pieces: u32, seed: u64) -> Self {
        let layout = PieceLayout::new(u64::from(pieces) * 256 * 1024).unwrap();
        let settings = DownloadSettings::default();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut nodes: Vec<_> = (0..=peers)
            .map(|at| Node {
                have: if at == SOURCE { Bitmap::full(layout) } else { Bitmap::empty(layout) },
                schedule: (at != SOURCE)
                    .then(|| Schedule::new(layout, &Bitmap::empty(layout), settings.window, at as u64)),
                providers: Vec::new(),
                readers: Vec::new(),
                asked: VecDeque::new(),
                given: Given::new(layout),
                sent: 0,
                changed: false,
            })
            .collect();
        let all: Vec<usize> = (0..=peers).collect();
        for at in 1..=peers {
            let told = all.sample(&mut rng, MAX_PROVIDERS).copied().filter(|&other| other != at);
            let mut told: Vec<_> = told.collect();
            told.shuffle(&mut rng);
            let candidates = told.iter().enumerate().map(|(place, &other)| Candidate {
                key: key(place),
                failures: 0,
                complete: other == SOURCE,
            });
            let order = choice::order(candidates.collect());
            for chosen in order.into_iter().take(settings.max_providers) {
                let other = told[chosen.0 as usize];
                nodes[at].providers.push(other);
                nodes[other].readers.push(at);
                let have = nodes[other].have.clone();
                nodes[at].schedule.as_mut().unwrap().set_provider(key(other), &have, Duration::ZERO);
            }
        }
        let budget = settings.budget / layout.piece_size() as usize;
        Self { layout, nodes, budget, rng }
    }

    fn run(mut self) -> Outcome {
        let peers = self.nodes.len() - 1;
        let pieces = self.layout.count();
        let ideal = f64::from(pieces) + (peers as f64).log2().floor();
        let mut order: Vec<usize> = (1..=peers).collect();
        let (mut ticks, mut complete, mut wasted) = (0_u32, 0, 0_u64);
        while complete < peers {
            assert!(
                f64::from(ticks) < ideal * 10.0,
                "{complete} of {peers} are complete after {ticks} ticks"
            );
            order.shuffle(&mut self.rng);
            for &at in &order {
                self.ask(at, TICK * ticks);
            }
            ticks += 1;
            let sent: Vec<_> = (0..=peers).filter_map(|at| self.send(at)).collect();
            for (from, to, piece) in sent {
                if self.arrive(from, to, piece, TICK * ticks) {
                    complete += usize::from(self.nodes[to].have.is_full());
                } else {
                    wasted += 1;
                }
            }
            self.tell(TICK * ticks);
        }
        Outcome {
            ratio: f64::from(ticks) / ideal,
            copies: self.nodes[SOURCE].sent as f64 / f64::from(pieces),
            waste: wasted as f64 / (peers as f64 * f64::from(pieces)),
        }
    }

    /// Asks for what there is to ask, one piece of each in turn.
    fn ask(&mut self, at: usize, now: Duration) {
        let Some(mut schedule) = self.nodes[at].schedule.take() else { return };
        let mut in_flight: usize =
            self.nodes[at].providers.iter().map(|&other| schedule.in_flight(key(other))).sum();
        let mut turn = schedule.by_turn(now);
        while !turn.is_empty() && in_flight < self.budget {
            turn.retain(|&provider| {
                let Some(question) = schedule.next(provider, now) else { return false };
                let from = &mut self.nodes[provider.0 as usize];
                in_flight += 1;
                match from.asked.iter_mut().find(|(who, _)| *who == at) {
                    Some((_, questions)) => questions.push_back(question),
                    None => from.asked.push_back((at, VecDeque::from([question]))),
                }
                true
            });
        }
        self.nodes[at].schedule = Some(schedule);
    }

    /// The piece that a node sends in this tick. What it gave already it refuses when it comes to that.
    fn send(&mut self, at: usize) -> Option<(usize, usize, PieceIndex)> {
        loop {
            let node = &mut self.nodes[at];
            let (to, mut questions) = node.asked.pop_front()?;
            let Question { piece, sparing } = questions.pop_front()?;
            if !questions.is_empty() {
                node.asked.push_back((to, questions));
            }
            if !node.have.is_full() || node.given.give(piece) || !sparing {
                node.sent += 1;
                return Some((at, to, piece));
            }
            let given = node.given.pieces().clone();
            self.nodes[to].schedule.as_mut().unwrap().elsewhere(key(at), piece, &given);
        }
    }

    /// Whether it was wanted.
    fn arrive(&mut self, from: usize, to: usize, piece: PieceIndex, now: Duration) -> bool {
        let node = &mut self.nodes[to];
        let arrival = node.schedule.as_mut().unwrap().arrived(key(from), piece, now);
        node.changed |= node.have.insert(piece);
        for other in arrival.cancel {
            let asked = &mut self.nodes[other.0 as usize].asked;
            for (_, questions) in asked.iter_mut().filter(|(who, _)| *who == to) {
                questions.retain(|asked| asked.piece != piece);
            }
            asked.retain(|(_, questions)| !questions.is_empty());
        }
        arrival.wanted
    }

    /// Everybody hears what the others have by now.
    fn tell(&mut self, now: Duration) {
        for at in 1..self.nodes.len() {
            if !std::mem::take(&mut self.nodes[at].changed) {
                continue;
            }
            let have = self.nodes[at].have.clone();
            for reader in self.nodes[at].readers.clone() {
                self.nodes[reader].schedule.as_mut().unwrap().set_provider(key(at), &have, now);
            }
        }
    }
}

#[test]
fn two_hundred_peers_are_near_the_ideal_and_the_source_sends_little_more_than_one_copy() {
    for seed in 0..2 {
        let outcome = Swarm::new(200, 100, seed).run();
        assert!(
            outcome.ratio <= 1.3 && outcome.copies <= 1.5 && outcome.waste <= 0.1,
            "seed {seed}: {outcome:?}"
        );
    }
}

#[test]
fn a_thousand_peers_are_not_far_from_it() {
    let outcome = Swarm::new(1000, 100, 7).run();
    assert!(outcome.ratio <= 1.5 && outcome.copies <= 1.5, "{outcome:?}");
}
