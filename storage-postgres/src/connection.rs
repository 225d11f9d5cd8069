//! One session at the server, with prepared statements, timeouts and pipelined requests.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use enjambre_core::model::time::human;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::{FromSql, ToSql};
use tokio_postgres::{CancelToken, Client, Error, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Failure;

/// The additional timeout of the client, so that the server times out first: its error is more specific.
const CLIENT_GRACE: Duration = Duration::from_millis(500);

/// A session at the server. Dropping it ends the session. Dropping an abandoned session also cancels its current statement.
pub(crate) struct Connection {
    client: Client,
    task: JoinHandle<()>,
    statements: Mutex<HashMap<String, Statement>>,
    /// A statement without a waiting caller may be running.
    abandoned: AtomicBool,
    statement_timeout: Duration,
    canceller: Canceller,
}

/// Cancels the current statement of a session over a connection of its own.
pub(crate) struct Canceller {
    pub(crate) token: CancelToken,
    pub(crate) tls: MakeRustlsConnect,
    pub(crate) timeout: Duration,
}

/// A request in a pipeline, see [`pipelined`].
pub(crate) type Step<'a, T> = BoxFuture<'a, Result<T, Error>>;

impl Connection {
    pub(crate) fn new(
        client: Client,
        task: JoinHandle<()>,
        statement_timeout: Duration,
        canceller: Canceller,
    ) -> Self {
        let abandoned = AtomicBool::new(false);
        Self { client, task, statements: Mutex::default(), abandoned, statement_timeout, canceller }
    }

    /// Returns whether the session has ended or was abandoned.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed() || self.abandoned.load(Ordering::Relaxed)
    }

    /// Marks the session as unusable, or as usable again. The current statement of an unusable session is cancelled on drop:
    /// without that, a commit that waits for an unreachable replica keeps its row locks until the replica returns, even after the
    /// client has disconnected.
    pub(crate) fn set_abandoned(&self, abandoned: bool) {
        self.abandoned.store(abandoned, Ordering::Relaxed);
    }

    /// Sets the timeouts that the server enforces even after this process has ended, the isolation level that the row locks of
    /// a commit require, and the log level, because `IF NOT EXISTS` sends notices.
    pub(crate) async fn prepare_session(&self) -> Result<(), Failure> {
        let timeout = self.statement_timeout.as_millis();
        // Shorter, so that the locks of a lost connection are released before other transactions time out.
        let idle = (timeout / 2).max(1);
        self.run(&format!(
            "SET statement_timeout = {timeout}; SET idle_in_transaction_session_timeout = {idle}; \
             SET default_transaction_isolation = 'read committed'; SET client_min_messages = warning"
        ))
        .await?;
        // Weaker settings acknowledge a commit before the server or its replica has written it. Stronger ones are kept.
        let rows = self.query("SHOW synchronous_commit", &[]).await?;
        let current = rows.first().and_then(|row| row.try_get::<_, &str>(0).ok());
        if matches!(current, Some("off" | "local")) {
            self.run("SET synchronous_commit = on").await?;
        }
        Ok(())
    }

    /// Waits for an answer. Abandons the session after the timeout.
    pub(crate) async fn with_timeout<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.statement_timeout + CLIENT_GRACE, answer).await.map_err(|_| {
            self.set_abandoned(true);
            Failure::Timeout(self.statement_timeout)
        })
    }

    /// Runs statements without parameters and results.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Failure> {
        self.with_timeout(self.client.batch_execute(sql)).await?.map_err(Failure::Server)
    }

    /// Runs a query and returns its rows.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        self.with_timeout(self.client.query(&statement, parameters)).await?.map_err(Failure::Server)
    }

    /// Returns a prepared statement. Prepares it on its first use.
    pub(crate) async fn prepared(&self, sql: &str) -> Result<Statement, Failure> {
        let known = self.statements.lock().get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.with_timeout(self.client.prepare(sql)).await?.map_err(Failure::Server)?;
        self.statements.lock().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Prepares several statements in one round trip.
    pub(crate) async fn prepare_all(&self, statements: &[String]) -> Result<Vec<Statement>, Failure> {
        join_all(statements.iter().map(|sql| self.prepared(sql))).await.into_iter().collect()
    }

    /// Returns a step that runs a statement without parameters.
    pub(crate) fn step_run<'a>(&'a self, sql: &'a str) -> Step<'a, u64> {
        Box::pin(async move { self.client.batch_execute(sql).await.map(|()| 0) })
    }

    /// Returns a step that runs a statement and returns the number of changed rows.
    pub(crate) fn step_execute<'a>(
        &'a self,
        statement: &'a Statement,
        parameters: Vec<&'a (dyn ToSql + Sync)>,
    ) -> Step<'a, u64> {
        Box::pin(async move { self.client.execute(statement, &parameters).await })
    }

    /// Returns a step that runs a query.
    pub(crate) fn step_query<'a>(
        &'a self,
        statement: &'a Statement,
        parameters: Vec<&'a (dyn ToSql + Sync)>,
    ) -> Step<'a, Vec<Row>> {
        Box::pin(async move { self.client.query(statement, &parameters).await })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
        if self.abandoned.load(Ordering::Relaxed)
            && let Ok(runtime) = Handle::try_current()
        {
            let Canceller { token, tls, timeout: limit } = &self.canceller;
            let (token, tls, limit) = (token.clone(), tls.clone(), *limit);
            runtime.spawn(async move {
                match timeout(limit, token.cancel_query(tls)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "cancelling an abandoned session failed"),
                    Err(_) => {
                        tracing::debug!(timeout = %human(limit), "cancelling an abandoned session timed out");
                    }
                }
            });
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Sends all steps in order without waiting for the answers, then waits for all answers. The client sends a request when its
/// future is first polled, so the first round of polls determines the order at the server.
pub(crate) async fn pipelined<T>(mut steps: Vec<Step<'_, T>>) -> Vec<Result<T, Error>> {
    let mut answers: Vec<Option<Result<T, Error>>> = steps.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (step, answer) in steps.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match Pin::new(step).poll(context) {
                    Poll::Ready(outcome) => *answer = Some(outcome),
                    Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    answers.into_iter().flatten().collect()
}

/// Returns the first two columns of a row: a key and its value.
pub(crate) fn key_and_value<'a, V: FromSql<'a>>(row: &'a Row) -> Result<(&'a [u8], V), Failure> {
    let column = |row: &'a Row| Ok((row.try_get(0)?, row.try_get(1)?));
    column(row).map_err(Failure::Server)
}
