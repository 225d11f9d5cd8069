//! The client. A space is a hash with the values, and a sorted set with the keys. A transaction is one script.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use enjambre_core::{
    Key, KeyRange, Limits, Remote, Space, StorageError, TransactError, Transacted, Transaction,
};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, RedisError, Script};

const LIMITS: Limits = Limits {
    max_value: 1024 * 1024,
    max_batch: 16 * 1024 * 1024,
    max_writes: 10_000,
    max_page_bytes: 1024 * 1024,
};

/// Checks the conditions and applies the writes. Because of its first line, the server does not start it without enough memory;
/// so it never ends halfway.
///
/// ARGV: the database, the number of conditions, and for each condition and write: space, key, `1` or `0` for an absent or
/// deleted key, and the value.
const TRANSACT: &str = "#!lua flags=no-cluster
local name, conditions, at = ARGV[1] .. ':', tonumber(ARGV[2]), 3
for _ = 1, conditions do
    local value = redis.call('HGET', name .. ARGV[at] .. ':values', ARGV[at + 1])
    if (ARGV[at + 2] == '1') ~= (value ~= false) or (value and value ~= ARGV[at + 3]) then return 0 end
    at = at + 4
end
while at < #ARGV do
    local space, key = name .. ARGV[at], ARGV[at + 1]
    if ARGV[at + 2] == '1' then
        redis.call('HSET', space .. ':values', key, ARGV[at + 3])
        redis.call('ZADD', space .. ':keys', 0, key)
    else
        redis.call('HDEL', space .. ':values', key)
        redis.call('ZREM', space .. ':keys', key)
    end
    at = at + 4
end
return 1";

/// Returns keys and values of a range, until they have enough bytes.
///
/// ARGV: the space with its database, the start and the end for `BYLEX`, the limit in entries, and the limit in bytes.
const SCAN: &str = "#!lua flags=no-writes,no-cluster
local page, bytes = {}, 0
for _, key in ipairs(redis.call('ZRANGE', ARGV[1] .. ':keys', ARGV[2], ARGV[3], 'BYLEX', 'LIMIT', 0, ARGV[4])) do
    local value = redis.call('HGET', ARGV[1] .. ':values', key)
    page[#page + 1], page[#page + 2] = key, value
    bytes = bytes + #key + #value
    if bytes >= tonumber(ARGV[5]) then break end
end
return page";

/// The settings without which the server loses data that it has acknowledged, or commits that it should keep.
const REQUIRED: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];
/// The timeout of a connection without a reply, longer than that of a call.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// The client of one database.
pub(crate) struct Redis {
    connection: ConnectionManager,
    name: String,
    description: String,
    transact: Script,
    scan: Script,
}

impl Redis {
    /// A client that connects with its first call.
    pub(crate) fn new(url: &str, name: String) -> Result<Self, StorageError> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(0);
        let connection = Client::open(url)
            .and_then(|client| ConnectionManager::new_lazy_with_config(client, config))
            .map_err(|error| StorageError::backend("use the url of the server", error))?;
        let description = format!("the database {name} in Redis");
        Ok(Self { connection, name, description, transact: Script::new(TRANSACT), scan: Script::new(SCAN) })
    }

    /// Removes all entries.
    pub(crate) async fn remove(&self) -> Result<(), StorageError> {
        let mut connection = self.connection.clone();
        let keys: Vec<Vec<u8>> =
            connection.keys(format!("{}:*", self.name)).await.map_err(|error| failed("remove", error))?;
        if keys.is_empty() {
            return Ok(());
        }
        connection.unlink(keys).await.map_err(|error| failed("remove", error))
    }
}

/// Converts an error of the server, or of a call that changes nothing.
fn failed(action: &str, error: RedisError) -> StorageError {
    match error.code() {
        Some("OOM") => StorageError::Full { source: error.into() },
        // The server starts, is busy, cannot write, or is a replica.
        Some("LOADING" | "BUSY" | "MISCONF" | "READONLY" | "MASTERDOWN" | "NOREPLICAS") => {
            StorageError::Unavailable { reason: error.to_string() }
        }
        _ if error.is_io_error() => StorageError::Unavailable { reason: error.to_string() },
        _ => StorageError::backend(action, error),
    }
}

#[async_trait]
impl Remote for Redis {
    async fn prepare(&self) -> Result<(), StorageError> {
        let found: HashMap<String, String> = redis::cmd("CONFIG")
            .arg("GET")
            .arg(&REQUIRED.map(|(setting, _)| setting)[..])
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|error| failed("read the settings of the server", error))?;
        for (setting, value) in REQUIRED {
            if found.get(setting).is_none_or(|found| found != value) {
                let action = format!("use {}", self.description);
                return Err(StorageError::backend(action, format!("set {setting} to {value} in redis.conf")));
            }
        }
        Ok(())
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError> {
        let mut call = self.transact.arg(&self.name);
        call.arg(transaction.conditions.len());
        let conditions =
            transaction.conditions.iter().map(|condition| (condition.target(), condition.value()));
        let writes = transaction.writes.iter().map(|write| (write.target(), write.value()));
        for ((space, key), value) in conditions.chain(writes) {
            call.arg(space.name()).arg(key.as_bytes()).arg(usize::from(value.is_some()));
            call.arg(value.map_or(&[][..], |value| &value[..]));
        }
        match call.invoke_async(&mut self.connection.clone()).await {
            Ok(true) => Ok(Transacted::Applied),
            Ok(false) => Ok(Transacted::Refused),
            // Whether the server received the script is not known.
            Err(error) if error.is_io_error() && !error.is_connection_refusal() => {
                Err(TransactError::Unknown(error.into()))
            }
            Err(error) => Err(failed("commit", error).into()),
        }
    }

    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let keys: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let values: Vec<Option<Vec<u8>>> = redis::cmd("HMGET")
            .arg(format!("{}:{}:values", self.name, space.name()))
            .arg(keys)
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|error| failed("read", error))?;
        Ok(values.into_iter().map(|value| value.map(Bytes::from)).collect())
    }

    async fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let (start, end) = range.half_open();
        let end = end.map_or(b"+".to_vec(), |end| [b"(", &end[..]].concat());
        let page: Vec<(Vec<u8>, Vec<u8>)> = self
            .scan
            .arg(format!("{}:{}", self.name, space.name()))
            .arg([b"[", &start[..]].concat())
            .arg(end)
            .arg(limit.min(1000))
            .arg(LIMITS.max_page_bytes)
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(|error| failed("read", error))?;
        page.into_iter().map(|(key, value)| Ok((Key::new(key)?, value.into()))).collect()
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn description(&self) -> &str {
        &self.description
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("name", &self.name).finish_non_exhaustive()
    }
}
