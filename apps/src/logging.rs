//! Log output on stderr, with `tracing`.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use enjambre_control::{Event, Events, Failure};
use enjambre_core::storage::embedded::is_guarded;
use parking_lot::Mutex;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::sections::{LogFormat, LogSection};
use crate::display::visible_except;
use crate::log_lines::LogLines;
#[cfg(feature = "otlp")]
use crate::otlp::SpanExport;

/// Targets that log the parameters of SQL statements, which contain keys and content, at level `debug`.
const CAPPED_TARGETS: [&str; 2] = ["tokio_postgres", "tokio_postgres::query"];

/// The description of a valid level, for errors.
const EXPECTED_LEVEL: &str =
    "expected error, warn, info, debug, trace, or a filter such as \"info,enjambre_swarm=debug\"";

/// Returns a key of the section with an invalid value, and the problem.
pub(crate) fn invalid(section: &LogSection) -> Option<(&'static str, &'static str)> {
    let LogSection { level, otlp_endpoint, .. } = section;
    if filter(level).is_none() {
        return Some(("log.level", EXPECTED_LEVEL));
    }
    let is_used = !otlp_endpoint.is_empty();
    if is_used && cfg!(not(feature = "otlp")) {
        return Some(("log.otlp_endpoint", "this program was built without the feature `otlp`"));
    }
    if is_used && !otlp_endpoint.starts_with("http://") {
        return Some(("log.otlp_endpoint", "expected a URL such as \"http://127.0.0.1:4318\""));
    }
    None
}

/// Parses the filter of `[log] level`. Targets that log secrets or content are capped at level `info`.
fn filter(level: &str) -> Option<Targets> {
    let level: String = level.split_whitespace().collect();
    // `Targets` reads a word that is not a level as the name of the only target to log, and no word as `error`.
    let is_clear =
        |part: &str| part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok());
    if !level.split(',').all(is_clear) {
        return None;
    }
    let mut filter: Targets = level.parse().ok()?;
    for target in CAPPED_TARGETS {
        if filter.would_enable(target, &Level::DEBUG) {
            filter = filter.with_target(target, LevelFilter::INFO);
        }
    }
    Some(filter)
}

/// Replaces the panic message of a storage engine by a debug event. The caller of the engine reports the panic as an error.
pub(crate) fn silence_engine_panics() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_guarded() {
            tracing::debug!(%panic, "storage engine panicked");
        } else {
            default_hook(panic);
        }
    }));
}

/// Returns whether the user sets `NO_COLOR` (<https://no-color.org>).
fn is_color_off() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Writes events, each of which is one line. Hidden characters in texts from remotes become visible.
struct EventWriter<W>(W);

impl<W: Write> Write for EventWriter<W> {
    /// Receives a complete event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        // The formatter escapes the character ESC of texts, and uses it for colors.
        let line = visible_except(text.trim_end_matches('\n'), &['\x1b', '\t']);
        self.0.write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The log of the process.
#[derive(Debug)]
pub(crate) struct Log {
    /// The last lines.
    pub(crate) lines: LogLines,
    level: Mutex<String>,
    filter: reload::Handle<Targets, Registry>,
    #[cfg(feature = "otlp")]
    spans: Option<SpanExport>,
}

impl Log {
    /// Executes [`Command::Log`](enjambre_control::Command::Log): changes the level, if one is given, and reports it.
    pub(crate) async fn execute(&self, level: Option<String>, events: &Events) -> Result<(), Failure> {
        if let Some(level) = level {
            let Some(filter) = filter(&level) else {
                return Err(Failure::usage(format!("invalid log level {level:?}: {EXPECTED_LEVEL}")));
            };
            self.filter
                .reload(filter)
                .map_err(|error| Failure::failed(format!("cannot change the log level: {error}")))?;
            tracing::info!(filter = level, "log level changed");
            *self.level.lock() = level;
        }
        let level = self.level.lock().clone();
        events.send(Event::LogLevel { level }).await;
        Ok(())
    }

    /// Sends the last spans.
    pub(crate) async fn stop(&self) {
        #[cfg(feature = "otlp")]
        if let Some(spans) = &self.spans {
            spans.stop().await;
        }
    }
}

/// Starts log output. Further calls have no effect.
pub(crate) fn start(section: &LogSection) -> Arc<Log> {
    let LogSection { level, format, .. } = section;
    let filter = filter(level).unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let (filter, handle) = reload::Layer::new(filter);
    // Internal errors would be reported on stderr, which panics if stderr is closed, for example during shutdown.
    let output = tracing_subscriber::fmt::layer().log_internal_errors(false);
    let output: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => Box::new(
            output
                .with_writer(|| EventWriter(io::stderr()))
                .with_ansi(io::stderr().is_terminal() && !is_color_off())
                .with_target(false),
        ),
        // Escapes control characters. Programs get other hidden characters as they are.
        LogFormat::Json => Box::new(output.json().with_span_list(false).with_writer(io::stderr)),
    };
    let lines = LogLines::default();
    let subscriber = tracing_subscriber::registry().with(filter).with(output).with(lines.clone());
    #[cfg(feature = "otlp")]
    let (spans, layer) = SpanExport::start(&section.otlp_endpoint).unzip();
    #[cfg(feature = "otlp")]
    let subscriber = subscriber.with(layer);
    let _ = subscriber.try_init();
    Arc::new(Log {
        lines,
        level: Mutex::new(level.clone()),
        filter: handle,
        #[cfg(feature = "otlp")]
        spans,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_with_hidden_characters_is_one_visible_line() {
        let mut written = Vec::new();
        let event = "\x1b[33mWARN\x1b[0m refused: a\u{202e}b\nERROR forged\n";
        EventWriter(&mut written).write_all(event.as_bytes()).unwrap();
        let line = "\x1b[33mWARN\x1b[0m refused: a\\u{202e}b\\u{a}ERROR forged\n";
        assert_eq!(String::from_utf8(written).unwrap(), line);
    }

    #[test]
    fn unknown_level_is_rejected() {
        for level in ["", "warning", "info,", "verbose", "enjambre_swarm", "info,enjambre_swarm", "x=loud"] {
            assert!(filter(level).is_none(), "{level:?}");
        }
        let filter = filter("info, enjambre_swarm=debug").unwrap();
        assert!(filter.would_enable("enjambre_swarm", &Level::DEBUG));
    }

    #[test]
    fn statement_parameters_are_never_logged() {
        for level in ["debug", "trace", "tokio_postgres=trace", "info,tokio_postgres::query=debug"] {
            let filter = filter(level).unwrap();
            assert!(!filter.would_enable("tokio_postgres::query", &Level::DEBUG), "{level}");
        }
        assert!(filter("debug").unwrap().would_enable("enjambre_core", &Level::DEBUG));
        assert!(
            !filter("warn").unwrap().would_enable("tokio_postgres", &Level::INFO),
            "the cap enables nothing"
        );
    }
}
