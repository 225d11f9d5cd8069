//! A progress bar on stderr, where that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar that is shown once there is something to show.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar, or none where stderr is no terminal.
    pub(super) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        let template = "{msg}  {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left{prefix}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// A bar that is never shown.
    pub(super) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// Shows how far it is.
    pub(super) fn show(&mut self, what: &str, done: u64, total: u64, sources: Option<u32>) {
        if self.bar.message() != what {
            self.bar.reset();
            self.bar.set_message(what.to_owned());
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_prefix(match sources {
            None => String::new(),
            Some(1) => "  1 source".to_owned(),
            Some(count) => format!("  {count} sources"),
        });
    }

    /// Does something else on the terminal while the bar is out of the way.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
