//! Output on stdout and stderr, which can be closed at any time.

use std::io::{ErrorKind, Write};
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use crate::failure::Failure;
use enjambre_core::UnixMillis;

/// The option of commands that print lines.
#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// The output of a command on stdout. A closed pipe (`| head`) is not an error; further output is discarded.
#[derive(Debug, Default)]
pub(crate) struct Stdout {
    closed: bool,
    failed: Option<Failure>,
}

impl Stdout {
    /// Prints a line and flushes it.
    pub(crate) fn line(&mut self, text: &str) {
        if self.closed {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            self.closed = true;
            if error.kind() != ErrorKind::BrokenPipe {
                self.failed = Some(Failure::from(error).context("cannot write to stdout"));
            }
        }
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(&text),
            Err(error) => {
                self.failed = Some(Failure::failed(format!("cannot format the output as JSON: {error}")));
            }
        }
    }

    /// Returns whether the reader has closed the pipe.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Returns the error of a failed write, if any.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        self.failed.map_or(Ok(()), Err)
    }
}

pub(crate) fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub(crate) fn warn(message: &str) {
    notice(&format!("warning: {message}"));
}

/// Formats a number of things, such as `1 file` or `2 files`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Formats a time.
pub(crate) fn time(time: UnixMillis) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(time.get())).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / seconds.max(1e-6))
}

/// Replaces control characters in text from a remote.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
