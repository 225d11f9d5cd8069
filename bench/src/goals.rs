//! The performance goals of Enjambre, checked against the figures of the same run.

use crate::report::{CaseReport, ratio};

/// One target.
#[derive(Debug, Clone, Copy)]
struct Goal {
    what: &'static str,
    case: &'static str,
    contender: &'static str,
    key: &'static str,
    aim: Aim,
    digits: usize,
    unit: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Aim {
    /// At most this.
    Most(f64),
    /// At least this.
    Least(f64),
    /// At most so many times what this contender takes.
    MostTimes(f64, &'static str),
    /// At least so many times what this contender reaches.
    LeastTimes(f64, &'static str),
}

const fn goal(
    what: &'static str,
    case: &'static str,
    contender: &'static str,
    key: &'static str,
    aim: Aim,
    (digits, unit): (usize, &'static str),
) -> Goal {
    Goal { what, case, contender, key, aim, digits, unit }
}

const TCP: &str = "enjambre tcp";
const ZMQ: &str = "enjambre zmq";
const TCPS: &str = "enjambre tcps, encrypted";
const DATABASE: &str = "enjambre tcp, into SQLite";
const GATEWAY: &str = "enjambre gateway";
const TRACKER: &str = "enjambre tracker";
const LOADED: &str = "enjambre tracker (durable)";
const HOT_ZMQ: &str = "enjambre tracker, hot files, zmq";
const HOT_TCP: &str = "enjambre tracker, hot files, tcp";
const SECONDS: (usize, &str) = (2, "s");
const MIB: (usize, &str) = (0, "MiB");
const RATE: (usize, &str) = (0, "/s");

const GOALS: &[Goal] = &[
    goal("one source, to a file, tcp", "single", TCP, "seconds", Aim::MostTimes(2.0, "baseline"), SECONDS),
    goal("one source, to a file, tcp", "single", TCP, "seconds", Aim::MostTimes(0.45, "libtorrent"), SECONDS),
    goal("the same, processor time of both sides", "single", TCP, "cpu", Aim::Most(1.8), SECONDS),
    goal("one source, to a file, zmq", "single", ZMQ, "seconds", Aim::MostTimes(0.75, "libtorrent"), SECONDS),
    goal("one source, to a file, encrypted", "single", TCPS, "seconds", Aim::MostTimes(1.4, TCP), SECONDS),
    goal(
        "one source, into SQLite",
        "single",
        DATABASE,
        "seconds",
        Aim::MostTimes(1.0, "libtorrent"),
        SECONDS,
    ),
    goal("memory of the source", "single", TCP, "source_mib", Aim::Most(64.0), MIB),
    goal("memory of the downloader, to a file", "single", TCP, "peer_mib", Aim::Most(64.0), MIB),
    goal("memory of the downloader, into SQLite", "single", DATABASE, "peer_mib", Aim::Most(64.0), MIB),
    goal("memory of the source, zmq", "single", ZMQ, "source_mib", Aim::Most(64.0), MIB),
    goal("memory of the downloader, zmq", "single", ZMQ, "peer_mib", Aim::Most(64.0), MIB),
    goal("memory of the source, 16 GiB", "large", TCP, "source_mib", Aim::Most(64.0), MIB),
    goal("memory of the downloader, 16 GiB", "large", TCP, "peer_mib", Aim::Most(64.0), MIB),
    goal("memory of the source, 16 GiB, zmq", "large", ZMQ, "source_mib", Aim::Most(64.0), MIB),
    goal("memory of the downloader, 16 GiB, zmq", "large", ZMQ, "peer_mib", Aim::Most(64.0), MIB),
    goal("publish", "publish", TCP, "seconds", Aim::MostTimes(1.6, "baseline: hash with all cores"), SECONDS),
    goal("complete file over HTTP", "http", GATEWAY, "seconds", Aim::MostTimes(1.25, "nginx"), SECONDS),
    goal("memory of the gateway", "http", GATEWAY, "source_mib", Aim::Most(64.0), MIB),
    goal("one source, 4 downloaders", "1-to-4", TCP, "seconds", Aim::MostTimes(1.0, "rqbit"), SECONDS),
    goal("one source, 4 downloaders", "1-to-4", TCP, "seconds", Aim::Most(3.6), SECONDS),
    goal(
        "one source, 4 downloaders, sent by the source",
        "1-to-4",
        TCP,
        "copies",
        Aim::Most(1.25),
        (2, "copies"),
    ),
    goal(
        "one source, 4 downloaders, source at 50 MB/s",
        "1-to-4-limited",
        TCP,
        "seconds",
        Aim::Most(12.5),
        SECONDS,
    ),
    goal("1,000 files of 10 KiB", "small-files", TCP, "seconds", Aim::MostTimes(1.0, "libtorrent"), SECONDS),
    goal("1,000 files of 10 KiB", "small-files", TCP, "seconds", Aim::Most(0.25), SECONDS),
    goal("resume, to a file", "resume", TCP, "again_mib", Aim::Most(8.0), (1, "MiB re-sent")),
    goal("resume, into SQLite", "resume", DATABASE, "again_mib", Aim::Most(8.0), (1, "MiB re-sent")),
    goal(
        "tracker, announced files",
        "tracker",
        LOADED,
        "announces",
        Aim::LeastTimes(1.0, "aquatic_udp (in memory)"),
        RATE,
    ),
    goal("tracker, single lookups, zmq", "tracker", HOT_ZMQ, "lookups", Aim::Least(100_000.0), RATE),
    goal("tracker, single lookups, tcp", "tracker", HOT_TCP, "lookups", Aim::Least(100_000.0), RATE),
    goal("tracker, memory per entry", "tracker", LOADED, "entry_bytes", Aim::Most(200.0), (0, "bytes")),
    goal("tracker, ready", "start", TRACKER, "ready_ms", Aim::Most(20.0), (1, "ms")),
    goal("tracker, idle memory", "start", TRACKER, "idle_mib", Aim::Most(15e6 / 1_048_576.0), (1, "MiB")),
    goal("stripped binary", "start", TRACKER, "binary_mib", Aim::Most(16e6 / 1_048_576.0), (1, "MiB")),
];

/// A row for each target of the cases that ran, under a head.
pub(crate) fn table(reports: &[CaseReport]) -> Vec<Vec<String>> {
    let head = ["target", "at most or least", "measured", "met"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(GOALS.iter().filter_map(|goal| row(goal, reports)));
    rows
}

/// A goal is unknown if one of its two figures is missing.
fn row(goal: &Goal, reports: &[CaseReport]) -> Option<Vec<String>> {
    let Goal { what, key, digits, unit, aim, .. } = *goal;
    let report = reports.iter().find(|report| report.name == goal.case)?;
    let measured = report.median(goal.contender, key);
    let base_of = |other| report.median(other, key);
    let (bound, base) = match aim {
        Aim::Most(bound) | Aim::Least(bound) => (Some(bound), None),
        Aim::MostTimes(times, other) | Aim::LeastTimes(times, other) => {
            let base = base_of(other);
            (base.map(|base| times * base), base)
        }
    };
    let number = |value: Option<f64>| match value {
        Some(value) => format!("{value:.digits$} {unit}"),
        None => "not measured".to_owned(),
    };
    let bound_text = match aim {
        Aim::Most(_) | Aim::Least(_) => number(bound),
        Aim::MostTimes(times, other) | Aim::LeastTimes(times, other) => {
            format!("{} ({times} x {other})", number(bound))
        }
    };
    let found = match (measured, base) {
        (Some(value), Some(base)) => format!("{} ({:.2} x)", number(measured), ratio(value, base)),
        _ => number(measured),
    };
    let holds = match (measured, bound, aim) {
        (Some(value), Some(bound), Aim::Most(_) | Aim::MostTimes(..)) => value <= bound,
        (Some(value), Some(bound), Aim::Least(_) | Aim::LeastTimes(..)) => value >= bound,
        _ => return Some(vec![what.to_owned(), bound_text, found, "?".to_owned()]),
    };
    Some(vec![what.to_owned(), bound_text, found, if holds { "yes" } else { "**no**" }.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{self, Contest, Sample};

    #[test]
    fn an_aim_is_judged_beside_the_others_of_the_same_run() {
        let contest = |name: &str, seconds: f64, cpu: f64| Contest {
            name: name.to_owned(),
            samples: vec![Sample::from([("seconds", seconds), ("cpu", cpu)])],
            failures: Vec::new(),
        };
        let report = CaseReport {
            name: "single",
            title: String::new(),
            columns: vec![report::SECONDS, report::CPU],
            reference: None,
            rounds: 1,
            contests: vec![
                contest("baseline", 0.5, 1.0),
                contest("libtorrent", 2.0, 4.0),
                contest(TCP, 0.95, 2.0),
            ],
        };
        let rows = table(&[report]);
        assert_eq!(rows[1][1..], ["1.00 s (2 x baseline)", "0.95 s (1.90 x)", "yes"]);
        assert_eq!(rows[2][1..], ["0.90 s (0.45 x libtorrent)", "0.95 s (0.47 x)", "**no**"]);
        assert_eq!(rows[3][1..], ["1.80 s", "2.00 s", "**no**"]);
        assert_eq!(rows[4][1..], ["1.50 s (0.75 x libtorrent)", "not measured", "?"]);
        let of_the_case = GOALS.iter().filter(|goal| goal.case == "single").count();
        assert_eq!(rows.len(), 1 + of_the_case, "of what did not run nothing is said");
    }
}
