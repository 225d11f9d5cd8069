//! Runs a command in the process that owns the data folder: in another one through its control socket, or here.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Context;
use super::output::note;
use crate::config::sections::NodeKind;
use crate::control::client::{Outcome, attach};
use crate::control::message::{Command, Event, run_here};
use crate::data_dir::DataDir;
use crate::failure::Failure;
use crate::peer::{PeerNode, Reach};
use crate::tracker::office::LoneOffice;

/// How long to wait for an owner that neither answers nor goes away: one that just starts, stops, or only looks.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the owner may go away in the middle of the command.
const ATTEMPTS: usize = 5;

/// Where a command ran.
pub(super) enum Ran {
    /// In the owner of the folder, which lives on.
    Attached,
    /// Here; the node is still running.
    Here(PeerNode),
}

/// Runs a command to its end and stops the node that was started for it.
pub(super) async fn run(
    context: &Context<'_>,
    command: Command,
    reach: Reach,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    match run_and_stay(context, command, reach, show).await? {
        Ran::Attached => {}
        Ran::Here(node) => node.stop().await,
    }
    Ok(())
}

/// Runs a command in the running tracker, or on its database where none runs.
pub(super) async fn run_at_tracker(
    context: &Context<'_>,
    command: Command,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    let path = context.loaded.data_dir(NodeKind::Tracker);
    let run = async {
        match own_or_attach(&path).await? {
            Owner::Here(data_dir) => {
                let lone = LoneOffice::open(context.registry, &context.loaded, data_dir).await?;
                let result = run_here(&lone.office, command, show).await;
                result.and(lone.close().await)
            }
            Owner::Other(attached) => match attached.run(command, show).await {
                Outcome::Ended(result) => result,
                Outcome::OwnerGone => Err(Failure::failed(
                    "the running tracker went away in the middle; look what it did, and try again",
                )),
            },
        }
    };
    context.stop.run_until_cancelled(run).await.unwrap_or_else(|| Err(interrupted()))
}

/// Runs a command to its end. A node that was started for it goes on if the command succeeded.
pub(super) async fn run_and_stay(
    context: &Context<'_>,
    command: Command,
    reach: Reach,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<Ran, Failure> {
    let path = context.loaded.data_dir(NodeKind::Peer);
    for _ in 0..ATTEMPTS {
        match own_or_attach(&path).await? {
            Owner::Here(data_dir) => {
                let start = PeerNode::start(context.registry, &context.loaded, data_dir, reach);
                let node = context.stop.run_until_cancelled(start).await.ok_or_else(interrupted)??;
                let running = run_here(node.handler(), command.clone(), show);
                let result =
                    context.stop.run_until_cancelled(running).await.unwrap_or_else(|| Err(interrupted()));
                match result {
                    Ok(()) => return Ok(Ran::Here(node)),
                    Err(failure) => {
                        node.stop().await;
                        return Err(failure);
                    }
                }
            }
            Owner::Other(attached) => {
                let running = attached.run(command.clone(), show);
                match context.stop.run_until_cancelled(running).await {
                    Some(Outcome::Ended(result)) => return result.map(|()| Ran::Attached),
                    Some(Outcome::OwnerGone) => note("the running peer went away; going on without it"),
                    None => return Err(interrupted()),
                }
            }
        }
    }
    Err(Failure::failed(format!("the owner of {} goes away again and again", path.display())))
}

/// Who owns the data folder.
pub(super) enum Owner {
    /// This process, from now on.
    Here(DataDir),
    /// Another one, which takes commands.
    Other(crate::control::client::Attached),
}

/// Becomes the owner of a data folder or finds out how to talk to it.
pub(super) async fn own_or_attach(path: &std::path::Path) -> Result<Owner, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let folder = path.to_owned();
        if let Some(owned) = crate::blocking(move || DataDir::try_own(&folder)).await? {
            return Ok(Owner::Here(owned));
        }
        match attach(path).await {
            Ok(attached) => return Ok(Owner::Other(attached)),
            Err(error) if Instant::now() > until => {
                let text = format!("{} is in use by another process that takes no commands", path.display());
                return Err(Failure::from(error).context(text));
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Becomes the owner of a peer's data folder for good. Waits for a command that is soon done; says at once that another
/// peer runs there.
pub(super) async fn own_for_good(path: &std::path::Path) -> Result<DataDir, Failure> {
    let folder = path.to_owned();
    if let Some(owned) = crate::blocking(move || DataDir::try_own(&folder)).await? {
        return Ok(owned);
    }
    if let Ok(attached) = attach(path).await {
        let mut daemon = None;
        let mut show = |event| match event {
            Event::Status(status) if status.daemon => daemon = Some(status.pid),
            _ => {}
        };
        attached.run(Command::Status, &mut show).await;
        if let Some(pid) = daemon {
            let text = format!(
                "a peer runs in {} already (process {pid}); stop it, or choose another peer.data_dir",
                path.display()
            );
            return Err(Failure::failed(text));
        }
    }
    own(path).await
}

/// Becomes the owner of a data folder, or says that another process is.
pub(super) async fn own(path: &std::path::Path) -> Result<DataDir, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let folder = path.to_owned();
        if let Some(owned) = crate::blocking(move || DataDir::try_own(&folder)).await? {
            return Ok(owned);
        }
        if Instant::now() > until {
            let text = format!(
                "{} is in use by another process; stop it, or choose another data_dir",
                path.display()
            );
            return Err(Failure::failed(text));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn interrupted() -> Failure {
    Failure::failed("interrupted; what was done so far is kept")
}
