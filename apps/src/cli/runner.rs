//! Execution of commands on a data directory: in the running node through its control socket, or in this process.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enjambre_control::{Command, Event, Failure, Input, no_input, run_locally};
use tokio::time::{Instant, sleep};

use super::context::Context;
use super::output::{Stdout, notice, notice_on_terminal, notify_if_silent, warn};
use crate::access::{own_uid, user_name};
use crate::config::load::Loaded;
use crate::config::sections::NodeKind;
use crate::control::client::{Connection, connect};
use crate::data_dir::{DataDir, never_started, other_owner};
use crate::peer::{PeerNode, Reach};
use crate::tracker::admin::StandaloneAdmin;

/// Time to wait for a process that holds the lock but neither responds nor exits, for example while it starts or stops.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of attempts if the running node exits during the command.
const MAX_ATTEMPTS: usize = 5;

/// Runs a command of a peer. `show` prints its events, except warnings.
pub(super) async fn print(
    context: &Context<'_>,
    command: Command,
    show: impl FnMut(&mut Stdout, Event) + Send,
) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    run(context, command, &mut printing(&mut stdout, show)).await?;
    stdout.finish()
}

/// Runs a command in the running tracker, or on its database if the tracker is stopped. Creates no data directory. `show`
/// prints its events, except warnings.
pub(super) async fn print_at_tracker(
    context: &Context<'_>,
    command: Command,
    show: impl FnMut(&mut Stdout, Event) + Send,
) -> Result<(), Failure> {
    let path = context.loaded.data_dir(NodeKind::Tracker);
    if !path.try_exists().unwrap_or(true) {
        return Err(never_started(&path));
    }
    let mut stdout = Stdout::default();
    let mut show = printing(&mut stdout, show);
    let run = async {
        match lock_or_connect(&context.loaded, NodeKind::Tracker).await? {
            Access::Locked(data_dir) => {
                let admin = StandaloneAdmin::open(context.registry, &context.loaded, data_dir).await?;
                let result = run_locally(&admin.service, command, no_input(), &mut show).await;
                result.and(admin.close().await)
            }
            Access::Connected(connection) => connection.run(command, &mut show).await.unwrap_or_else(|| {
                Err(Failure::failed(
                    "the running tracker exited during the command; check the result and retry if necessary",
                ))
            }),
        }
    };
    context.stop.run_until_cancelled(run).await.unwrap_or_else(|| Err(interrupted()))?;
    drop(show);
    stdout.finish()
}

/// Runs a command of a peer, or with the configuration of a tracker the command of the same name of the tracker.
pub(super) async fn print_at_either(
    context: &Context<'_>,
    command: Command,
    show: impl FnMut(&mut Stdout, Event) + Send,
) -> Result<(), Failure> {
    match context.loaded.kind {
        NodeKind::Peer => print(context, command, show).await,
        NodeKind::Tracker => print_at_tracker(context, command, show).await,
    }
}

fn printing<'a>(
    stdout: &'a mut Stdout,
    mut show: impl FnMut(&mut Stdout, Event) + Send + 'a,
) -> impl FnMut(Event) + Send + 'a {
    move |event| match event {
        Event::Warning { message } => warn(&message),
        event => show(stdout, event),
    }
}

