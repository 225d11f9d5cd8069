//! One session at the server: statements that are prepared once, deadlines, and requests that are sent without
//! waiting for the answers to the ones before.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

use crate::error::Failure;

/// How much longer the client waits than the server, whose answer says more.
const LATER: Duration = Duration::from_millis(500);

/// A session at the server. Dropping it ends the session, whatever is under way.
pub(crate) struct Connection {
    client: Client,
    task: JoinHandle<()>,
    statements: Mutex<HashMap<String, Statement>>,
    /// A transaction may be open that nobody knows of.
    abandoned: AtomicBool,
    patience: Duration,
}

/// A request to the server as one of several.
pub(crate) type Step<'a, T> = BoxFuture<'a, Result<T, Error>>;

impl Connection {
    pub(crate) fn new(client: Client, task: JoinHandle<()>, patience: Duration) -> Self {
        Self { client, task, statements: Mutex::default(), abandoned: AtomicBool::new(false), patience }
    }

    /// Whether the session has ended, or is not to be used any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed() || self.abandoned.load(Ordering::Relaxed)
    }

    /// Ends the transaction that is open. Where that fails, the session is not to be used any more.
    pub(crate) async fn roll_back(&self) {
        if let Err(failure) = self.run("ROLLBACK").await {
            tracing::debug!(%failure, "a transaction was not ended in order");
            self.abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// Sets the deadlines that the server itself keeps, also when this process is gone, and the isolation that the
    /// locks of a commit are made for. What exists already is no news: notices are not sent.
    pub(crate) async fn prepare_session(&self) -> Result<(), Failure> {
        let limit = self.patience.as_millis();
        // Shorter: when a connection breaks unnoticed by the server, its locks are gone before others give up.
        let idle = (limit / 2).max(1);
        self.run(&format!(
            "SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {idle}; \
             SET default_transaction_isolation = 'read committed'; SET client_min_messages = warning"
        ))
        .await?;
        // A server may be set to acknowledge before it has written. Stronger settings than `on` are left as they are.
        let rows = self.query("SHOW synchronous_commit", &[]).await?;
        if rows.first().is_some_and(|row| row.try_get::<_, &str>(0).is_ok_and(|value| value == "off")) {
            self.run("SET synchronous_commit = on").await?;
        }
        Ok(())
    }

    /// Waits for an answer, not for ever.
    pub(crate) async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.patience + LATER, answer).await.map_err(|_| Failure::Silent(self.patience))
    }

    /// Statements without parameters and results.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Failure> {
        self.within(self.client.batch_execute(sql)).await?.map_err(Failure::Server)
    }

    /// The rows that a statement gives.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        self.within(self.client.query(&statement, parameters)).await?.map_err(Failure::Server)
    }

    /// How many rows a statement changed.
    pub(crate) async fn execute(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepared(sql).await?;
        self.within(self.client.execute(&statement, parameters)).await?.map_err(Failure::Server)
    }

    pub(crate) async fn prepared(&self, sql: &str) -> Result<Statement, Failure> {
        let known = self.statements.lock().get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.within(self.client.prepare(sql)).await?.map_err(Failure::Server)?;
        self.statements.lock().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Prepares several statements with one wait.
    pub(crate) async fn prepare_all(&self, statements: &[String]) -> Result<Vec<Statement>, Failure> {
        join_all(statements.iter().map(|sql| self.prepared(sql))).await.into_iter().collect()
    }

    /// A statement without parameters, as a step.
    pub(crate) fn step_run<'a>(&'a self, sql: &'a str) -> Step<'a, u64> {
        Box::pin(async move { self.client.batch_execute(sql).await.map(|()| 0) })
    }

    /// A statement that changes rows, as a step.
    pub(crate) fn step_execute<'a>(
        &'a self,
        statement: &'a Statement,
        parameters: Vec<&'a (dyn ToSql + Sync)>,
    ) -> Step<'a, u64> {
        Box::pin(async move { self.client.execute(statement, &parameters).await })
    }

    /// A statement that gives rows, as a step.
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
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// Sends the steps in their order, one behind the other, and waits for all answers. The client sends a request
/// when its future is first polled, so the order of the first round of polls is what the server sees.
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
