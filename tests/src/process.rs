//! A process of the product: started, watched line by line, signalled, and gone when its guard is.

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
use crate::wait::{LONG, wait_until};

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

/// A running process. It is killed when this is dropped; if that is because a test failed, what it said is shown.
#[derive(Debug)]
pub struct Process {
    child: Child,
    title: String,
    stdout: Arc<Lines>,
    stderr: PathBuf,
    next: usize,
    ended: Option<ExitStatus>,
}

/// What a process that has ended said.
#[derive(Debug)]
pub struct Output {
    /// The exit status; `None` when it was ended by a signal.
    pub status: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// The command, for messages.
    pub title: String,
}

impl Process {
    /// Starts `enjambre` with these arguments. Its standard error is kept in a file of `folder`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start<A: AsRef<OsStr>>(folder: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(binary::enjambre());
        command.args(args);
        Self::start_command(folder, command)
    }

    /// Starts any command. Its standard error is kept in a file of `folder`.
    ///
    /// # Panics
    /// If it cannot be started.
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
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a test's folder can be written"))
            .spawn()
            .unwrap_or_else(|error| panic!("{title}: {error}"));
        let stdout = Arc::new(Lines::default());
        let pipe = child.stdout.take().expect("the pipe was asked for");
        thread::spawn({
            let stdout = Arc::clone(&stdout);
            move || read_lines(pipe, &stdout)
        });
        Self { child, title, stdout, stderr, next: 0, ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output that `wanted` makes something of; the lines before it are passed over.
    ///
    /// # Panics
    /// When there is none within the deadline or before the end of the output.
    #[track_caller]
    pub fn wait_line<T>(&mut self, deadline: Duration, wanted: impl FnMut(&str) -> Option<T>) -> T {
        self.find_line(deadline, wanted).unwrap_or_else(|why| {
            let lines = self.stdout.state.lock().lines.join("\n");
            panic!("{}: {why} before the line came\n{lines}\n{}", self.title, self.log_tail());
        })
    }

    /// As [`Process::wait_line`], with the reason where there is none.
    pub fn find_line<T>(
        &mut self,
        deadline: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, &'static str> {
        let until = Instant::now() + deadline;
        let mut state = self.stdout.state.lock();
        loop {
            while let Some(line) = state.lines.get(self.next) {
                self.next += 1;
                if let Some(found) = wanted(line) {
                    return Ok(found);
                }
            }
            let late = !state.ended && self.stdout.changed.wait_until(&mut state, until).timed_out();
            let nothing_new = state.lines.len() == self.next;
            if nothing_new && (state.ended || late) {
                return Err(if state.ended { "the output ended" } else { "the time was over" });
            }
        }
    }

    /// The next event of `--json` output that `wanted` makes something of.
    ///
    /// # Panics
    /// As [`Process::wait_line`], and when a line is not JSON.
    #[track_caller]
    pub fn wait_event<T>(&mut self, mut wanted: impl FnMut(&Value) -> Option<T>) -> T {
        self.wait_line(LONG, |line| wanted(&parse(line)))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the child is ours");
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs at the deadline.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Output {
        let title = self.title.clone();
        let status = wait_until(&format!("end of {title}"), deadline, || self.ended());
        let mut state = self.stdout.state.lock();
        let until = Instant::now() + LONG;
        while !state.ended {
            // A grandchild that holds the pipe would keep it open for ever.
            assert!(!self.stdout.changed.wait_until(&mut state, until).timed_out(), "{title}: output open");
        }
        let stdout = state.lines.iter().flat_map(|line| [line, "\n"]).collect();
        drop(state);
        Output { status: status.code(), stdout, stderr: self.stderr_text(), title }
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it has ended already and was waited for.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{} has ended already\n{}", self.title, self.log_tail());
        kill_process(Pid::from_child(&self.child), signal).expect("the child is ours");
    }

    /// `kill -9`, and waits until it is gone. It may have ended before.
    #[track_caller]
    pub fn kill(mut self) -> Output {
        if self.is_running() {
            // It may end at this moment, and is not gone before it is waited for.
            let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        }
        self.wait(LONG)
    }

    /// What it wrote to standard error so far.
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
            // Killing what has just ended fails, and that is fine.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

impl Output {
    /// The same, when the exit status is 0.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_status(0)
    }

    /// The same, when the exit status is this one.
    ///
    /// # Panics
    /// When it is another.
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

    /// Each line of standard output as JSON.
    ///
    /// # Panics
    /// When a line is not.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(parse).collect()
    }
}

#[track_caller]
fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
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
