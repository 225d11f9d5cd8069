//! What a process has used so far, as Linux tells it under `/proc`.

use std::fs;

/// Memory and processor time of a running process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// The most memory it had resident at any time, in KiB (`VmHWM`).
    pub peak_kib: u64,
    /// Processor time in seconds, user and system together.
    pub cpu_seconds: f64,
}

/// Clock ticks a second in `/proc/PID/stat`: always 100 on Linux as programs see it.
const TICKS: f64 = 100.0;

/// The figures of a running process; none where there is no such process or no `/proc`.
pub fn of(pid: u32) -> Option<Figures> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let peak_kib = peak.trim().trim_end_matches("kB").trim().parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold spaces; `utime` and `stime` are the 14th and 15th.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Figures { peak_kib, cpu_seconds: ticks as f64 / TICKS })
}

impl std::ops::Sub for Figures {
    type Output = Self;

    /// What was used since `earlier`; the peak remains what it is.
    fn sub(self, earlier: Self) -> Self {
        Self { peak_kib: self.peak_kib, cpu_seconds: self.cpu_seconds - earlier.cpu_seconds }
    }
}
