//! Logs on stderr, by `tracing`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The filter of a `[log] level`.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Begins to log. A second call changes nothing.
pub fn start(level: &str) {
    let filter = filter(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // It would tell of them on stderr, and panic where that is what is gone: in the midst of a shutdown, for one.
        .log_internal_errors(false)
        .try_init();
}
