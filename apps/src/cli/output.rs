//! Writing to stdout and stderr, which may be closed at any time.

use std::io::{ErrorKind, Write};
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use serde::Serialize;

use crate::failure::Failure;

/// What a command prints. A reader that went away (`| head`) is no failure; nothing more is written to it then.
#[derive(Debug, Default)]
pub(crate) struct Stdout {
    closed: bool,
    failed: Option<Failure>,
}

impl Stdout {
    /// Prints a line at once.
    pub(crate) fn line(&mut self, text: &str) {
        if self.closed {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            self.closed = true;
            if error.kind() != ErrorKind::BrokenPipe {
                self.failed = Some(Failure::from(error).context("the output cannot be written"));
            }
        }
    }

    /// Prints a value as a line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(&text),
            Err(error) => {
                self.failed = Some(Failure::failed(format!("the output cannot be written as JSON: {error}")));
            }
        }
    }

    /// Whether nobody reads any more.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// The failure to write something, if there was one.
    pub(crate) fn end(self) -> Result<(), Failure> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// Prints a line for people to stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A time in milliseconds since 1970-01-01 UTC for people.
pub(crate) fn time(ms: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Bytes per second for people.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / seconds.max(1e-6))
}

/// Text from elsewhere without what would move the cursor or change colours.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
