//! Output on stdout and stderr, which can be closed at any time.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use clap::Args;
use enjambre_control::Failure;
use serde::Serialize;
use tokio::time::sleep;

use crate::display::{is_confusable, visible};
use enjambre_core::{FileKind, UnixMillis};

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
    /// Prints a line for people and flushes it. Hidden characters become visible.
    pub(crate) fn line(&mut self, text: &str) {
        self.write(&visible(text));
    }

    fn write(&mut self, line: &str) {
        if self.closed {
            return;
        }
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            self.closed = true;
            if error.kind() != ErrorKind::BrokenPipe {
                self.failed = Some(Failure::from(error).context("cannot write to stdout"));
            }
        }
    }

    pub(crate) fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.write(&text),
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

/// Prints a line for people on stderr. Hidden characters become visible.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", visible(text));
}

/// Time without output after which a command states what it waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// Completes `work`. Calls `notify` once if `is_silent` after [`SILENCE`].
pub(crate) async fn notify_if_silent<T>(
    work: impl Future<Output = T>,
    is_silent: impl Fn() -> bool,
    notify: impl FnOnce(),
) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = sleep(SILENCE) => if is_silent() { notify() },
    }
    work.await
}

/// Prints a line on stderr if that is a terminal. Scripts expect only errors there.
pub(crate) fn notice_on_terminal(text: &str) {
    if std::io::stderr().is_terminal() {
        notice(text);
    }
}

pub(crate) fn warn(message: &str) {
    notice(&format!("warning: {message}"));
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Formats a time. A remote can send a time that RFC 3339 cannot represent; it becomes the last one.
pub(crate) fn time(time: UnixMillis) -> String {
    let last = UnixMillis::YEAR_10000 - Duration::from_secs(1);
    let at = UNIX_EPOCH + Duration::from_millis(time.min(last).get());
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Formats the date of a time.
pub(crate) fn date(at: UnixMillis) -> String {
    let mut text = time(at);
    text.truncate("YYYY-MM-DD".len());
    text
}

pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    let rate = bytes as f64 / seconds.max(1e-6);
    match rate {
        1e7.. => format!("{:.0} MB/s", rate / 1e6),
        1e6.. => format!("{:.1} MB/s", rate / 1e6),
        1e3.. => format!("{:.0} kB/s", rate / 1e3),
        _ => format!("{rate:.0} B/s"),
    }
}

/// Formats the name of a file or directory. Marks one that may be confused with another name.
pub(crate) fn name(name: &str, kind: FileKind) -> String {
    let slash = if kind == FileKind::Collection { "/" } else { "" };
    let warning = if is_confusable(name) { " (confusable letters)" } else { "" };
    format!("{name}{slash}{warning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silent_wait_is_announced_once() {
        for (seconds, is_silent, expected) in [(3, true, 1), (3, false, 0), (0, true, 0)] {
            let mut announced = 0;
            let work = sleep(Duration::from_secs(seconds));
            notify_if_silent(work, || is_silent, || announced += 1).await;
            assert_eq!(announced, expected, "{seconds} s");
        }
    }

    #[test]
    fn confusable_name_is_marked() {
        assert_eq!(name("p\u{430}ypal", FileKind::File), "p\u{430}ypal (confusable letters)");
        assert_eq!(name("paypal", FileKind::Collection), "paypal/");
    }

    #[test]
    fn slow_rate_is_shown_in_a_smaller_unit() {
        for (bytes, expected) in [
            (0, "0 B/s"),
            (999, "999 B/s"),
            (400_000, "400 kB/s"),
            (2_500_000, "2.5 MB/s"),
            (117_000_000, "117 MB/s"),
        ] {
            assert_eq!(rate(bytes, 1.0), expected);
        }
    }

    #[test]
    fn time_after_year_9999_is_the_last_one() {
        assert_eq!(time(UnixMillis(0)), "1970-01-01T00:00:00Z");
        for at in [UnixMillis::YEAR_10000, UnixMillis(1 << 48), UnixMillis(u64::MAX)] {
            assert_eq!(time(at), "9999-12-31T23:59:59Z");
        }
    }
}
