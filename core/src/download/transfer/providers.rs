//! The providers of a transfer: who they are, who is joined, who rests and who is left out.

use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use tokio::time::Instant;

use super::{Active, Arrived, Busy, Event, Joined, Known, Open, State, Transfer};
use crate::download::DownloadError;
use crate::download::choice::{self, Candidate};
use crate::download::schedule::{ProviderKey, Question};
use crate::download::source::{self, Fault, Reached};
use crate::download::wanted::Parts;
use crate::machine;
use crate::model::bitmap::Bitmap;
use crate::model::id::FileId;
use crate::model::layout::{PieceIndex, PieceLayout};
use crate::model::record::Provider;
use crate::protocol::message::HaveWait;
use crate::transport::Deadline;

/// How often a provider that has only a part is asked what it has by now, where it does not wait with its answer
/// until that is something new.
const HAVE_AGAIN: Duration = Duration::from_millis(500);
/// The least between two such questions. An honest provider collects for longer what it tells.
const HAVE_APART: Duration = Duration::from_millis(10);
/// After so many refusals in a row, because the pieces were given to somebody else, a source is left alone for a moment
/// after each.
const REFUSALS: u32 = 16;
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// How long the trackers are left alone at first. Twice as long each time: those who begin at the same time find each
/// other at once, and later there is no hurry.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest that becomes when there are enough providers, and when there are too few.
const PROVIDERS_AGAIN: Duration = Duration::from_secs(15);
const PROVIDERS_SOON: Duration = Duration::from_secs(2);
/// How many providers are remembered.
const MAX_KNOWN: usize = 1000;
/// How long somebody that downloads too may have nothing of use.
const PROBATION: Duration = Duration::from_secs(5);
/// The first and the longest pause after a provider was away.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The pause after a provider was busy, where it does not ask for a longer one: twice as long each time in a row.
const FIRST_BUSY: Duration = Duration::from_millis(50);
const LONGEST_BUSY: Duration = Duration::from_millis(500);
/// Providers that are asked at once to prove the file's size and hashes.
const PROVERS: usize = 3;
/// Where few providers are enough, there is one more of them after each of these.
const ONE_MORE: Duration = Duration::from_millis(500);
/// How often it is looked for somebody at work who is in the way of another.
const REVIEW: Duration = Duration::from_millis(100);

