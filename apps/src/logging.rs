//! Logs on stderr, by `tracing`.

use std::io::IsTerminal;

use enjambre_core::storage::embedded::is_guarded;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What tells of the parameters of its statements, which hold keys and content, to whoever looks closely.
const TALKATIVE: [&str; 2] = ["tokio_postgres", "tokio_postgres::query"];

/// The filter of a `[log] level`. Whatever it says, secrets and content do not get into a log.
pub fn filter(level: &str) -> Result<Targets, ParseError> {
    let mut filter: Targets = level.parse()?;
    for target in TALKATIVE {
        if filter.would_enable(target, &Level::DEBUG) {
            filter = filter.with_target(target, LevelFilter::INFO);
        }
    }
    Ok(filter)
}

/// Keeps quiet about panics of a storage engine: they become errors, and whoever called it tells of those.
pub fn hush_engines() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_guarded() {
            tracing::debug!("an engine failed: {panic}");
        } else {
            told(panic);
        }
    }));
}

/// Begins to log. A second call changes nothing.
pub fn start(level: &str) {
    let filter = filter(level).unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would tell of them on stderr, and panic where that is what is gone: in the midst of a shutdown, for one.
        .log_internal_errors(false);
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_of_statements_are_logged_at_no_level() {
        for level in ["debug", "trace", "tokio_postgres=trace", "info,tokio_postgres::query=debug"] {
            let filter = filter(level).unwrap();
            assert!(!filter.would_enable("tokio_postgres::query", &Level::DEBUG), "{level}");
        }
        assert!(filter("debug").unwrap().would_enable("enjambre_core", &Level::DEBUG));
        assert!(!filter("warn").unwrap().would_enable("tokio_postgres", &Level::INFO), "a cap adds nothing");
    }
}
