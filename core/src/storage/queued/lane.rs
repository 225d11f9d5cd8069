//! A commit lane: a writer that commits groups of batches one after the other.
//!
//! A group is one transaction. If the server refuses it, the lane reads the keys of its conditions, leaves out the batches that
//! conflict, and commits the others. If the outcome of a transaction is unknown, the lane looks it up: it replaces the value of
//! its claim that the transaction requires, so the transaction is applied before that or never.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::QueuedSettings;
use super::claim::{Claim, META, identity_key};
use super::merge::{Known, Verdict, merge};
use super::remote::{Remote, TransactError, Transacted};
use crate::model::time::human;
use crate::runtime::backoff::Backoff;
use crate::storage::error::{Source, StorageError};
use crate::storage::inspect::with_causes;
use crate::storage::value::{Batch, Condition, Durability, Key, Space};

/// The timeout of the last commit and the removal of the claim.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// The delays before a retry after a concurrent transaction has interfered.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(5);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(20);
/// The delays between attempts to look up the outcome of a transaction.
const MIN_LOOKUP_DELAY: Duration = Duration::from_millis(50);
const MAX_LOOKUP_DELAY: Duration = Duration::from_millis(200);

/// The error of a group. Nothing is applied, except possibly for [`CommitError::Unknown`].
#[derive(Debug)]
pub(super) enum CommitError {
    /// The server is unavailable, whatever the batches.
    Unavailable(StorageError),
    /// The server rejected one of the batches or their total size.
    Rejected(StorageError),
    /// Another transaction holds a lock.
    Contended(StorageError),
    /// The outcome is unknown, for the given reason. The verdicts are those of the batches if the group is applied.
    Unknown(String, Vec<Verdict>),
}

impl From<StorageError> for CommitError {
    fn from(error: StorageError) -> Self {
        match error {
            // Each batch of the group would fail in the same way.
            StorageError::Unavailable { .. } | StorageError::Locked { .. } => Self::Unavailable(error),
            error => Self::Rejected(error),
        }
    }
}

/// The state of the claim of a lane.
#[derive(Debug, Clone)]
enum State {
    /// The claim is not in the database.
    New,
    /// The claim has its stored value.
    Held,
    /// The transaction that stores this value has an unknown outcome.
    Unresolved(Bytes),
    /// The lane cannot write any more.
    Lost(StorageError),
}

/// The state of the lookup of an outcome.
#[derive(Debug)]
struct Lookup {
    /// The value that the transaction stores in the claim.
    next: Bytes,
    /// The value of the latest attempt, whose outcome may be unknown, too.
    replacement: Option<Bytes>,
    /// Whether the transaction is known to be applied.
    applied: bool,
}

impl Lookup {
    fn outcome(&self) -> Transacted {
        if self.applied { Transacted::Applied } else { Transacted::Refused }
    }
}

/// A commit lane.
#[derive(Debug)]
pub(super) struct Lane {
    remote: Arc<dyn Remote>,
    settings: Arc<QueuedSettings>,
    /// The identity of the database.
    identity: Bytes,
    /// The id of the data directory, if only one process may write.
    owner: Option<String>,
    claim: Claim,
    state: State,
    /// Whether commits since the last durable one may not be durable yet.
    unsynced: bool,
}

impl Lane {
    pub(super) fn new(
        remote: Arc<dyn Remote>,
        settings: Arc<QueuedSettings>,
        owner: Option<String>,
        identity: Bytes,
    ) -> Self {
        let claim = Claim::new(owner.as_deref());
        Self { remote, settings, identity, owner, claim, state: State::New, unsynced: false }
    }

    /// Returns a second lane, or `None` if the database has an owner.
    pub(super) fn second(&self) -> Option<Self> {
        (!self.is_owner())
            .then(|| Self::new(self.remote.clone(), self.settings.clone(), None, self.identity.clone()))
    }

