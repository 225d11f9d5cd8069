//! Progress of a copy: a progress bar, or lines of JSON.

use serde_json::json;

use crate::cli::output::Stdout;
use crate::cli::progress::Bar;

pub(super) struct CopyProgress {
    pub(super) json: bool,
    pub(super) bar: Bar,
    pub(super) stdout: Stdout,
    /// Bytes of the completed parts.
    pub(super) completed: u64,
    pub(super) total: u64,
    /// Whether the target contains the mark that allows the same command to resume.
    pub(super) resumable: bool,
}

impl CopyProgress {
    pub(super) fn new(json: bool) -> Self {
        let bar = if json { Bar::hidden() } else { Bar::new() };
        Self { json, bar, stdout: Stdout::default(), completed: 0, total: 0, resumable: false }
    }

    pub(super) fn show(&mut self, part: &str, bytes: u64) {
        let done = (self.completed + bytes).min(self.total);
        if self.json {
            let event = json!({ "event": "progress", "part": part, "done": done, "total": self.total });
            self.stdout.json(&event);
        } else {
            self.bar.show(part, done, self.total, None);
        }
    }

    pub(super) fn line(&mut self, text: &str) {
        if !self.json {
            let Self { bar, stdout, .. } = self;
            bar.suspend(|| stdout.line(text));
        }
    }
}
