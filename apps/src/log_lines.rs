//! The last lines of the log, in memory, for the API.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::Arc;

use enjambre_control::LogLine;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_swarm::change::ChangeNotifier;
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::display::visible_except;

/// Maximum number of lines.
const MAX_LINES: usize = 500;
/// Maximum length of a message in bytes.
const MAX_MESSAGE: usize = 1024;

/// The last lines of the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogLines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: ChangeNotifier,
}

#[derive(Debug, Default)]
struct Lines {
    recent: VecDeque<LogLine>,
    /// The number of lines so far, including dropped ones.
    count: u64,
}

impl LogLines {
    /// Returns at most `limit` of the last lines, newest last.
    pub(crate) fn recent(&self, limit: usize) -> Vec<LogLine> {
        let lines = self.0.lines.lock();
        lines.recent.iter().skip(lines.recent.len().saturating_sub(limit)).cloned().collect()
    }

    /// The number of lines so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.lines.lock().count
    }

    /// Waits until there are more than `seen` lines and returns the new ones that are still in memory. Sets `seen`.
    pub(crate) async fn next(&self, seen: &mut u64) -> Vec<LogLine> {
        self.0.changed.wait_until(|| self.count() > *seen).await;
        let lines = self.0.lines.lock();
        let new = usize::try_from(lines.count - *seen).unwrap_or(usize::MAX);
        *seen = lines.count;
        lines.recent.iter().skip(lines.recent.len().saturating_sub(new)).cloned().collect()
    }

    fn push(&self, line: LogLine) {
        let mut lines = self.0.lines.lock();
        if lines.recent.len() == MAX_LINES {
            lines.recent.pop_front();
        }
        lines.recent.push_back(line);
        lines.count += 1;
        drop(lines);
        self.0.changed.notify();
    }
}

impl<S: Subscriber> Layer<S> for LogLines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        let Message { mut text, fields } = message;
        text.push_str(&fields);
        let end = (0..=MAX_MESSAGE).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        let metadata = event.metadata();
        self.push(LogLine {
            time_ms: SystemClock.now(),
            level: metadata.level().as_str().to_ascii_lowercase(),
            target: metadata.target().to_owned(),
            message: visible_except(&text, &['\t']),
        });
    }
}

/// The message of an event, and its other fields as `name=value`.
#[derive(Debug, Default)]
struct Message {
    text: String,
    fields: String,
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.text.push_str(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn last_lines_are_kept_with_their_fields() {
        let lines = LogLines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..MAX_LINES + 2 {
                tracing::info!(number, name = "a\u{202e}b", "file\npublished");
            }
            tracing::warn!("{}", "ä".repeat(MAX_MESSAGE));
        });
        let recent = lines.recent(2);
        let LogLine { level, target, message, .. } = &recent[0];
        assert_eq!((level.as_str(), target.as_str()), ("info", module_path!()));
        assert_eq!(message, "file\\u{a}published number=501 name=\"a\\u{202e}b\"");
        assert_eq!((recent[1].level.as_str(), recent[1].message.len()), ("warn", MAX_MESSAGE));
        assert_eq!((lines.recent(usize::MAX).len(), lines.count()), (MAX_LINES, MAX_LINES as u64 + 3));
    }

    #[test]
    fn reader_gets_each_new_line_once() {
        let lines = LogLines::default();
        let line = |message: &str| LogLine {
            time_ms: SystemClock.now(),
            level: "info".to_owned(),
            target: String::new(),
            message: message.to_owned(),
        };
        let mut seen = 0;
        assert!(lines.next(&mut seen).now_or_never().is_none());
        lines.push(line("a"));
        lines.push(line("b"));
        let new = lines.next(&mut seen).now_or_never().unwrap();
        assert_eq!(new.iter().map(|line| line.message.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(lines.next(&mut seen).now_or_never().is_none());
    }
}
