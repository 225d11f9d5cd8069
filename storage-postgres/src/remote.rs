//! The implementation of [`Remote`]: one pool of connections for reads and one for transactions.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult};
use enjambre_core::model::time::human;
use enjambre_core::runtime::buffers::BufferPool;
use enjambre_core::storage::queued::{Remote, TransactError, Transacted, Transaction};
use enjambre_core::{Key, KeyRange, Limits, Space, StorageError};

use crate::connection::{Connection, key_and_value};
use crate::error::Failure;
use crate::schema::Schema;
use crate::server::Servers;
use crate::transaction;

const LIMITS: Limits = Limits {
    max_value: 1024 * 1024,
    max_batch: 16 * 1024 * 1024,
    max_writes: 1 << 20,
    max_page_bytes: 1024 * 1024,
};
/// The maximum number of entries of a page: the server reads this many to find the end of the page.
const PAGE_ENTRIES: usize = 1024;
/// The bytes of buffers for large values that are kept for reuse.
const KEPT_BUFFERS: usize = 8 * 1024 * 1024;
/// The connections for transactions: those of buffered and of durable commits.
const WRITERS: usize = 2;

/// Creates the connections of a pool.
#[derive(Debug)]
struct Connections(Arc<Servers>);

impl managed::Manager for Connections {
    type Type = Connection;
    type Error = StorageError;

    async fn create(&self) -> Result<Connection, StorageError> {
        self.0.connect().await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<StorageError> {
        if connection.is_closed() { Err(RecycleError::message("the connection is closed")) } else { Ok(()) }
    }
}

type Pool = managed::Pool<Connections>;

/// A connection in use. If it was abandoned, its drop ends the session at once instead of in the pool, which releases its locks.
struct InUse(Option<Object<Connections>>);

impl Deref for InUse {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("only the drop takes the connection")
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take_if(|connection| connection.is_closed()) {
            drop(Object::take(connection));
        }
    }
}

/// The client of one schema.
#[derive(Debug)]
pub(crate) struct Postgres {
    readers: Pool,
    writers: Pool,
    schema: Schema,
    timeout: Duration,
    buffers: BufferPool,
}

impl Postgres {
    /// A client with this many connections for reads, which are opened on demand.
    pub(crate) fn new(servers: Servers, schema: Schema, readers: usize) -> Result<Self, StorageError> {
        let timeout = servers.statement_timeout;
        let servers = Arc::new(servers);
        let pool = |size| {
            Pool::builder(Connections(servers.clone()))
                .max_size(size)
                .wait_timeout(Some(timeout))
                .runtime(Runtime::Tokio1)
                .build()
                .map_err(|error| StorageError::backend("create the connection pool", error))
        };
        Ok(Self {
            readers: pool(readers.clamp(1, 1000))?,
            writers: pool(WRITERS)?,
            schema,
            timeout,
            buffers: BufferPool::new(KEPT_BUFFERS),
        })
    }

    /// Removes the schema with all tables.
    pub(crate) async fn remove(&self) -> Result<(), StorageError> {
        self.schema.remove(&*self.connection(&self.writers).await?).await
    }

    async fn connection(&self, pool: &Pool) -> Result<InUse, StorageError> {
        pool.get().await.map(|connection| InUse(Some(connection))).map_err(|error| match error {
            PoolError::Backend(error) => error,
            PoolError::Closed => StorageError::Closed,
            PoolError::Timeout(_) => StorageError::Unavailable {
                reason: format!("no free connection within {}", human(self.timeout)),
            },
            other => StorageError::backend("take a connection", other.to_string()),
        })
    }

    async fn get_from(
        &self,
        reader: &Connection,
        space: Space,
        keys: &[Key],
    ) -> Result<Vec<Option<Bytes>>, Failure> {
        if !self.schema.has_table(reader, space).await? {
            return Ok(vec![None; keys.len()]);
        }
        let keys: Vec<&[u8]> = keys.iter().map(Key::as_bytes).collect();
        let rows = reader.query(&self.schema.select(space), &[&keys]).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (key, value) = key_and_value(row)?;
            found.insert(key, self.buffers.copy(value));
        }
        Ok(keys.into_iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn scan_from(
        &self,
        reader: &Connection,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, Failure> {
        if !self.schema.has_table(reader, space).await? {
            return Ok(Vec::new());
        }
        let limit = limit.min(PAGE_ENTRIES) as i64;
        let bytes = LIMITS.max_page_bytes as i64;
        let (start, end) = range.half_open();
        let sql = self.schema.scan(space, end.is_some());
        let end = end.as_deref().unwrap_or_default();
        let rows = reader.query(&sql, &[&&*start, &end, &limit, &bytes]).await?;
        let mut page = Vec::with_capacity(rows.len());
        for row in &rows {
            let (key, value) = key_and_value(row)?;
            page.push((Bytes::copy_from_slice(key), self.buffers.copy(value)));
        }
        Ok(page)
    }
}

#[async_trait]
impl Remote for Postgres {
    async fn prepare(&self) -> Result<(), StorageError> {
        self.schema.prepare(&*self.connection(&self.writers).await?).await
    }

    async fn transact(&self, transaction: &Transaction) -> Result<Transacted, TransactError> {
        let connection = self.connection(&self.writers).await?;
        transaction::run(&self.schema, &connection, transaction).await
    }

    async fn get(&self, space: Space, keys: &[Key]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let reader = self.connection(&self.readers).await?;
        self.get_from(&reader, space, keys).await.map_err(|failure| failure.explain("read"))
    }

    async fn scan(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Key, Bytes)>, StorageError> {
        let reader = self.connection(&self.readers).await?;
        let page = self.scan_from(&reader, space, range, limit).await;
        let page = page.map_err(|failure| failure.explain("read"))?;
        let invalid =
            |_| StorageError::corrupt(format!("{} contains an invalid key", self.schema.description));
        page.into_iter().map(|(key, value)| Ok((Key::new(key).map_err(invalid)?, value))).collect()
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn description(&self) -> &str {
        &self.schema.description
    }

    async fn close(&self) {
        self.readers.close();
        self.writers.close();
    }
}
