//! Execution of commands on a data directory: in the running node through its control socket, or in this process.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::context::Context;
use super::output::notice;
use crate::config::sections::NodeKind;
use crate::control::client::{Connection, Outcome, connect};
use crate::control::message::{Command, Event, run_locally};
use crate::data_dir::DataDir;
use crate::failure::Failure;
use crate::peer::{PeerNode, Reach};
use crate::tracker::admin::StandaloneAdmin;

/// Time to wait for a process that holds the lock but neither responds nor exits, for example while it starts or stops.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of attempts if the running node exits during the command.
const MAX_ATTEMPTS: usize = 5;

/// The process that executed a command.
pub(super) enum Executor {
    /// The running node.
    RunningNode,
    /// This process. The node that was started for the command is still running.
    Local(PeerNode),
}

/// Runs a command and stops the node that was started for it, if any.
pub(super) async fn run(
    context: &Context<'_>,
    command: Command,
    reach: Reach,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    match run_and_stay(context, command, reach, show).await? {
        Executor::RunningNode => {}
        Executor::Local(node) => node.stop().await,
    }
    Ok(())
}

/// Runs a command in the running tracker, or on its database if the tracker is stopped.
pub(super) async fn run_at_tracker(
    context: &Context<'_>,
    command: Command,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    let path = context.loaded.data_dir(NodeKind::Tracker);
    let run = async {
        match lock_or_connect(&path).await? {
            Access::Locked(data_dir) => {
                let admin = StandaloneAdmin::open(context.registry, &context.loaded, data_dir).await?;
                let result = run_locally(&admin.service, command, show).await;
                result.and(admin.close().await)
            }
            Access::Connected(connection) => match connection.run(command, show).await {
                Outcome::Ended(result) => result,
                Outcome::ConnectionClosed => Err(Failure::failed(
                    "the running tracker exited during the command; check the result and retry if necessary",
                )),
            },
        }
    };
    context.stop.run_until_cancelled(run).await.unwrap_or_else(|| Err(interrupted()))
}

/// Runs a command. A node that was started for it keeps running if the command succeeds.
pub(super) async fn run_and_stay(
    context: &Context<'_>,
    command: Command,
    reach: Reach,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<Executor, Failure> {
    let path = context.loaded.data_dir(NodeKind::Peer);
    for _ in 0..MAX_ATTEMPTS {
        match lock_or_connect(&path).await? {
            Access::Locked(data_dir) => {
                let start = PeerNode::start(context.registry, &context.loaded, data_dir, reach);
                let node = context.stop.run_until_cancelled(start).await.ok_or_else(interrupted)??;
                let running = run_locally(node.handler(), command.clone(), show);
                let result =
                    context.stop.run_until_cancelled(running).await.unwrap_or_else(|| Err(interrupted()));
                match result {
                    Ok(()) => return Ok(Executor::Local(node)),
                    Err(failure) => {
                        node.stop().await;
                        return Err(failure);
                    }
                }
            }
            Access::Connected(connection) => {
                let running = connection.run(command.clone(), show);
                match context.stop.run_until_cancelled(running).await {
                    Some(Outcome::Ended(result)) => return result.map(|()| Executor::RunningNode),
                    Some(Outcome::ConnectionClosed) => {
                        notice("the running peer exited; continuing in this process");
                    }
                    None => return Err(interrupted()),
                }
            }
        }
    }
    Err(Failure::failed(format!(
        "the peer that uses {} exited repeatedly during the command",
        path.display()
    )))
}

/// Access to a data directory.
enum Access {
    /// This process holds the lock.
    Locked(DataDir),
    /// Another process holds the lock and accepts commands.
    Connected(Connection),
}

/// Locks a data directory, or connects to the process that holds the lock.
async fn lock_or_connect(path: &Path) -> Result<Access, Failure> {
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        if let Some(data_dir) = try_lock(path).await? {
            return Ok(Access::Locked(data_dir));
        }
        match connect(path).await {
            Ok(connection) => return Ok(Access::Connected(connection)),
            Err(error) if Instant::now() > until => {
                let text =
                    format!("{} is in use by another process that accepts no commands", path.display());
                return Err(Failure::from(error).context(text));
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Locks the data directory of a peer for a daemon. Waits for a short command to exit, but not for another daemon.
pub(super) async fn lock_for_daemon(path: &Path) -> Result<DataDir, Failure> {
    if let Some(data_dir) = try_lock(path).await? {
        return Ok(data_dir);
    }
    if let Ok(connection) = connect(path).await {
        let mut daemon = None;
        let mut show = |event| {
            if let Event::Status(status) = event {
                daemon = status.daemon.then_some(status.pid);
            }
        };
        let _ = connection.run(Command::Status, &mut show).await;
        if let Some(pid) = daemon {
            let text = format!(
                "a peer already runs in {} (process {pid}); stop it, or choose another peer.data_dir",
                path.display()
            );
            return Err(Failure::failed(text));
        }
    }
    lock(path).await
}

/// Locks a data directory. Fails if another process holds the lock for too long.
pub(super) async fn lock(path: &Path) -> Result<DataDir, Failure> {
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        if let Some(data_dir) = try_lock(path).await? {
            return Ok(data_dir);
        }
        if Instant::now() > until {
            let text = format!(
                "{} is in use by another process; stop that process, or choose another data_dir",
                path.display()
            );
            return Err(Failure::failed(text));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn try_lock(path: &Path) -> Result<Option<DataDir>, Failure> {
    let path = path.to_owned();
    crate::blocking(move || DataDir::try_lock(&path)).await
}

fn interrupted() -> Failure {
    Failure::failed("interrupted; completed work is kept")
}
