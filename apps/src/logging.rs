//! Logs on stderr, by `tracing`.

use std::io::IsTerminal;

use enjambre_core::storage::embedded::is_guarded;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The filter of a `[log] level`.
pub fn filter(level: &str) -> Result<Targets, ParseError> {
    level.parse()
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
