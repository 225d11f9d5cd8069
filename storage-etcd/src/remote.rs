//! The implementation of [`Remote`]: keys, transactions, pages and compactions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::storage::pages::PageBudget;
use enjambre_core::storage::queued::{Remote, TransactError, Transacted, Transaction};
use enjambre_core::storage::value::MIN_WRITES;
use enjambre_core::{Condition, Key, KeyRange, Limits, Space, StorageError, Write, runtime};
use futures::future::try_join_all;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::client::{Client, Login, REPLY_BYTES};
use crate::failure::Failure;
use crate::messages::{
    COMPACT, CompactionRequest, Compare, DELETE_RANGE, DeleteRangeRequest, Empty, Expected, Operation,
    PutRequest, RANGE, RangeRequest, RangeResponse, RequestOp, TARGET_VALUE, TARGET_VERSION, TXN, TxnRequest,
    TxnResponse,
};
use crate::settings::EtcdSettings;

const LIMITS: Limits = Limits {
    max_value: 1024 * 1024,
    max_batch: 8 * 1024 * 1024,
    max_writes: MIN_WRITES,
    max_page_bytes: 1024 * 1024,
};
/// The operations and the comparisons of the largest transaction, a batch and the claim of its writer.
pub(crate) const MAX_OPERATIONS: usize = LIMITS.max_writes + 1;
/// The size of the largest transaction. It must be less than 10 MiB, because etcd does not start with a larger entry in its log.
pub(crate) const REQUEST_BYTES: usize = 10_000_000;
/// The maximum size of the prefix, the space and the encoding of a key.
const KEY_OVERHEAD: usize = 140;
const _: () = assert!(LIMITS.max_batch + 2 * MAX_OPERATIONS * KEY_OVERHEAD < REQUEST_BYTES);
/// How much etcd allows a gRPC message to exceed `--max-request-bytes`.
const GRPC_OVERHEAD: usize = 512 * 1024;
/// The keys of one request.
const GET_KEYS: usize = 32;
const _: () = assert!(GET_KEYS * (LIMITS.max_value + 4096) < REPLY_BYTES);
/// The interval of compactions, each of which removes the history before the last one.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(600);

/// The client of one database.
pub(crate) struct Etcd {
    client: Arc<Client>,
    prefix: String,
    description: String,
    compaction_interval: Option<Duration>,
    /// The time and the revision of the last compaction.
    compacted: Mutex<Option<(Instant, i64)>>,
}

impl Etcd {
    pub(crate) fn new(
        settings: &EtcdSettings,
        endpoints: &[Endpoint],
        login: Option<Login>,
        name: &str,
    ) -> Self {
        Self {
            client: Arc::new(Client::new(endpoints, login, settings.timeout)),
            prefix: format!("{name}/"),
            description: format!("the database {name} on etcd at {}", settings.endpoints.join(", ")),
            compaction_interval: settings.compact.then_some(COMPACTION_INTERVAL),
            compacted: Mutex::default(),
        }
    }

    /// Removes all keys.
    pub(crate) async fn remove(&self) -> Result<(), StorageError> {
        // The byte after a slash.
        let range_end = format!("{}0", self.prefix.trim_end_matches('/')).into();
        let request = DeleteRangeRequest { key: self.prefix.clone().into(), range_end };
        let removed: Result<Empty, _> = self.client.call(DELETE_RANGE, &request).await;
        removed.map(drop).map_err(|failure| failure.explain(&format!("remove {}", self.description)))
    }

    /// Returns the key of an entry, or the start of its space if `key` is empty.
    fn key(&self, space: Space, key: &[u8]) -> Bytes {
        [self.prefix.as_bytes(), space.name().as_bytes(), &[0], key].concat().into()
    }

