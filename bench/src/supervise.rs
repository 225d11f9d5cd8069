//! Cleanup under all circumstances: this process creates the directory and starts the measuring process in its own process
//! group. When that process ends in any way, or on a signal, all processes of the group are killed, including orphans, and
//! the directory is removed.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use rustix::io::retry_on_intr;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, kill_process_group, set_child_subreaper, waitid,
    waitpgid,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

/// Measures in a process of its own and in a new folder of `parent`; returns with what it ends.
pub(crate) fn run(parent: &Path) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(watch(parent))
}

async fn watch(parent: &Path) -> Result<ExitCode> {
    // From here on a signal does not end this process by itself.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let folder = tempfile::Builder::new()
        .prefix("compare-")
        .tempdir_in(parent)
        .with_context(|| parent.display().to_string())?;
    let mut group = Group::start(folder.path())?;
    let leader = group.leader;
    // Without reaping it, so that its id stays that of the group.
    let ended =
        spawn_blocking(move || waitid(WaitId::Pid(leader), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    let came = tokio::select! {
        ended = ended => {
            ended??;
            None
        }
        _ = hangup.recv() => Some(Signal::HUP),
        _ = interrupt.recv() => Some(Signal::INT),
        _ = terminate.recv() => Some(Signal::TERM),
    };
    let code = group.end();
    folder.close().context("the temporary folder stays")?;
    let code = came.map_or(code, |signal| Some(128 + signal.as_raw()));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The process that measures and all that it starts. They end when this is dropped.
struct Group {
    leader: Pid,
    has_ended: bool,
}

impl Group {
    fn start(folder: &Path) -> Result<Self> {
        // Whoever loses its parent becomes a child of this process, so all of them can be waited for.
        set_child_subreaper(Some(getpid()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args_os().skip(1)).arg("--inside").arg(folder);
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        Ok(Self { leader: Pid::from_child(&child), has_ended: false })
    }

    /// Ends all of them; returns the exit code of the first one, or what a shell makes of the signal that ended it.
    fn end(&mut self) -> Option<i32> {
        if std::mem::replace(&mut self.has_ended, true) {
            return None;
        }
        // Both calls fail if the group is empty.
        let _ = kill_process_group(self.leader, Signal::KILL);
        let mut code = None;
        while let Ok(Some((pid, status))) = retry_on_intr(|| waitpgid(self.leader, WaitOptions::empty())) {
            if pid == self.leader {
                code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            }
        }
        code
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}
