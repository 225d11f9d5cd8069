//! The date and the machine, as the tables show them: only properties that affect speed.

use std::fs;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// Returns a description of processors, memory and kernel.
pub(crate) fn describe() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let gib = meminfo("MemTotal:").unwrap_or_default().div_ceil(1 << 20);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: String = system.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    format!("{cores} cores, {gib} GiB of memory, Linux {version}")
}

/// The memory in bytes that is touched before the first case: about as much as a round writes.
pub(crate) const ALL_CASES: u64 = 12 << 30;
/// The memory in bytes that processes may need in addition to the written files.
const SPARE: u64 = 512 << 20;
/// The size in bytes of a block that is freed at once.
const BLOCK: usize = 32 << 20;

/// Touched memory that is freed as the system uses memory. A virtual machine gets memory from its host when it is first
/// touched and returns free memory after seconds, so the next contender that writes a file would pay several times the
/// processor time of its own work.
#[derive(Debug)]
pub(crate) struct WarmMemory {
    blocks: Vec<Vec<u8>>,
    /// The free memory to keep, in KiB.
    level: u64,
}

impl WarmMemory {
    /// Touches `bytes` bytes and a spare, at most half of the available memory, and frees the spare.
    pub(crate) fn new(bytes: u64) -> Self {
        let available = meminfo("MemAvailable:").unwrap_or_default() * 1024;
        let count = usize::try_from((bytes + SPARE).min(available / 2)).unwrap_or_default() / BLOCK;
        let blocks = (0..count).map(|_| std::hint::black_box(vec![1; BLOCK])).collect();
        let level = meminfo("MemFree:").unwrap_or_default() + SPARE / 1024;
        let mut warm = Self { blocks, level };
        warm.give();
        warm
    }

    /// Frees as much as the system used since the last call.
    pub(crate) fn give(&mut self) {
        let lacks = self.level.saturating_sub(meminfo("MemFree:").unwrap_or(self.level));
        let count = usize::try_from(lacks * 1024).unwrap_or_default().div_ceil(BLOCK);
        self.blocks.truncate(self.blocks.len().saturating_sub(count));
    }
}

fn meminfo(field: &str) -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    memory.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

/// Today in UTC, as `2026-11-22`.
pub(crate) fn date() -> Result<String> {
    let days = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    Ok(civil(days))
}

/// Returns the Gregorian date of a number of days after 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> String {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        assert_eq!(civil(0), "1970-01-01");
        assert_eq!(civil(11_016), "2000-02-29");
        assert_eq!(civil(20_779), "2026-11-22");
    }
}