    fn request(&self, transaction: &Transaction) -> TxnRequest {
        let compare = |condition: &Condition| {
            let (space, key) = condition.target();
            let (target, expected) = match condition.value() {
                Some(value) => (TARGET_VALUE, Expected::Value(value.clone())),
                None => (TARGET_VERSION, Expected::Version(0)),
            };
            Compare { target, key: self.key(space, key.as_bytes()), expected: Some(expected) }
        };
        let operation = |write: &Write| {
            let (space, key) = write.target();
            let key = self.key(space, key.as_bytes());
            RequestOp::from(match write.value() {
                Some(value) => Operation::Put(PutRequest { key, value: value.clone() }),
                None => Operation::DeleteRange(DeleteRangeRequest { key, range_end: Bytes::new() }),
            })
        };
        TxnRequest {
            compare: transaction.conditions.iter().map(compare).collect(),
            success: transaction.writes.iter().map(operation).collect(),
        }
    }

    /// Returns whether a transaction is applied for which etcd reported that the quota is exceeded. A transaction that is not
    /// limited to deletions changes the claim of its writer to a value that no other transaction writes.
    async fn is_applied(&self, transaction: &Transaction) -> Result<bool, StorageError> {
        let is_changed = |write: &&Write| {
            let before = transaction.conditions.iter().rfind(|before| before.target() == write.target());
            write.value().is_some() && before.is_some_and(|before| before.value() != write.value())
        };
        let Some(changed) = transaction.writes.iter().rfind(is_changed) else { return Ok(false) };
        let (space, key) = changed.target();
        Ok(self.get(space, std::slice::from_ref(key)).await? == [changed.value().cloned()])
    }

    async fn get_some(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, Failure> {
        let read = |key: &Key| {
            let key = self.key(space, key.as_bytes());
            Operation::Range(RangeRequest { key, ..RangeRequest::default() }).into()
        };
        let request = TxnRequest { compare: Vec::new(), success: keys.iter().map(read).collect() };
        let reply: TxnResponse = self.client.call(TXN, &request).await?;
        let mut found = reply.responses.into_iter().map(|response| response.range?.kvs.pop());
        Ok(keys.iter().map(|_| Some(found.next()??.value.into())).collect())
    }

    /// Checks that the cluster accepts the largest transaction. The transaction of the check only reads, so it is not replicated.
    async fn check_limits(&self) -> Result<(), StorageError> {
        let key = Bytes::from(self.prefix.clone());
        let read =
            RequestOp::from(Operation::Range(RangeRequest { key: key.clone(), ..RangeRequest::default() }));
        let expected =
            |value| vec![Compare { target: TARGET_VALUE, key: key.clone(), expected: Some(value) }];
        let mut request = TxnRequest { compare: Vec::new(), success: vec![read; MAX_OPERATIONS] };
        let padding = REQUEST_BYTES + GRPC_OVERHEAD - request.encoded_len() - KEY_OVERHEAD;
        request.compare = expected(Expected::Value(vec![0; padding].into()));
        let checked: Result<TxnResponse, _> = self.client.call(TXN, &request).await;
        checked.map(drop).map_err(|failure| failure.explain(&format!("use {}", self.description)))
    }

    /// Removes the history before the last compaction if its interval has passed.
    fn compact(&self, revision: i64) {
        let Some(interval) = self.compaction_interval else { return };
        let mut compacted = self.compacted.lock();
        if compacted.is_some_and(|(time, _)| time.elapsed() < interval) {
            return;
        }
        let Some((_, revision)) = compacted.replace((Instant::now(), revision)) else { return };
        let client = self.client.clone();
        runtime::spawn(async move {
            let compacted: Result<Empty, _> = client.call(COMPACT, &CompactionRequest { revision }).await;
            match compacted {
                Err(failure) if !failure.is_compacted() => {
                    tracing::warn!(%failure, "compaction of etcd failed");
                }
                _ => tracing::debug!(revision, "history of etcd compacted"),
            }
        });
    }
}

#[async_trait]
impl Remote for Etcd {
    async fn prepare(&self) -> Result<(), StorageError> {
        self.check_limits().await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError> {
        let reply: Result<TxnResponse, _> = self.client.call(TXN, &self.request(transaction)).await;
        match reply {
            Ok(reply) => {
                self.compact(reply.header.unwrap_or_default().revision);
                Ok(if reply.succeeded { Transacted::Applied } else { Transacted::Refused })
            }
            Err(failure) if failure.is_no_space() => match self.is_applied(transaction).await {
                Ok(true) => Ok(Transacted::Applied),
                Ok(false) => Err(failure.explain("commit").into()),
                Err(error) => Err(TransactError::Unknown(error.into())),
            },
            Err(failure) if failure.is_refusal() || failure.is_not_sent() => {
                Err(failure.explain("commit").into())
            }
            Err(failure) => Err(TransactError::Unknown(failure.into())),
        }
    }

    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let parts = try_join_all(keys.chunks(GET_KEYS).map(|keys| self.get_some(space, keys))).await;
        parts.map(|parts| parts.concat()).map_err(|failure| failure.explain("read"))
    }