impl Transfer<'_> {
    pub(super) fn ask_for_providers(&mut self) {
        let now = Instant::now();
        if self.asking_providers || now < self.providers_at {
            return;
        }
        self.asking_providers = true;
        let source = Arc::clone(&self.wanted.providers);
        let id = self.wanted.announced_as;
        self.events.push(async move { Event::Providers(source.providers(&id).await) }.boxed());
    }

    pub(super) fn join_providers(&mut self) {
        let now = Instant::now();
        let mut at_work = self
            .known
            .values()
            .filter(|known| matches!(known.state, State::Active(_) | State::Joining))
            .count();
        let so_long = (self.clock().as_millis() / ONE_MORE.as_millis()) as usize;
        let (prove, most) = match &self.open {
            None => (true, PROVERS.min(1 + so_long)),
            // Of a file of few pieces most providers would only be asked what they have.
            Some(Open { file, .. }) => {
                let of_use = (file.layout().count() as usize * 2).saturating_add(so_long);
                (false, self.parts.settings.max_providers.min(of_use))
            }
        };
        if at_work >= most {
            // There may be a thousand others, and most events change nothing about those who are at work.
            if now < self.review_at {
                return;
            }
            self.review_at = now + REVIEW;
        }
        let idle =
            self.known.iter().filter(|(_, known)| matches!(known.state, State::Idle { from } if now >= from));
        let candidates = idle.map(|(&key, known)| Candidate {
            key,
            failures: known.failures,
            complete: known.provider.complete,
        });
        let candidates = choice::order(candidates.collect());
        for key in candidates {
            if at_work >= most {
                // Those who have nothing that is missing must not keep out who may have it.
                let Some(useless) = self.useless() else { break };
                self.rest(useless, now + LONGEST_REST);
                at_work -= 1;
            }
            let Some(known) = self.known.get_mut(&key) else { continue };
            known.state = State::Joining;
            at_work += 1;
            let parts = Arc::clone(self.parts);
            let provider = known.provider.clone();
            let (id, size) = (self.wanted.id, self.wanted.proven_size);
            let join = async move { Event::Joined(key, join(&parts, &provider, id, size, prove).await) };
            self.events.push(join.boxed());
        }
    }

    /// A provider at work that has nothing which is still missing, or has owed everything for long.
    fn useless(&self) -> Option<ProviderKey> {
        let Some(Open { schedule, .. }) = &self.open else { return None };
        let now = Instant::now();
        let stalled = self.stalled(now);
        let mut at_work = self.known.iter().filter(|(_, known)| matches!(known.state, State::Active(_)));
        at_work
            .find(|&(&key, known)| {
                let State::Active(active) = &known.state else { return false };
                let hopeless = active.complete || now >= active.since + PROBATION;
                (hopeless && !schedule.is_useful(key)) || stalled.contains(&key)
            })
            .map(|(&key, _)| key)
    }

    /// Lets a provider go that was at work, until this time.
    fn rest(&mut self, key: ProviderKey, from: Instant) {
        if let Some(known) = self.known.get_mut(&key) {
            known.state = State::Idle { from };
            // Others come first from now on.
            known.failures += 1;
        }
        self.drop_provider(key);
    }

    /// Takes a provider out of the schedule and calls off what was asked of it.
    pub(super) fn drop_provider(&mut self, key: ProviderKey) {
        if let Some(open) = &mut self.open {
            open.schedule.remove_provider(key);
        }
        self.calls.retain(|(provider, _), call| {
            if *provider == key {
                call.abort.abort();
            }
            *provider != key
        });
    }

    pub(super) fn ask_what_they_have(&mut self) {
        let now = Instant::now();
        for (&key, known) in &mut self.known {
            let State::Active(active) = &mut known.state else { continue };
            if active.complete || active.have_again.is_none_or(|again| now < again) {
                continue;
            }
            active.have_again = None;
            active.have_asked = now;
            let wait = HaveWait {
                known: active.pieces,
                // Well before silence would be taken for the end of the connection.
                millis: u64::try_from(self.parts.settings.silence.as_millis() / 2).unwrap_or(u64::MAX),
            };
            let connection = Arc::clone(&active.connection);
            let (id, since) = (self.wanted.id, active.since);
            let deadline = Deadline::Silence(self.parts.settings.silence);
            let ask = async move {
                Event::Have(key, since, source::have(&*connection, id, Some(wait), deadline).await)
            };
            self.events.push(ask.boxed());
        }
    }

    pub(super) fn on_providers(&mut self, result: Result<Vec<Provider>, String>) {
        self.asking_providers = false;
        let now = Instant::now();
        match result {
            Ok(providers) => {
                if providers.is_empty() {
                    self.last_fault = Some("the trackers know of no living peer that offers it".to_owned());
                }
                for provider in providers.into_iter().filter(|provider| Some(provider.peer) != self.parts.me)
                {
                    let is_new = !self.keys.contains_key(&provider.peer);
                    if is_new && self.known.len() >= MAX_KNOWN && !self.forget_one() {
                        continue;
                    }
                    let key = *self.keys.entry(provider.peer).or_insert(ProviderKey(self.next_key));
                    self.next_key += u32::from(is_new);
                    let known = self.known.entry(key).or_insert_with(|| Known {
                        peer: provider.peer,
                        provider: provider.clone(),
                        state: State::Idle { from: now },
                        failures: 0,
                        busy: None,
                    });
                    // A peer that came back elsewhere need not rest for what it did there.
                    if known.provider.endpoints != provider.endpoints
                        && let State::Idle { from } = &mut known.state
                    {
                        *from = now;
                    }
                    known.provider = provider;
                }
            }
            Err(reason) => self.last_fault = Some(reason),
        }
        let at_work = self.known.values().filter(|known| matches!(known.state, State::Active(_))).count();
        let enough = at_work >= self.parts.settings.max_providers.min(4);
        let most = if enough { PROVIDERS_AGAIN } else { PROVIDERS_SOON };
        self.providers_at = now + self.providers_pause.min(most);
        self.providers_pause = (self.providers_pause * 2).min(PROVIDERS_AGAIN);
    }

    /// Forgets the one that failed most, or lied: a thousand of them must not keep out who comes later. Whether there
    /// was one.
    fn forget_one(&mut self) -> bool {
        let failed = self.known.iter().filter_map(|(&key, known)| match known.state {
            State::Idle { .. } if known.failures > 0 => Some((known.failures, key)),
            State::Banned => Some((0, key)),
            _ => None,
        });
        let Some((_, key)) = failed.max() else { return false };
        self.known.remove(&key).is_some_and(|known| self.keys.remove(&known.peer).is_some())
    }

    pub(super) async fn on_joined(&mut self, key: ProviderKey, joined: Joined) -> Result<(), DownloadError> {
        let Joined { reached: Reached { connection, layout, have, round_trip }, proof } = joined;
        if self.open.is_none() {
            let Some((manifest, last)) = proof else {
                // It has not the last piece, which proves the size.
                self.on_fault(key, Fault::NotHere);
                return Ok(());
            };
            self.create(manifest).await?;
            if let (Some((content, permit)), Some(piece)) = (last, layout.last())
                && let Some(open) = &mut self.open
                && open.schedule.arrived(key, piece, self.begun.elapsed()).wanted
            {
                self.to_keep.push(Arrived { from: key, piece, content, _permit: permit });
            }
        }
        let Some(known) = self.known.get_mut(&key) else { return Ok(()) };
        let now = Instant::now();
        known.state = State::Active(Active {
            connection,
            since: now,
            complete: false,
            pieces: 0,
            have_again: None,
            have_asked: now,
            busy_until: None,
            delivered: now,
            refusals: 0,
        });
        self.on_have(key, layout, have);
        if let Some(Open { schedule, .. }) = &mut self.open {
            schedule.set_round_trip(key, round_trip);
        }
        if let Some(Known { state: State::Active(active), .. }) = self.known.get_mut(&key) {
            // That was not asked so that it waits for news; the next question is.
            active.have_again = Some(now);
        }
        Ok(())
    }

    /// The answer to the question what a provider has by now.
    pub(super) fn on_answer(
        &mut self,
        key: ProviderKey,
        since: Instant,
        result: Result<(PieceLayout, Bitmap), Fault>,
    ) {
        let Some(Known { state: State::Active(active), .. }) = self.known.get_mut(&key) else { return };
        if active.since != since {
            return;
        }
        match result {
            Ok((layout, have)) => self.on_have(key, layout, have),
            Err(fault) => {
                // A busy one stays and is asked again.
                active.have_again = Some(Instant::now() + HAVE_AGAIN);
                self.on_fault(key, fault);
            }
        }
    }

    fn on_have(&mut self, key: ProviderKey, layout: PieceLayout, have: Bitmap) {
        let now = self.clock();
        let (Some(Open { schedule, file }), Some(known)) = (&mut self.open, self.known.get_mut(&key)) else {
            return;
        };
        let State::Active(active) = &mut known.state else { return };
        if layout != file.manifest().layout() {
            // The size is proven, and it is another.
            self.on_fault(key, Fault::Lie("another size than the file has"));
            return;
        }
        let asked_long_ago = active.have_asked.elapsed() >= HAVE_AGAIN;
        let news = have.count() > active.pieces || asked_long_ago;
        active.complete = have.is_full();
        active.pieces = have.count();
        // Without news the answer did not wait for any. Who has some all the time need not be heard all the time.
        let again = if news { active.have_asked + HAVE_APART } else { Instant::now() + HAVE_AGAIN };
        active.have_again = Some(again);
        schedule.set_provider(key, &have, now);
    }

    /// The provider gave the piece to somebody else, as it did with all of this bitmap.
    pub(super) fn on_elsewhere(&mut self, key: ProviderKey, piece: PieceIndex, given: &[u8]) {
        let Some(Open { schedule, file }) = &mut self.open else { return };
        if let Some(Known { state: State::Active(active), .. }) = self.known.get_mut(&key) {
            active.refusals += 1;
            if active.refusals > REFUSALS {
                active.busy_until = Some(Instant::now() + REFUSED_PAUSE);
            }
        }
        match Bitmap::from_bytes(file.layout(), given) {
            Ok(given) => schedule.elsewhere(key, piece, &given),
            Err(_) => {
                schedule.failed(key, piece);
                self.on_fault(key, Fault::Lie("a bitmap of another size"));
            }
        }
    }

    pub(super) fn on_fault(&mut self, key: ProviderKey, fault: Fault) {
        let Some(known) = self.known.get_mut(&key) else { return };
        if matches!(known.state, State::Banned) {
            return;
        }
        let now = Instant::now();
        tracing::debug!(peer = %known.peer.short(), %fault, "a provider failed");
        self.last_fault = Some(format!("peer {}: {fault}", known.peer.short()));
        if let (Fault::Busy { retry_after }, State::Active(active)) = (&fault, &mut known.state) {
            // All that was asked of it at once is refused at once, and counts as one refusal.
            if active.busy_until.is_none_or(|until| now >= until) {
                active.busy_until = Some(now + Busy::again(&mut known.busy, now, *retry_after));
            }
            if let Some(open) = &mut self.open {
                open.schedule.busy(key);
            }
            return;
        }
        known.state = match fault {
            Fault::Lie(what) => {
                tracing::warn!(peer = %known.peer, id = %self.wanted.id, what, "a provider is left out: it lied");
                State::Banned
            }
            Fault::Busy { retry_after } => {
                known.failures += 1;
                State::Idle { from: now + Busy::again(&mut known.busy, now, retry_after) }
            }
            Fault::Elsewhere(_) => return,
            // A peer that was just announced may have its first piece any moment.
            Fault::NotHere => State::Idle { from: now + HAVE_AGAIN },
            Fault::Away(_) | Fault::Refused(_) => {
                let rest = FIRST_REST.saturating_mul(1 << known.failures.min(6)).min(LONGEST_REST);
                known.failures += 1;
                State::Idle { from: now + rest }
            }
        };
        self.drop_provider(key);
        self.providers_at = self.providers_at.min(now + FIRST_REST);
    }
}

