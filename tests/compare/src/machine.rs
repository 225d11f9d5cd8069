//! The day and the machine, as a table needs them: no names, only what decides over speed.

use std::fs;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// Processors, memory and system.
pub(crate) fn describe() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let gib = meminfo("MemTotal:").unwrap_or_default().div_ceil(1 << 20);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: String = system.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    format!("{cores} cores, {gib} GiB of memory, Linux {version}")
}

/// What is touched before the first case, in bytes: about what all of a round writes.
pub(crate) const ALL_CASES: u64 = 12 << 30;
/// Memory that everybody may need besides that for the files that are written, in bytes.
const SPARE: u64 = 512 << 20;
/// How much is given free at once, in bytes.
const BLOCK: usize = 32 << 20;

/// Touched memory that is given free as the system uses memory up. A virtual machine gets memory from its host when it is
/// first touched, and gives free memory back after seconds. Whoever comes next pays for it: to write a file then takes
/// several times the processor time that the work takes, and the more of it the more is written.
#[derive(Debug)]
pub(crate) struct WarmMemory {
    blocks: Vec<Vec<u8>>,
    /// So much is kept free, in KiB.
    level: u64,
}

impl WarmMemory {
    /// Takes so many bytes and some to spare, as far as there is that much, and gives those to spare free.
    pub(crate) fn new(bytes: u64) -> Self {
        let available = meminfo("MemAvailable:").unwrap_or_default() * 1024;
        let count = usize::try_from((bytes + SPARE).min(available / 2)).unwrap_or_default() / BLOCK;
        let blocks = (0..count).map(|_| std::hint::black_box(vec![1; BLOCK])).collect();
        let level = meminfo("MemFree:").unwrap_or_default() + SPARE / 1024;
        let mut warm = Self { blocks, level };
        warm.give();
        warm
    }

    /// Gives free what was used up since the last time.
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

/// The day that is so many days after 1970-01-01, in the Gregorian calendar: Howard Hinnant's `civil_from_days`.
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
