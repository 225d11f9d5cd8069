//! A progress bar on stderr, if that is a terminal.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::output::rate;
use crate::display::{count, visible};

/// A progress bar that is shown at the first update.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Creates a bar. It is hidden if stderr is not a terminal.
    pub(super) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::hidden();
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) =
            ProgressStyle::with_template("{msg}  {wide_bar} {bytes}/{total_bytes}{pace}{prefix}")
        {
            bar.set_style(style.with_key("pace", |state: &ProgressState, text: &mut dyn Write| {
                let _ = text.write_str(&pace(state.per_sec(), state.eta()));
            }));
        }
        Self { bar }
    }

    pub(super) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    pub(super) fn show(&mut self, label: &str, done: u64, total: u64, providers: Option<u32>) {
        let label = visible(label);
        if self.bar.message() != label {
            self.bar.reset();
            self.bar.set_message(label);
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_prefix(providers_text(providers, done < total));
    }

    /// Hides the bar while `print` writes to the terminal.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Formats the bytes per second and the remaining time. Returns an empty text without progress, which has no end.
fn pace(per_second: f64, left: Duration) -> String {
    if per_second < 1.0 {
        return String::new();
    }
    format!("  {}  {:#} left", rate(per_second as u64, 1.0), HumanDuration(left))
}

fn providers_text(providers: Option<u32>, is_incomplete: bool) -> String {
    match providers {
        None => String::new(),
        Some(0) if is_incomplete => "  waiting for providers".to_owned(),
        Some(number) => format!("  {}", count(number.into(), "provider")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_time_is_shown_only_with_progress() {
        assert_eq!(pace(0.0, Duration::ZERO), "");
        assert_eq!(pace(2_500_000.0, Duration::from_secs(40)), "  2.5 MB/s  40s left");
    }

    #[test]
    fn download_without_providers_waits() {
        assert_eq!(providers_text(Some(0), true), "  waiting for providers");
        assert_eq!(providers_text(Some(0), false), "  0 providers");
        assert_eq!(providers_text(Some(1), true), "  1 provider");
        assert_eq!(providers_text(None, true), "");
    }
}
