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
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{CancelToken, Client, Error, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Failure;

/// How much longer the client waits than the server, whose answer says more.
const LATER: Duration = Duration::from_millis(500);
/// How a transaction begins whose commit waits neither for the disk nor for a replica.
pub(crate) const BEGIN_BUFFERED: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// A session at the server. Dropping it ends the session; one that was abandoned is told to stop what it is doing.
pub(crate) struct Connection {
    client: Client,
    task: JoinHandle<()>,
    statements: Mutex<HashMap<String, Statement>>,
    /// Something may be under way that nobody waits for.
    abandoned: AtomicBool,
    patience: Duration,
    canceller: Canceller,
}

/// What is needed to tell the server to stop what a session is doing.
pub(crate) struct Canceller {
    pub(crate) token: CancelToken,
    pub(crate) tls: MakeRustlsConnect,
    /// How long that may take.
    pub(crate) limit: Duration,
}

/// Abandons the connection unless what was begun has ended.
pub(crate) struct Begun<'a>(Option<&'a AtomicBool>);

impl Begun<'_> {
    pub(crate) fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.0 {
            abandoned.store(true, Ordering::Relaxed);
        }
    }
}

/// A request to the server as one of several.
pub(crate) type Step<'a, T> = BoxFuture<'a, Result<T, Error>>;

impl Connection {
    pub(crate) fn new(
        client: Client,
        task: JoinHandle<()>,
        patience: Duration,
        canceller: Canceller,
    ) -> Self {
        let abandoned = AtomicBool::new(false);
        Self { client, task, statements: Mutex::default(), abandoned, patience, canceller }
    }

    /// Whether the session has ended, or is not to be used any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed() || self.abandoned.load(Ordering::Relaxed)
    }

    /// To be held for as long as a transaction is open, or waits to be committed.
    pub(crate) const fn begun(&self) -> Begun<'_> {
        Begun(Some(&self.abandoned))
    }

    /// Nobody waits for what is under way any more, and the session is not to be used again. When this is dropped, the
    /// server is told: a commit that waits for a replica would otherwise wait, and hold all that it has locked, for as
    /// long as the replica is away, whether or not there still is a client.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Ends the transaction that is open. Where that fails, the session is not to be used any more.
    pub(crate) async fn roll_back(&self) {
        if let Err(failure) = self.run("ROLLBACK").await {
            tracing::debug!(%failure, "a transaction was not ended in order");
            self.abandon();
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
        // A server may be set to acknowledge before it, or its replica, has written. Stronger settings are left as they are.
        let rows = self.query("SHOW synchronous_commit", &[]).await?;
        let set = rows.first().and_then(|row| row.try_get::<_, &str>(0).ok());
        if matches!(set, Some("off" | "local")) {
            self.run("SET synchronous_commit = on").await?;
        }
        Ok(())
    }

    /// Waits for an answer, not for ever.
    pub(crate) async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T, Failure> {
        timeout(self.patience + LATER, answer).await.map_err(|_| {
            self.abandon();
            Failure::Silent(self.patience)
        })
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

    /// How many rows a statement changed that is committed without waiting for the disk or a replica: for what may be lost
    /// when the server crashes.
    pub(crate) async fn execute_buffered(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepared(sql).await?;
        let begun = self.begun();
        let steps = vec![
            self.step_run(BEGIN_BUFFERED),
            self.step_execute(&statement, parameters.to_vec()),
            // Where one before it fails, the server makes a rollback of it.
            self.step_run("COMMIT"),
        ];
        let answers = self.within(pipelined(steps)).await?;
        begun.has_ended();
        let mut changed = 0;
        for answer in answers {
            changed += answer.map_err(Failure::Server)?;
        }
        Ok(changed)
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
        if self.abandoned.load(Ordering::Relaxed)
            && let Ok(runtime) = Handle::try_current()
        {
            let Canceller { token, tls, limit } = &self.canceller;
            let (token, tls, limit) = (token.clone(), tls.clone(), *limit);
            runtime.spawn(async move {
                match timeout(limit, token.cancel_query(tls)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "an abandoned session was not stopped"),
                    Err(_) => tracing::debug!("an abandoned session was not stopped within {limit:?}"),
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
