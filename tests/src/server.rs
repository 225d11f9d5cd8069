//! The processes of database servers for tests.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::TIMEOUT;

/// A running process.
#[derive(Debug)]
pub(crate) struct Running {
    pid: Pid,
    ended: Receiver<()>,
}

impl Running {
    /// Starts a process without input and output. Its parent thread lives as long as the process, see [`command`].
    ///
    /// # Panics
    /// Panics if the process does not start.
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let (started, start) = channel();
        let (end, ended) = channel();
        thread::spawn(move || {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let _ = started.send(child.id());
            let _ = child.wait();
            let _ = end.send(());
        });
        let id = start.recv_timeout(TIMEOUT).expect("cannot start the server");
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id is positive");
        Self { pid, ended }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn has_exited(&self) -> bool {
        !matches!(self.ended.try_recv(), Err(TryRecvError::Empty))
    }

    /// Ends the process with a signal. Kills it, and returns `false`, if it does not exit.
    pub(crate) fn stop(self, signal: Signal) -> bool {
        if self.has_exited() {
            return true;
        }
        let _ = kill_process(self.pid, signal);
        let exited = self.ended.recv_timeout(TIMEOUT).is_ok();
        if !exited {
            let _ = kill_process(self.pid, Signal::KILL);
        }
        exited
    }
}

/// Returns the command for a program that receives `signal` if this process is killed. The kernel sends it when the parent thread
/// exits. `options` are further ones of `setpriv`.
pub(crate) fn command(program: &Path, signal: &str, options: &[&str]) -> Command {
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]).args(options).arg(program);
    command
}

/// Returns different free ports. Another process may take them before the server does.
///
/// # Panics
/// Panics if there is none.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("no free port"));
    listeners.map(|listener| listener.local_addr().expect("the listener has an address").port())
}