/// Runs a command and stops the node that was started for it, if any.
pub(super) async fn run(
    context: &Context<'_>,
    command: Command,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<(), Failure> {
    if let Some(node) = run_and_stay(context, command, None, show).await? {
        node.stop().await;
    }
    Ok(())
}

/// Runs a command in the running node, or in a node that is started for it. Returns that node, which keeps running, if the
/// command succeeds.
pub(super) async fn run_and_stay(
    context: &Context<'_>,
    command: Command,
    mut input: Option<Input>,
    show: &mut (dyn FnMut(Event) + Send),
) -> Result<Option<PeerNode>, Failure> {
    let reach = match command {
        // If no peer is running, the trackers learn of a removal when the peer starts and announces its files.
        Command::Library | Command::Remove { .. } => Reach::Offline,
        Command::Downloads
        | Command::Download { .. }
        | Command::PauseDownload { .. }
        | Command::ResumeDownload { .. }
        | Command::CancelDownload { .. }
        | Command::MoveDownload { .. } => Reach::Offline,
        _ => Reach::Command,
    };
    let is_local =
        reach == Reach::Offline || matches!(command, Command::Export { .. } | Command::Verify { .. });
    if is_local && !context.loaded.data_dir(NodeKind::Peer).try_exists().unwrap_or(true) {
        return on_missing_library(&command, &context.loaded).map(|()| None);
    }
    let has_input = input.is_some();
    let silent = AtomicBool::new(true);
    let mut show = |event| {
        silent.store(false, Ordering::Relaxed);
        show(event);
    };
    let is_silent = || silent.load(Ordering::Relaxed);
    for _ in 0..MAX_ATTEMPTS {
        let input = input.take().unwrap_or_else(no_input);
        match lock_or_connect(&context.loaded, NodeKind::Peer).await? {
            Access::Locked(data_dir) => {
                let start =
                    PeerNode::start(context.registry, &context.loaded, data_dir, false, reach, &context.log);
                let node = context.stop.run_until_cancelled(start).await.ok_or_else(interrupted)??;
                let running = run_locally(node.handler(), command.clone(), input, &mut show);
                let running = notify_if_silent(running, is_silent, || {
                    notice_on_terminal("waiting for trackers and peers to reply");
                });
                let result = context.stop.run_until_cancelled(running).await;
                if let Err(failure) = result.unwrap_or_else(|| Err(interrupted())) {
                    node.stop().await;
                    return Err(failure);
                }
                return Ok(Some(node));
            }
            Access::Connected(connection) => {
                let mut has_content = false;
                let mut show = |event| {
                    has_content |= matches!(event, Event::Content { .. });
                    show(event);
                };
                let running = connection.with_input(input).run(command.clone(), &mut show);
                let running = notify_if_silent(running, is_silent, || {
                    notice_on_terminal("waiting for the running peer to reply");
                });
                match context.stop.run_until_cancelled(running).await.ok_or_else(interrupted)? {
                    Some(result) => return result.map(|()| None),
                    // Another attempt would read or write the content again from its start.
                    None if has_content || has_input => {
                        return Err(Failure::failed("the running peer exited before the end of the content"));
                    }
                    None => notice("the running peer exited; continuing in this process"),
                }
            }
        }
    }
    Err(Failure::failed(format!(
        "the peer that uses {} exited repeatedly during the command",
        context.loaded.data_dir(NodeKind::Peer).display()
    )))
}

enum Access {
    Locked(DataDir),
    /// Another process holds the lock and accepts commands.
    Connected(Connection),
}

/// Locks a data directory, or connects to the process that holds the lock.
async fn lock_or_connect(loaded: &Loaded, kind: NodeKind) -> Result<Access, Failure> {
    let path = &loaded.data_dir(kind);
    if let Some(owner) = other_owner(path) {
        let connection = connect_to_other_user(loaded, kind, owner).await?;
        let connected = connection.map(|connection| connected(connection, loaded));
        return connected.ok_or_else(|| {
            let (path, owner) = (path.display(), user_name(owner));
            Failure::failed(format!(
                "{path} belongs to user {owner}, and no node runs in it; run the command as that user"
            ))
        });
    }
    let until = Instant::now() + LOCK_TIMEOUT;
    let attempts = async {
        loop {
            if let Some(data_dir) = DataDir::try_lock(path, loaded.group_access(kind)).await? {
                return Ok(Access::Locked(data_dir));
            }
            match connect(path).await {
                Ok(connection) => return Ok(connected(connection, loaded)),
                Err(error) if Instant::now() > until => {
                    let text =
                        format!("{} is in use by another process that accepts no commands", path.display());
                    return Err(Failure::from(error).context(text));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    notify_of_lock(path, attempts).await
}

/// States on a terminal that the command waits for another process, if that takes long.
async fn notify_of_lock<T>(path: &Path, attempts: impl Future<Output = T>) -> T {
    let text = || format!("waiting for the process that uses {}", path.display());
    notify_if_silent(attempts, || true, || notice_on_terminal(&text())).await
}

fn connected(connection: Connection, loaded: &Loaded) -> Access {
    Access::Connected(connection.with_settings(loaded.required_of_node()))
}

/// Connects to the running node, or returns `None` if no node is running.
pub(super) async fn connect_to_running(
    loaded: &Loaded,
    kind: NodeKind,
) -> Result<Option<Connection>, Failure> {
    let path = loaded.data_dir(kind);
    match other_owner(&path) {
        Some(owner) => connect_to_other_user(loaded, kind, owner).await,
        None => Ok(connect(&path).await.ok()),
    }
}

/// Connects to the running node of another user, whose data directory this user never changes. Returns `None` if no node
/// is running.
async fn connect_to_other_user(
    loaded: &Loaded,
    kind: NodeKind,
    owner: u32,
) -> Result<Option<Connection>, Failure> {
    let (path, owner) = (loaded.data_dir(kind), user_name(owner));
    // Without the setting, the directory may be a trap of the other user.
    if own_uid() != 0 && !loaded.group_access(kind) {
        return Err(Failure::failed(format!(
            "{} belongs to user {owner}; run the command as that user, or set group_access = true to open the running node \
             to the group of the directory",
            path.display()
        )));
    }
    match connect(&path).await {
        Ok(connection) => Ok(Some(connection)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => {
            let text = format!("cannot reach the node of user {owner} in {}", path.display());
            Err(Failure::from(error).context(text))
        }
    }
}

/// Locks the data directory of a peer for a daemon. Waits for a short command to exit, but not for another daemon.
pub(super) async fn lock_for_daemon(loaded: &Loaded) -> Result<DataDir, Failure> {
    let path = &loaded.data_dir(NodeKind::Peer);
    if let Some(data_dir) = DataDir::try_lock(path, loaded.group_access(NodeKind::Peer)).await? {
        return Ok(data_dir);
    }
    if let Ok(connection) = connect(path).await {
        let mut daemon = None;
        let mut show = |event| {
            if let Event::Status(status) = event {
                daemon = status.daemon.then_some(status.pid);
            }
        };
        if let Some(Err(failure)) = connection.run(Command::Status, &mut show).await {
            return Err(failure.context(format!("{} is in use", path.display())));
        }
        if let Some(pid) = daemon {
            let text = format!(
                "a peer already runs in {} (process {pid}); stop it, or choose another peer.data_dir",
                path.display()
            );
            return Err(Failure::failed(text));
        }
    }
    lock(loaded, NodeKind::Peer).await
}

/// Locks a data directory. Fails if another process holds the lock for too long.
pub(super) async fn lock(loaded: &Loaded, kind: NodeKind) -> Result<DataDir, Failure> {
    let path = loaded.data_dir(kind);
    let until = Instant::now() + LOCK_TIMEOUT;
    let attempts = async {
        loop {
            if let Some(data_dir) = DataDir::try_lock(&path, loaded.group_access(kind)).await? {
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
    };
    notify_of_lock(&path, attempts).await
}

/// Returns the result of a command on the library or the download queue of a peer that was never started. It creates no data
/// directory.
fn on_missing_library(command: &Command, loaded: &Loaded) -> Result<(), Failure> {
    let failure = never_started(&loaded.data_dir(NodeKind::Peer));
    match command {
        Command::Library | Command::Downloads | Command::Verify { query: None } => {
            notice_on_terminal(&failure.message);
            Ok(())
        }
        _ => Err(failure),
    }
}

fn interrupted() -> Failure {
    Failure::interrupted("interrupted; completed work is kept")
}
