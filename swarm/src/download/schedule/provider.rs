//! The state of one provider in a schedule: its pieces, its requests in flight, and its measured performance.

use std::time::Duration;

use super::bits::Bits;
use crate::download::arrival_rate::ArrivalRate;
use crate::download::window::Window;
use enjambre_core::{PieceIndex, PieceLayout};

/// Expected latency of a provider that has not delivered any piece.
const DEFAULT_LATENCY: Duration = Duration::from_millis(500);
/// Maximum number of requests in flight as a multiple of the bandwidth-delay product.
const PIPELINE_FACTOR: f64 = 4.0;

/// Identifies a provider within one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderKey(pub u32);

/// A provider that can be connected. Those that sent a verified piece come first, then those with fewer failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// Whether the provider has not sent any verified piece.
    pub unproven: bool,
    /// Number of failures.
    pub failures: u32,
    /// Whether the provider claims to have only a part of the file.
    pub partial: bool,
    /// The key of the provider. Keys follow the random order of tracker replies.
    pub key: ProviderKey,
}

/// Returns the candidates in the order in which to connect them. Among equals, complete and partial providers alternate:
/// complete providers have every piece, and partial providers take load off them.
pub fn connection_order(mut candidates: Vec<Candidate>) -> Vec<ProviderKey> {
    candidates.sort_unstable();
    let group = |candidate: &Candidate| (candidate.unproven, candidate.failures, candidate.partial);
    let equals = candidates.chunk_by(|a, b| group(a) == group(b));
    let mut ranked: Vec<_> = equals.flat_map(|group| group.iter().enumerate()).collect();
    ranked.sort_by_key(|(rank, candidate)| (candidate.unproven, candidate.failures, *rank));
    ranked.into_iter().map(|(_, candidate)| candidate.key).collect()
}

/// What the providers of a schedule have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Others {
    /// Whether there are partial providers.
    pub(super) partial: bool,
    /// Whether any provider has delivered a piece.
    pub(super) deliver: bool,
}

#[derive(Debug)]
pub(super) struct ProviderState {
    pub(super) have: Bits,
    /// Whether the provider has the whole file. Its pieces do not count for the rarity.
    pub(super) complete: bool,
    /// The pieces that the provider sent to other peers, by its own account.
    pub(super) already_sent: Option<Bits>,
    pub(super) in_flight: Vec<PieceIndex>,
    pub(super) window: Window,
    pub(super) rate: ArrivalRate,
    /// The recent minimum latency of a piece.
    pub(super) min_latency: Option<Duration>,
    /// The latency of a short reply.
    pub(super) round_trip: Option<Duration>,
    /// Whether other partial providers are much nearer.
    pub(super) distant: bool,
}

impl ProviderState {
    /// The state of a provider whose pieces are not yet counted, as for a complete provider.
    pub(super) fn new(layout: PieceLayout, now: Duration) -> Self {
        Self {
            have: Bits::empty(layout.count()),
            complete: true,
            already_sent: None,
            in_flight: Vec::new(),
            window: Window::new(layout),
            rate: ArrivalRate::new(now),
            min_latency: None,
            round_trip: None,
            distant: false,
        }
    }

    /// Records a piece, with the time since its request if it was requested from this provider.
    pub(super) fn piece_arrived(&mut self, piece: PieceIndex, latency: Option<Duration>, now: Duration) {
        self.in_flight.retain(|&other| other != piece);
        self.rate.arrived(now);
        self.window.arrived(latency, now);
        if let Some(latency) = latency {
            // Grows slowly, to follow a path that becomes longer.
            let min = self.min_latency.map_or(latency, |before| latency.min(before + before / 64));
            self.min_latency = Some(min);
        }
    }

    /// Returns the expected time until one more requested piece arrives, after those in flight.
    pub(super) fn expected_time(&self, now: Duration) -> Duration {
        let rate = self.rate.per_second(now);
        let ahead = self.in_flight.len() as f64;
        match self.min_latency {
            Some(latency) => latency + Duration::from_secs_f64((ahead / rate.max(0.01)).min(60.0)),
            None => {
                let latency = DEFAULT_LATENCY + self.round_trip.unwrap_or_default();
                latency * (self.in_flight.len() as u32 + 1)
            }
        }
    }

    /// Returns an upper bound of the round trip time.
    pub(super) fn distance(&self) -> Option<Duration> {
        self.round_trip
            .map(|round_trip| self.min_latency.map_or(round_trip, |latency| latency.min(round_trip)))
    }

    pub(super) fn has_free_slot(&self, others: Others, now: Duration) -> bool {
        self.in_flight.len() < self.max_in_flight(others, now)
    }

    /// Returns the maximum number of requests in flight.
    ///
    /// If several providers can send a piece, a piece in a long queue is not available to those that could send it at
    /// once. So there are only as many requests as keep the provider busy: a multiple of the bandwidth-delay product. A
    /// provider that has delivered nothing gets one request if others deliver, so that slow ones do not use the budget.
    fn max_in_flight(&self, others: Others, now: Duration) -> usize {
        let window = self.window.limit();
        match self.min_latency {
            None if others.deliver || others.partial => window.min(1),
            Some(latency) if others.partial => {
                let product = self.rate.per_second(now) * latency.as_secs_f64();
                window.min(1 + (PIPELINE_FACTOR * product).round() as usize)
            }
            _ => window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proven_come_first_complete_and_partial_alternate_failed_come_last() {
        let candidate = |key, failures, partial| Candidate {
            unproven: key < 5,
            key: ProviderKey(key),
            failures,
            partial,
        };
        let all = vec![
            candidate(0, 1, false),
            candidate(1, 0, false),
            candidate(2, 0, false),
            candidate(3, 0, false),
            candidate(4, 0, true),
            candidate(5, 2, false),
        ];
        let keys: Vec<_> = connection_order(all).into_iter().map(|key| key.0).collect();
        assert_eq!(keys, [5, 1, 4, 2, 3, 0]);
    }
}