impl Busy {
    /// It was busy once more: for how long it is left alone now.
    fn again(busy: &mut Option<Self>, now: Instant, retry_after: Duration) -> Duration {
        let busy = busy.get_or_insert(Self { since: now, times: 0 });
        let pause = FIRST_BUSY.saturating_mul(1 << busy.times.min(16)).min(LONGEST_BUSY);
        busy.times = busy.times.saturating_add(1);
        pause.max(retry_after)
    }
}

async fn join(
    parts: &Parts,
    provider: &Provider,
    id: FileId,
    proven_size: Option<u64>,
    prove: bool,
) -> Result<Box<Joined>, Fault> {
    let deadline = Deadline::Silence(parts.settings.silence);
    let reached = parts.in_time(source::join(&parts.dialer, provider, id, deadline)).await?;
    let Reached { connection, layout, have, .. } = &reached;
    let layout = *layout;
    if proven_size.is_some_and(|size| size != layout.size()) {
        // Whoever keeps files within a quota relies on it.
        return Err(Fault::Lie("another size than the file has"));
    }
    let mut proof = None;
    if prove {
        let manifest = parts.in_time(source::manifest(&**connection, id, layout, deadline)).await?;
        match layout.last() {
            None => proof = Some((manifest, None)),
            // Only the last piece proves the size.
            Some(last) if have.contains(last) => {
                let room = Arc::clone(&parts.budget).acquire_many_owned(Parts::units(layout)).await;
                let permit = room.map_err(|_| Fault::Refused("the downloads are closed".to_owned()))?;
                parts.limit.take(layout.len(last)).await;
                let question = Question { piece: last, sparing: false };
                let asked = source::piece(&**connection, connection.next_id(), id, question, deadline);
                let content =
                    parts.in_time(asked).await.inspect_err(|_| parts.limit.give_back(layout.len(last)))?;
                let (manifest, content, good) = machine::spawn_blocking(move || {
                    let good = manifest.piece_is(last, &content);
                    (manifest, content, good)
                })
                .await
                .map_err(|_| Fault::Refused("hashing was interrupted".to_owned()))?;
                if !good {
                    return Err(Fault::Lie("a last piece that does not fit the size"));
                }
                proof = Some((manifest, Some((content, permit))));
            }
            Some(_) => {}
        }
    }
    Ok(Box::new(Joined { reached, proof }))
}
