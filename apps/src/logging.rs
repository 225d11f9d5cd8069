//! Log output on stderr, with `tracing`.

use std::io::IsTerminal;

use enjambre_core::storage::embedded::is_guarded;
use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Targets that log the parameters of SQL statements, which contain keys and content, at level `debug`.
const CAPPED_TARGETS: [&str; 2] = ["tokio_postgres", "tokio_postgres::query"];

/// Parses the filter of `[log] level`. Targets that log secrets or content are capped at level `info`.
pub(crate) fn filter(level: &str) -> Result<Targets, ParseError> {
    let mut filter: Targets = level.parse()?;
    for target in CAPPED_TARGETS {
        if filter.would_enable(target, &Level::DEBUG) {
            filter = filter.with_target(target, LevelFilter::INFO);
        }
    }
    Ok(filter)
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

/// Starts log output. Further calls have no effect.
pub(crate) fn start(level: &str) {
    let filter = filter(level).unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Internal errors would be reported on stderr, which panics if stderr is closed, for example during shutdown.
        .log_internal_errors(false);
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

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
