//! Processes under test: start, read output line by line, signal and wait. Dropping a [`Process`] kills it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::binary;
use crate::wait::{TIMEOUT, wait_until};

#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LinesState {
    lines: Vec<String>,
    ended: bool,
}

/// A running process. Dropping it kills the process; in a failing test this also prints its standard error.
#[derive(Debug)]
pub struct Process {
    child: Child,
    title: String,
    stdout: Arc<Lines>,
    stderr: PathBuf,
    next: usize,
    exited: Option<ExitStatus>,
}

/// The exit status and output of a process.
#[derive(Debug)]
pub struct Output {
    /// The exit status; `None` if a signal ended the process.
    pub status: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error output.
    pub stderr: String,
    /// The command line, for messages.
    pub title: String,
}

impl Process {
    /// Starts `enjambre` with these arguments. Standard error is written to a file in `folder`.
    ///
    /// # Panics
    /// Panics if the process cannot be started.
    pub fn start<A: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(binary::enjambre());
        command.args(args);
        Self::start_command(folder, command)
    }

    /// Starts a command without `ENJAMBRE_*` environment variables and without the configuration file of the user. Standard
    /// error is written to a file in `folder`.
    ///
    /// # Panics
    /// Panics if the process cannot be started.
    pub fn start_command(folder: &Path, mut command: Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let stderr = folder.join(format!("stderr-{number}.log"));
        let title = title_of(&command);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ENJAMBRE_")) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .env("XDG_CONFIG_HOME", folder.join("no-user-config"))
            .env("XDG_DATA_HOME", folder.join("no-user-data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("cannot create the log file"))
            .spawn()
            .unwrap_or_else(|error| panic!("{title}: {error}"));
        let stdout = Arc::new(Lines::default());
        let pipe = child.stdout.take().expect("standard output is a pipe");
        thread::spawn({
            let stdout = Arc::clone(&stdout);
            move || read_lines(pipe, &stdout)
        });
        Self { child, title, stdout, stderr, next: 0, exited: None }
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads lines of standard output until `wanted` returns a value for a line, and returns that value.
    ///
    /// # Panics
    /// Panics if no line matches before the timeout or the end of the output.
    #[track_caller]
    pub fn wait_line<T>(&mut self, timeout: Duration, wanted: impl FnMut(&str) -> Option<T>) -> T {
        self.find_line(timeout, wanted).unwrap_or_else(|reason| {
            let lines = self.stdout.state.lock().lines.join("\n");
            panic!("{}: {reason} before a line matched\n{lines}\n{}", self.title, self.log_tail());
        })
    }

    /// Like [`Process::wait_line`], but returns a reason if no line matches.
    pub fn find_line<T>(
        &mut self,
        timeout: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, &'static str> {
        let until = Instant::now() + timeout;
        let mut state = self.stdout.state.lock();
        loop {
            while let Some(line) = state.lines.get(self.next) {
                self.next += 1;
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            let timed_out = !state.ended && self.stdout.changed.wait_until(&mut state, until).timed_out();
            let all_read = state.lines.len() == self.next;
            if all_read && (state.ended || timed_out) {
                return Err(if state.ended { "the output ended" } else { "the wait timed out" });
            }
        }
    }

    /// Reads events of `--json` output until `wanted` returns a value for an event, and returns that value.
    ///
    /// # Panics
    /// Panics like [`Process::wait_line`], and if a line is not JSON.
    #[track_caller]
    pub fn wait_event<T>(&mut self, mut wanted: impl FnMut(&Value) -> Option<T>) -> T {
        self.wait_line(TIMEOUT, |line| wanted(&parse(line)))
    }

    /// Whether the process is running.
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().expect("cannot query the child process");
        }
        self.exited
    }

    /// Waits for the exit of the process.
    ///
    /// # Panics
    /// Panics if the process is still running after the timeout.
    #[track_caller]
    pub fn wait(mut self, timeout: Duration) -> Output {
        let title = self.title.clone();
        let status = wait_until(&format!("exit of {title}"), timeout, || self.exit_status());
        let mut state = self.stdout.state.lock();
        let until = Instant::now() + TIMEOUT;
        while !state.ended {
            // A child of the process may still have the pipe open.
            assert!(
                !self.stdout.changed.wait_until(&mut state, until).timed_out(),
                "{title}: standard output is still open"
            );
        }
        let stdout = state.lines.iter().flat_map(|line| [line, "\n"]).collect();
        drop(state);
        Output { status: status.code(), stdout, stderr: self.stderr_text(), title }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// Panics if the process has exited.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{} has already exited\n{}", self.title, self.log_tail());
        kill_process(Pid::from_child(&self.child), signal).expect("cannot send the signal");
    }

    /// Kills the process with `SIGKILL`, unless it has exited, and waits for its exit.
    #[track_caller]
    pub fn kill(mut self) -> Output {
        if self.is_running() {
            // The process may exit on its own. Its id stays valid until it is waited for.
            let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        }
        self.wait(TIMEOUT)
    }

    /// Returns the standard error output so far.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let text = self.stderr_text();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("--- standard error of {} (pid {})\n{}", self.title, self.pid(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // Fails if the process has just exited.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

impl Output {
    /// Returns the output of a successful process.
    ///
    /// # Panics
    /// Panics if the exit status is not 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_status(0)
    }

    /// Returns the output of a process with this exit status.
    ///
    /// # Panics
    /// Panics if the exit status differs.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "{}\n--- standard output\n{}--- standard error\n{}",
            self.title,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Parses each line of standard output as JSON.
    ///
    /// # Panics
    /// Panics if a line is not valid JSON.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(parse).collect()
    }
}

#[track_caller]
fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("invalid JSON: {error}: {line}"))
}

fn title_of(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn read_lines(pipe: impl Read, lines: &Lines) {
    for line in BufReader::new(pipe).split(b'\n') {
        let Ok(line) = line else { break };
        lines.state.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
        lines.changed.notify_all();
    }
    lines.state.lock().ended = true;
    lines.changed.notify_all();
}
