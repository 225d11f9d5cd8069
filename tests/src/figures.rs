//! What a process has used so far and holds now, as Linux tells it under `/proc`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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
    let peak_kib = memory(pid, "VmHWM")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `utime` and `stime`, the 14th and 15th field.
    Some(Figures { peak_kib, cpu_seconds: sum_of_ticks(&stat, 11)? })
}

/// How many descriptors a running process has open.
pub fn handles(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// How many threads a running process has.
pub fn threads(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/task")).ok()?.count() as u64)
}

/// What the files below a folder take on the disk, in KiB. What goes away meanwhile is left out.
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
    // A block of `stat` has 512 bytes, whatever the file system.
    blocks / 2
}

/// A field of `/proc/PID/status` in KiB: `VmHWM` is the most resident memory so far, `VmRSS` that of now.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Processor time in seconds of a process and of those of its children that it has waited for. It still tells after
/// the process has ended, until somebody waits for that.
pub fn cpu_with_children(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(sum_of_ticks(&stat, 11)? + sum_of_ticks(&stat, 13)?)
}

/// Processor time in seconds of the children of this process that have ended and were waited for.
pub fn of_ended_children() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // `cutime` and `cstime`, the 16th and 17th field.
    sum_of_ticks(&stat, 13)
}

/// Two neighbouring fields of a `stat` file in seconds. The second field of the file is the name in parentheses and
/// may hold spaces; `first` counts from the field after it.
fn sum_of_ticks(stat: &str, first: usize) -> Option<f64> {
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = fields.get(first)?.parse::<u64>().ok()? + fields.get(first + 1)?.parse::<u64>().ok()?;
    Some(ticks as f64 / TICKS)
}