    pub(super) fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// The time limit for the retries of a group.
    pub(super) fn retry_timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Commits the batches in one transaction. `lock_timeout` limits how long a buffered commit waits for locks.
    ///
    /// Commits of an owner are always durable: an owner caches its records, for example the stored pieces, and might not notice
    /// that a crash of the server lost them.
    pub(super) async fn commit(
        &mut self,
        batches: &[&Batch],
        durability: Durability,
        lock_timeout: Duration,
    ) -> Result<Vec<Verdict>, CommitError> {
        let durability = if self.is_owner() { Durability::Durable } else { durability };
        let deadline = Instant::now() + self.retry_timeout();
        let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        let mut known = Known::default();
        // A connection may have failed unnoticed, so the first failure is not final.
        let mut may_retry = true;
        loop {
            let merged = merge(batches, &known);
            let applies = batches.is_empty() || merged.verdicts.contains(&Verdict::Applied);
            let changes = !(merged.conditions.is_empty() && merged.writes.is_empty());
            if !applies || !(changes || durability == Durability::Durable) {
                return Ok(merged.verdicts);
            }
            self.ensure_claim().await?;
            let next = self.claim.after(1);
            let batch = Batch { conditions: merged.conditions.clone(), writes: merged.writes };
            let outcome = match self.transact(batch, next.clone(), durability, lock_timeout).await {
                Err(TransactError::Unknown(source)) => self.resolve(next, source, durability).await,
                outcome => outcome,
            };
            match outcome {
                Ok(Transacted::Applied) => {
                    self.unsynced = durability == Durability::Buffered;
                    return Ok(merged.verdicts);
                }
                Ok(Transacted::Refused) => {
                    self.read_known(&merged.conditions, &mut known).await?;
                    if Instant::now() > deadline {
                        let reason = "concurrent transactions interfered".to_owned();
                        return Err(CommitError::Unavailable(StorageError::Unavailable { reason }));
                    }
                    if merge(batches, &known).verdicts == merged.verdicts {
                        sleep(backoff.next_jittered()).await;
                    }
                }
                Err(TransactError::NotApplied(StorageError::Unavailable { .. }))
                    if std::mem::take(&mut may_retry) && Instant::now() < deadline => {}
                Err(TransactError::NotApplied(error)) => return Err(error.into()),
                Err(TransactError::Contended(error)) => return Err(CommitError::Contended(error)),
                Err(TransactError::Unknown(source)) => {
                    let reason = with_causes(&*source);
                    return Err(CommitError::Unknown(reason, merged.verdicts));
                }
            }
        }
    }

    /// Runs a transaction that requires the claim and stores its next value.
    async fn transact(
        &mut self,
        mut batch: Batch,
        next: Bytes,
        durability: Durability,
        lock_timeout: Duration,
    ) -> Result<Transacted, TransactError> {
        self.claim.require(&mut batch);
        batch.put(META, self.claim.key.clone(), next.clone());
        let outcome = self.run(batch, durability, lock_timeout).await;
        if matches!(outcome, Ok(Transacted::Applied)) {
            self.claim.advance(next);
        }
        outcome
    }