    async fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let (start, end) = range.half_open();
        let space_start = self.key(space, &[]);
        // The name of a space ends with a zero byte.
        let space_end = || [&space_start[..space_start.len() - 1], &[1]].concat().into();
        let mut request = RangeRequest {
            key: self.key(space, &start),
            range_end: end.map_or_else(space_end, |end| self.key(space, &end)),
            ..RangeRequest::default()
        };
        let invalid = |_| StorageError::corrupt(format!("{} contains an invalid key", self.description));
        let (mut page, mut budget, mut divisor) =
            (Vec::new(), PageBudget::new(limit, LIMITS.max_page_bytes), 1);
        while !budget.is_complete() {
            let count = budget.request().div_ceil(divisor);
            request.limit = i64::try_from(count).unwrap_or(i64::MAX);
            let reply: RangeResponse = match self.client.call(RANGE, &request).await {
                Ok(reply) => reply,
                // These entries are much larger than those before.
                Err(failure) if failure.is_large_reply() && count > 1 => {
                    divisor *= 8;
                    continue;
                }
                // The part of the page is a snapshot as well.
                Err(failure) if failure.is_compacted() && !page.is_empty() => break,
                Err(failure) => return Err(failure.explain("read")),
            };
            // All parts of the page have the revision of the first one. The later headers contain the current revision.
            if request.revision == 0 {
                request.revision = reply.header.unwrap_or_default().revision;
            }
            for entry in reply.kvs {
                if budget.is_complete() {
                    break;
                }
                let key = Bytes::from(entry.key);
                request.key = [&key[..], &[0]].concat().into();
                let key = Key::new(key.slice(space_start.len().min(key.len())..)).map_err(invalid)?;
                budget.add(key.as_bytes().len() + entry.value.len());
                page.push((key, entry.value.into()));
            }
            if !reply.more {
                break;
            }
        }
        Ok(page)
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn description(&self) -> &str {
        &self.description
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("database", &self.description).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use enjambre_core::storage::queued::{Queued, QueuedSettings};
    use enjambre_core::{Batch, Durability, Place, Role, Storage, Tenancy};
    use enjambre_tests::etcd::{OPTIONS, Server};
    use enjambre_tests::wait::TIMEOUT;
    use tokio::time::timeout;

    use super::*;
    use crate::endpoint::endpoints;

    #[tokio::test]
    async fn history_is_compacted() {
        let Some(server) = Server::start("etcd compaction", &OPTIONS) else { return };
        let settings = EtcdSettings { endpoints: vec![server.url()], ..EtcdSettings::default() };
        let place = Place::new("/nonexistent", Tenancy::Shared);
        let mut etcd = Etcd::new(&settings, &endpoints(&settings, &place).unwrap(), None, "test");
        etcd.compaction_interval = Some(Duration::ZERO);
        let client = etcd.client.clone();
        let storage = Queued::open(etcd, &place, Role::Records, QueuedSettings::default()).await.unwrap();
        let (space, key) = (Space::new("a"), Key::new("k").unwrap());
        let mut batch = Batch::new();
        batch.put(space, key.clone(), "v");
        let old = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
        let compacted = async {
            loop {
                storage.commit(batch.clone(), Durability::Durable).await.unwrap();
                let read: Result<RangeResponse, _> = client.call(RANGE, &old).await;
                if read.is_err_and(|failure| failure.is_compacted()) {
                    break;
                }
            }
        };
        timeout(TIMEOUT, compacted).await.expect("the old revision is removed");
        assert_eq!(storage.get(space, &[key]).await.unwrap(), [Some("v".into())]);
        storage.close().await.unwrap();
    }
}
