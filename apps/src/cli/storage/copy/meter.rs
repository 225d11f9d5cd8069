//! What a copy tells of how far it is: a bar for people, or lines of JSON.

use serde_json::json;

use crate::cli::output::Stdout;
use crate::cli::progress::Bar;

/// Shows how far it is.
pub(super) struct Meter {
    pub(super) json: bool,
    pub(super) bar: Bar,
    pub(super) stdout: Stdout,
    /// What was there before the part that is under way.
    pub(super) before: u64,
    pub(super) total: u64,
    /// Whether the target has the mark by which the same command goes on.
    pub(super) resumable: bool,
}

impl Meter {
    pub(super) fn new(json: bool) -> Self {
        let bar = if json { Bar::hidden() } else { Bar::new() };
        Self { json, bar, stdout: Stdout::default(), before: 0, total: 0, resumable: false }
    }

    pub(super) fn show(&mut self, what: &str, bytes: u64) {
        let done = (self.before + bytes).min(self.total);
        if self.json {
            let event = json!({ "event": "progress", "what": what, "done": done, "total": self.total });
            self.stdout.json(&event);
        } else {
            self.bar.show(what, done, self.total, None);
        }
    }

    pub(super) fn end_part(&mut self, bytes: u64) {
        self.before += bytes;
    }

    pub(super) fn line(&mut self, text: &str) {
        if !self.json {
            let Self { bar, stdout, .. } = self;
            bar.suspend(|| stdout.line(text));
        }
    }
}