    async fn run(
        &self,
        batch: Batch,
        durability: Durability,
        lock_timeout: Duration,
    ) -> Result<Transacted, TransactError> {
        super::transact(&*self.remote, &self.settings, batch, durability, lock_timeout).await
    }

    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        super::get(&*self.remote, &self.settings, space, keys).await
    }

    async fn stored_claim(&self) -> Result<Option<Bytes>, StorageError> {
        Ok(self.get(META, std::slice::from_ref(&self.claim.key)).await?.remove(0))
    }

    /// Reads the keys of the conditions, and checks the claim. Earlier values stay known, because a batch whose condition did not
    /// hold at any time of its commit conflicts.
    async fn read_known(&mut self, conditions: &[Condition], known: &mut Known) -> Result<(), StorageError> {
        if self.stored_claim().await?.as_ref() != Some(&self.claim.stored) {
            self.state = State::New;
        }
        for same_space in conditions.chunk_by(|one, next| one.target().0 == next.target().0) {
            let space = same_space[0].target().0;
            let keys: Vec<Key> = same_space.iter().map(|condition| condition.target().1.clone()).collect();
            let values = self.get(space, &keys).await?;
            known.extend(keys.into_iter().map(|key| (space, key)).zip(values));
        }
        Ok(())
    }

    /// Makes the claim if it is not in the database. An owner whose claim was removed stops instead, because another process may
    /// have changed the records that it caches.
    async fn ensure_claim(&mut self) -> Result<(), CommitError> {
        loop {
            match self.state.clone() {
                State::Held => return Ok(()),
                State::Lost(error) => return Err(CommitError::Unavailable(error)),
                State::Unresolved(next) => {
                    let source = "the outcome of an earlier commit is unknown".into();
                    match self.resolve(next, source, Durability::Durable).await {
                        Err(error @ TransactError::Unknown(_)) => {
                            return Err(CommitError::Unavailable(error.into()));
                        }
                        _ => continue,
                    }
                }
                State::New => {}
            }
            let identity = self.get(META, &[identity_key()]).await?;
            if identity != [Some(self.identity.clone())] {
                let what = format!("{} was emptied or replaced; restart the node", self.remote.description());
                self.state = State::Lost(StorageError::corrupt(what));
            } else if self.is_owner() {
                let stored = self.stored_claim().await?;
                self.state = State::Lost(match stored {
                    Some(stored) if !self.claim.is_own(&stored) => {
                        StorageError::Locked { path: self.remote.description().into() }
                    }
                    _ => StorageError::corrupt(format!(
                        "{} lost acknowledged commits, for example because a backup was restored; restart the node",
                        self.remote.description()
                    )),
                });
            } else {
                self.claim = Claim::new(None);
                self.make_claim(None).await?;
            }
        }
    }

    /// Makes the claim of an owner: at once if the database has none or that of the same data directory, or else after it was not
    /// renewed for the lease.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if the owner renews its claim.
    pub(super) async fn take_ownership(&mut self) -> Result<(), StorageError> {
        let mut stored = self.stored_claim().await?;
        if let Some(value) = &stored
            && !self.claim.is_of_same_folder(value)
        {
            let lease = self.settings.lease();
            let name = self.remote.description();
            tracing::warn!(database = name, lease = %human(lease), "another data directory owns the database, waiting for its lease");
            let end = Instant::now() + lease;
            while Instant::now() < end {
                sleep(lease / 20).await;
                let current = self.stored_claim().await?;
                if current.is_some() && current != stored {
                    return Err(StorageError::Locked { path: name.into() });
                }
                stored = current;
                if stored.is_none() {
                    break;
                }
            }
        }
        self.make_claim(stored).await
    }

    /// Stores the claim in place of an earlier one.
    async fn make_claim(&mut self, earlier: Option<Bytes>) -> Result<(), StorageError> {
        let mut batch = Batch::new();
        batch.require(META, identity_key(), self.identity.clone());
        match earlier {
            Some(earlier) => batch.require(META, self.claim.key.clone(), earlier),
            None => batch.require_absent(META, self.claim.key.clone()),
        };
        batch.put(META, self.claim.key.clone(), self.claim.stored.clone());
        let durability = if self.is_owner() { Durability::Durable } else { Durability::Buffered };
        match self.run(batch, durability, self.retry_timeout()).await? {
            Transacted::Applied => {
                self.state = State::Held;
                Ok(())
            }
            Transacted::Refused => Err(StorageError::Unavailable {
                reason: "another process changed the claims of writers at the same time".to_owned(),
            }),
        }
    }

    /// Looks up the outcome of the transaction that stores `next` in the claim. Waits for the server up to the retry timeout.
    async fn resolve(
        &mut self,
        next: Bytes,
        source: Source,
        durability: Durability,
    ) -> Result<Transacted, TransactError> {
        let deadline = Instant::now() + self.retry_timeout();
        let mut backoff = Backoff::new(MIN_LOOKUP_DELAY, MAX_LOOKUP_DELAY);
        let mut lookup = Lookup { next, replacement: None, applied: false };
        let mut reason = "the server did not reply".to_owned();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let attempt = timeout(left, self.look_up(&mut lookup, durability)).await;
            match attempt.unwrap_or(Ok(None)) {
                Ok(Some(outcome)) => {
                    tracing::info!(?outcome, "a commit was interrupted, and its outcome looked up");
                    return match outcome {
                        Transacted::Applied => Ok(outcome),
                        Transacted::Refused => {
                            let reason = with_causes(&*source);
                            Err(StorageError::Unavailable { reason }.into())
                        }
                    };
                }
                Ok(None) => {}
                Err(error) => reason = error.to_string(),
            }
            sleep(backoff.next_delay()).await;
        }
        // The transaction may continue at the server. Another claim does not depend on it, but an owner has only one.
        self.state = if self.is_owner() { State::Unresolved(lookup.next) } else { State::New };
        let source = with_causes(&*source);
        Err(TransactError::Unknown(format!("{source}; looking up the outcome failed: {reason}").into()))
    }

    /// Makes an attempt to look up an outcome. Returns `None` if it is still open.
    ///
    /// The attempt replaces the value that the transaction requires. If that succeeds, the transaction is not and will never be
    /// applied. A durable transaction that is applied may have been interrupted while it waited for the disk or a replica, and
    /// the next replacement waits again.
    async fn look_up(
        &mut self,
        lookup: &mut Lookup,
        durability: Durability,
    ) -> Result<Option<Transacted>, StorageError> {
        let replacement = lookup.replacement.get_or_insert_with(|| self.claim.after(2)).clone();
        let outcome =
            self.transact(Batch::new(), replacement.clone(), durability, self.retry_timeout()).await;
        match outcome {
            Ok(Transacted::Applied) => {
                self.state = State::Held;
                return Ok(Some(lookup.outcome()));
            }
            Ok(Transacted::Refused) => {}
            Err(TransactError::NotApplied(error) | TransactError::Contended(error)) => return Err(error),
            Err(TransactError::Unknown(_)) => return Ok(None),
        }
        let stored = self.stored_claim().await?;
        let Some(stored) = stored.filter(|stored| self.claim.is_not_before(stored)) else {
            // The claim was removed or taken over, so the transaction cannot be applied any more.
            self.state = State::New;
            return Ok((!lookup.applied).then_some(Transacted::Refused));
        };
        if stored == self.claim.stored {
            return Ok(None);
        }
        lookup.applied |= stored == lookup.next;
        lookup.replacement = None;
        self.claim.advance(stored);
        if lookup.applied && durability == Durability::Durable {
            return Ok(None);
        }
        self.state = State::Held;
        Ok(Some(lookup.outcome()))
    }

    /// Stores the next value of the claim of an owner.
    pub(super) async fn renew(&mut self) {
        if let Err(error) = self.commit(&[], Durability::Durable, self.retry_timeout()).await {
            tracing::debug!(?error, "renewing the claim of the database failed");
        }
    }

    /// Makes all commits durable and removes the claim.
    pub(super) async fn finish(&mut self) -> Result<(), StorageError> {
        if matches!(self.state, State::New | State::Lost(_)) && !self.unsynced {
            return Ok(());
        }
        let end = async {
            if self.unsynced {
                match self.commit(&[&Batch::new()], Durability::Durable, CLOSE_TIMEOUT).await {
                    Ok(_) => {}
                    Err(
                        CommitError::Unavailable(error)
                        | CommitError::Rejected(error)
                        | CommitError::Contended(error),
                    ) => return Err(error),
                    Err(CommitError::Unknown(reason, _)) => {
                        return Err(StorageError::Unavailable { reason });
                    }
                }
            }
            // Optional: without it, another data directory waits for the lease.
            let mut batch = Batch::new();
            self.claim.require(&mut batch);
            batch.delete(META, self.claim.key.clone());
            let removed = self.run(batch, Durability::Buffered, CLOSE_TIMEOUT).await;
            tracing::debug!(?removed, "claim of the database removed");
            Ok(())
        };
        let late = || StorageError::Unavailable {
            reason: format!("the server did not reply within {}", human(CLOSE_TIMEOUT)),
        };
        timeout(CLOSE_TIMEOUT, end).await.unwrap_or_else(|_| Err(late()))
    }
}
