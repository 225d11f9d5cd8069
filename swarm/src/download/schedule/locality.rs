//! Preference for nearby partial providers.
//!
//! Measures whether the nearby providers suffice: first all providers are used for a while, then the nearby ones, and if
//! the rate drops, all of them again.

use std::time::Duration;

use super::bits::Bits;
use super::provider::{ProviderKey, ProviderState};
use enjambre_core::runtime::HashMap;
use enjambre_core::runtime::backoff::Backoff;

/// A provider is distant if its distance exceeds this multiple of the nearest one's plus a margin.
const DISTANT_FACTOR: u32 = 4;
const DISTANT_MARGIN: Duration = Duration::from_millis(5);
/// How long the rate of all providers is measured.
const MEASURE_TIME: Duration = Duration::from_millis(500);
/// The nearby providers suffice if after this time they deliver this share of the rate of all providers.
const SETTLE_TIME: Duration = Duration::from_secs(2);
const SUFFICIENT_SHARE: f64 = 0.8;
/// How long all providers are used if the nearby ones do not suffice: initially, and the maximum of the backoff, which is
/// also the interval of new measurements.
const MIN_ALL_TIME: Duration = Duration::from_secs(8);
const RETRY_INTERVAL: Duration = Duration::from_secs(64);

/// The providers that are asked for pieces that nearby ones have.
#[derive(Debug, Clone, Copy)]
enum Scope {
    /// All partial providers, until this time.
    All { until: Duration },
    /// The nearby ones since this time, with the rate of all providers before that, in pieces per second.
    Nearby { since: Duration, rate_of_all: f64 },
}

#[derive(Debug)]
pub(super) struct Locality {
    pieces: u32,
    /// The pieces that nearby providers have, and whether they are out of date.
    nearby: Bits,
    is_stale: bool,
    /// `None` if no provider is distant.
    scope: Option<Scope>,
    /// The time for which all providers are used if the nearby ones do not suffice.
    all_time: Backoff,
}

impl Locality {
    pub(super) fn new(pieces: u32) -> Self {
        Self {
            pieces,
            nearby: Bits::empty(pieces),
            is_stale: false,
            scope: None,
            all_time: Backoff::new(MIN_ALL_TIME, RETRY_INTERVAL),
        }
    }

    pub(super) const fn providers_changed(&mut self) {
        self.is_stale = true;
    }

    /// Returns the pieces that nearby providers have, if those providers suffice.
    pub(super) fn nearby_pieces(&self) -> Option<&Bits> {
        matches!(self.scope, Some(Scope::Nearby { .. })).then_some(&self.nearby)
    }

    /// Determines which partial providers are distant, and whether the others suffice.
    pub(super) fn update(&mut self, providers: &mut HashMap<ProviderKey, ProviderState>, now: Duration) {
        let partial = providers.values().filter(|state| !state.complete);
        let nearest = partial.filter_map(ProviderState::distance).min();
        let limit = nearest.map_or(Duration::MAX, |nearest| nearest * DISTANT_FACTOR + DISTANT_MARGIN);
        let (mut nearby_rate, mut rate_of_all, mut any_distant) = (0.0, 0.0, false);
        for state in providers.values_mut().filter(|state| !state.complete) {
            let distant = state.distance().is_some_and(|distance| distance > limit);
            self.is_stale |= std::mem::replace(&mut state.distant, distant) != distant;
            let rate = state.rate.per_second(now);
            rate_of_all += rate;
            nearby_rate += if distant { 0.0 } else { rate };
            any_distant |= distant;
        }
        self.scope = any_distant.then(|| match self.scope {
            None => Scope::All { until: now + MEASURE_TIME },
            Some(Scope::All { until }) if now >= until => Scope::Nearby { since: now, rate_of_all },
            Some(Scope::Nearby { since, rate_of_all })
                if now >= since + SETTLE_TIME && nearby_rate < rate_of_all * SUFFICIENT_SHARE =>
            {
                Scope::All { until: now + self.all_time.next_delay() }
            }
            Some(Scope::Nearby { since, .. }) if now >= since + RETRY_INTERVAL => {
                self.all_time.reset();
                Scope::All { until: now + MEASURE_TIME }
            }
            Some(scope) => scope,
        });
        if self.nearby_pieces().is_some() && std::mem::take(&mut self.is_stale) {
            self.nearby = Bits::empty(self.pieces);
            let nearby = providers.values().filter(|state| !state.complete && !state.distant);
            nearby.for_each(|state| self.nearby.extend(&state.have));
        }
    }
}
