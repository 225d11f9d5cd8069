//! What processes take while they run: time to the instant, processor time, peak memory.
//!
//! Every process is a guard of `enjambre_tests::process`: it is killed by its id when the guard goes, whatever
//! happened. A race that is not over at its deadline is ended by killing those who still run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use enjambre_tests::process::Process;
use enjambre_tests::process_stats;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::machine::WarmMemory;

/// How long one run of one tool may take, unless stated otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);
/// How often peak memory is looked at. The kernel keeps the peak, so only that of the last moment can be missed.
const LOOK: Duration = Duration::from_millis(5);

/// How a process shows that it has done its work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish {
    /// It ends with status 0.
    Exit,
    /// The process prints a line with this text and continues.
    Line(&'static str),
}

/// A process that works on something.
#[derive(Debug)]
pub(crate) struct Work {
    /// The process.
    pub(crate) process: Process,
    /// How it shows that it is done.
    pub(crate) finish: Finish,
    /// When it began.
    pub(crate) begun: Instant,
    /// The daemon that does the work for it, if one does.
    pub(crate) daemon: Option<u32>,
}

impl Work {
    /// A process that has just been started, and ends when it is done.
    pub(crate) fn until_exit(process: impl FnOnce() -> Process) -> Self {
        let begun = Instant::now();
        Self { process: process(), finish: Finish::Exit, begun, daemon: None }
    }
}

/// What a race took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    /// Seconds from the first start to the last finish.
    pub(crate) seconds: f64,
    /// Processor seconds of all processes.
    pub(crate) cpu: f64,
    /// The largest peak of a source, in KiB.
    pub(crate) source_kib: u64,
    /// The largest peak of a worker, in KiB.
    pub(crate) worker_kib: u64,
}

/// Waits until all of `work` is done, but no longer than until the deadline. Those who go on come back and are killed by
/// dropping them.
pub(crate) fn race(
    sources: &[u32],
    work: Vec<Work>,
    deadline: Duration,
    warm: WarmMemory,
) -> Result<(Taken, Vec<Process>)> {
    let begun = work.iter().map(|work| work.begun).min().context("a race needs at least one contender")?;
    let workers: Vec<u32> =
        work.iter().flat_map(|work| [Some(work.process.pid()), work.daemon]).flatten().collect();
    // What has only just been started counts from its start.
    let lasting: Vec<u32> =
        sources.iter().copied().chain(work.iter().filter_map(|work| work.daemon)).collect();
    let cpu_before = cpu_of(&lasting);
    let over = AtomicBool::new(false);
    let waited_for = Mutex::new(work.iter().map(|work| work.process.pid()).collect());
    let mut taken = Taken::default();
    let mut left = Vec::new();
    thread::scope(|scope| {
        let looking = scope.spawn(|| look(sources, &workers, &over, &waited_for, deadline, warm));
        let running: Vec<_> =
            work.into_iter().map(|work| scope.spawn(|| finish(work, &waited_for, deadline))).collect();
        let results: Vec<_> = running.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        (taken.source_kib, taken.worker_kib) = looking.join().ok().context("looking at memory failed")?;
        for result in results {
            let (at, cpu, process) = result.ok().context("it did not finish; see above")??;
            taken.seconds = taken.seconds.max((at - begun).as_secs_f64());
            taken.cpu += cpu;
            left.extend(process);
        }
        anyhow::Ok(())
    })?;
    taken.cpu += cpu_of(&lasting) - cpu_before;
    Ok((taken, left))
}

fn cpu_of(pids: &[u32]) -> f64 {
    pids.iter().filter_map(|pid| process_stats::cpu_with_children(*pid)).sum()
}

/// Waits for the finish of one; returns when that was, and its processor time.
fn finish(
    work: Work,
    waited_for: &Mutex<Vec<u32>>,
    deadline: Duration,
) -> Result<(Instant, f64, Option<Process>)> {
    let Work { mut process, finish, begun, .. } = work;
    let pid = process.pid();
    match finish {
        Finish::Exit => {
            let id = Pid::from_raw(i32::try_from(pid)?).context("a process id")?;
            // Without reaping it, so that its figures are still there.
            waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
            let at = Instant::now();
            let cpu = process_stats::cpu_with_children(pid).unwrap_or_default();
            // From here on the id may become another's.
            waited_for.lock().map_err(|_| anyhow!("another one panicked"))?.retain(|other| *other != pid);
            let output = process.wait(Duration::from_secs(5));
            ensure!(at - begun < deadline, "{} was not done after {deadline:?}", output.title);
            if output.status != Some(0) {
                let text: Vec<&str> = output.stdout.lines().chain(output.stderr.lines()).collect();
                let tail = text[text.len().saturating_sub(12)..].join("\n");
                bail!("{} ended with {:?}\n{tail}", output.title, output.status);
            }
            Ok((at, cpu, None))
        }
        Finish::Line(text) => {
            let is_done = |line: &str| line.contains(text).then_some(());
            catch_unwind(AssertUnwindSafe(|| process.wait_line(deadline, is_done)))
                .map_err(|_| anyhow!("it did not say {text:?} within {deadline:?}"))?;
            let at = Instant::now();
            Ok((at, process_stats::cpu_with_children(pid).unwrap_or_default(), Some(process)))
        }
    }
}

/// Watches peak memory until the race is over, keeps some memory free meanwhile, and ends it at the deadline.
fn look(
    sources: &[u32],
    workers: &[u32],
    over: &AtomicBool,
    waited_for: &Mutex<Vec<u32>>,
    deadline: Duration,
    mut warm: WarmMemory,
) -> (u64, u64) {
    let begun = Instant::now();
    let (mut source_kib, mut worker_kib) = (0, 0);
    let mut last = false;
    loop {
        source_kib = source_kib.max(peak_of(sources));
        worker_kib = worker_kib.max(peak_of(workers));
        if last {
            return (source_kib, worker_kib);
        }
        last = over.load(Ordering::Relaxed);
        if begun.elapsed() > deadline {
            for pid in waited_for.lock().iter().flat_map(|pids| pids.iter()) {
                // Not yet waited for, so the id is still its own. It may have ended by itself.
                let _ = i32::try_from(*pid)
                    .ok()
                    .and_then(Pid::from_raw)
                    .map(|pid| kill_process(pid, Signal::KILL));
            }
        }
        warm.give();
        thread::sleep(LOOK);
    }
}

fn peak_of(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| process_stats::memory(*pid, "VmHWM")).max().unwrap_or_default()
}

/// Runs a command to its end, and returns its standard output.
pub(crate) fn output_of(command: &mut std::process::Command) -> Result<String> {
    let output = command.stdin(std::process::Stdio::null()).output().context("it is not installed")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{}", text(&output.stderr).lines().last().unwrap_or("it fails"));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Ok(if stdout.is_empty() { stderr } else { stdout })
}
