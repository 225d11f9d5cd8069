//! Resource usage of processes, read from `/proc` (Linux only).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Memory and CPU time of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Peak resident memory in KiB (`VmHWM`).
    pub peak_kib: u64,
    /// User and system CPU time in seconds.
    pub cpu_seconds: f64,
}

/// Clock ticks per second in `/proc/PID/stat` (`USER_HZ`, always 100 on Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the usage of a process, or `None` if the process or `/proc` does not exist.
pub fn usage(pid: u32) -> Option<Usage> {
    let peak_kib = memory(pid, "VmHWM")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `utime` and `stime`, fields 14 and 15.
    Some(Usage { peak_kib, cpu_seconds: sum_of_ticks(&stat, 11)? })
}

/// Returns the number of open file descriptors of a process.
pub fn open_files(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// Returns the number of threads of a process.
pub fn threads(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/task")).ok()?.count() as u64)
}

/// Returns the disk usage of the files below a directory, in KiB. Skips files that disappear during the call.
pub fn disk_kib(folder: &Path) -> u64 {
    let mut blocks = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => blocks += metadata.blocks(),
                Err(_) => {}
            }
        }
    }
    // `st_blocks` counts units of 512 bytes on every file system.
    blocks / 2
}

/// Returns a field of `/proc/PID/status` in KiB: `VmHWM` is the peak, `VmRSS` the current resident memory.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Returns the CPU time in seconds of a process and of its children that were waited for. Also works for a process that
/// has exited but was not waited for.
pub fn cpu_with_children(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(sum_of_ticks(&stat, 11)? + sum_of_ticks(&stat, 13)?)
}

/// Returns the CPU time in seconds of the children of this process that have exited and were waited for.
pub fn cpu_of_ended_children() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // `cutime` and `cstime`, fields 16 and 17.
    sum_of_ticks(&stat, 13)
}

/// Returns the sum of two adjacent fields of a `stat` file in seconds. `first` counts from the field after the process
/// name, which is in parentheses and may contain spaces.
fn sum_of_ticks(stat: &str, first: usize) -> Option<f64> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = fields.get(first)?.parse::<u64>().ok()? + fields.get(first + 1)?.parse::<u64>().ok()?;
    Some(ticks as f64 / TICKS_PER_SECOND)
}
