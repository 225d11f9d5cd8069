//! The results: samples by case and contender, medians and tables.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One column of a case's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    /// Under which key a sample holds it.
    pub(crate) key: &'static str,
    /// Its head, with the unit.
    pub(crate) title: &'static str,
    /// Digits behind the point.
    pub(crate) digits: usize,
}

/// Seconds until the work was done.
pub(crate) const SECONDS: Column = Column { key: "seconds", title: "s", digits: 2 };
/// Processor time of all processes.
pub(crate) const CPU: Column = Column { key: "cpu", title: "CPU s", digits: 2 };
/// Peak memory of the source.
pub(crate) const SOURCE_MIB: Column = Column { key: "source_mib", title: "source MiB", digits: 0 };
/// Peak memory of a downloader, or of whatever does the work.
pub(crate) const PEER_MIB: Column = Column { key: "peer_mib", title: "peer MiB", digits: 0 };
/// What the first source sent, in sizes of the content.
pub(crate) const COPIES: Column = Column { key: "copies", title: "copies from the source", digits: 2 };

/// What one round of one contender gave, by key.
pub(crate) type Sample = BTreeMap<&'static str, f64>;

/// All rounds of one contender.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contest {
    /// Its name, as the table has it.
    pub(crate) name: String,
    /// What the rounds gave.
    pub(crate) samples: Vec<Sample>,
    /// Why rounds gave nothing.
    pub(crate) failures: Vec<String>,
}

impl Contest {
    /// The median of a key over all rounds that have it.
    pub(crate) fn median(&self, key: &str) -> Option<f64> {
        median(self.samples.iter().filter_map(|sample| sample.get(key).copied()).collect())
    }
}

/// All contenders of one case.
#[derive(Debug, Clone)]
pub(crate) struct CaseReport {
    /// The short name, as on the command line.
    pub(crate) name: &'static str,
    /// A description of the measured operation.
    pub(crate) title: String,
    /// The columns of its table.
    pub(crate) columns: Vec<Column>,
    /// The contender whose time is 1 in the column of ratios.
    pub(crate) reference: Option<&'static str>,
    /// How often each was to run.
    pub(crate) rounds: usize,
    /// In the order in which they ran.
    pub(crate) contests: Vec<Contest>,
}

impl CaseReport {
    /// The median of a contender's key.
    pub(crate) fn median(&self, contender: &str, key: &str) -> Option<f64> {
        self.contests.iter().find(|contest| contest.name == contender)?.median(key)
    }

    /// The table: a row for each contender.
    pub(crate) fn table(&self) -> Vec<Vec<String>> {
        let first = self.columns.first().map_or("", |column| column.key);
        let base = self.reference.and_then(|name| self.median(name, first));
        let mut head = vec![String::new()];
        for (number, column) in self.columns.iter().enumerate() {
            head.push(column.title.to_owned());
            if number == 0 && base.is_some() {
                head.push(format!("x {}", self.reference.unwrap_or_default()));
            }
        }
        let mut rows = vec![head];
        for contest in &self.contests {
            let mut row = vec![contest.name.clone()];
            for (number, column) in self.columns.iter().enumerate() {
                let value = contest.median(column.key);
                row.push(value.map_or_else(String::new, |value| format!("{value:.*}", column.digits)));
                if let (0, Some(base)) = (number, base) {
                    row.push(value.map_or_else(String::new, |value| format!("{:.2}", ratio(value, base))));
                }
            }
            if contest.samples.is_empty() {
                row[1] = "failed".to_owned();
            }
            rows.push(row);
        }
        rows
    }

    /// A line for each contender that failed, with the reason.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failed = self.contests.iter().filter_map(|contest| Some((contest, contest.failures.first()?)));
        let line = |(contest, reason): (&Contest, &String)| {
            let reason = reason.lines().next().unwrap_or_default();
            format!("{} failed after {} rounds: {reason}", contest.name, contest.samples.len())
        };
        failed.map(line).collect()
    }

    /// Every sample, for programs.
    pub(crate) fn json(&self) -> Value {
        let contests = self.contests.iter().map(|contest| {
            let medians: BTreeMap<_, _> = self
                .columns
                .iter()
                .filter_map(|column| Some((column.key, contest.median(column.key)?)))
                .collect();
            json!({
                "name": contest.name,
                "medians": medians,
                "rounds": contest.samples,
                "failures": contest.failures,
            })
        });
        json!({ "case": self.name, "title": self.title, "rounds": self.rounds, "contenders": contests.collect::<Vec<_>>() })
    }
}

/// The middle one of these, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// How many times `base` this is; 0 where there is no base.
pub(crate) fn ratio(value: f64, base: f64) -> f64 {
    if base > 0.0 { value / base } else { 0.0 }
}

/// A table in Markdown, aligned so that it reads well as it is.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let Some(head) = rows.first() else { return String::new() };
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or_default().max(3)).collect();
    let line =
        |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text += &line(&mut widths.iter().enumerate().map(|(column, width)| {
            let cell = row.get(column).map_or("", String::as_str);
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        }));
        if number == 0 {
            text += &line(&mut widths.iter().enumerate().map(|(column, width)| {
                if column == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width - 1)) }
            }));
        }
    }
    text
}

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// A page with the tables between its markers replaced by `tables`; where it has no markers, the tables between some.
pub(crate) fn into_page(page: &str, tables: &str) -> String {
    let tables = format!("{BEGIN}\n{tables}{END}");
    let place =
        page.find(BEGIN).and_then(|begin| Some((begin, begin + page[begin..].find(END)? + END.len())));
    match place {
        Some((begin, end)) => format!("{}{tables}{}", &page[..begin], &page[end..]),
        None => format!("{tables}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn only_text_between_markers_is_replaced() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        assert_eq!(into_page(&page, "new\n"), format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(into_page("", "new\n"), format!("{BEGIN}\nnew\n{END}\n"));
        assert_eq!(into_page(&into_page(&page, "1\n"), "2\n"), into_page(&page, "2\n"));
    }

    #[test]
    fn a_ratio_to_nothing_is_nothing() {
        assert!((ratio(3.0, 2.0) - 1.5).abs() < 1e-9);
        assert!(ratio(3.0, 0.0).abs() < 1e-9);
    }

    #[test]
    fn a_table_has_medians_and_their_ratios_to_the_reference() {
        let contest = |name: &str, seconds: &[f64]| Contest {
            name: name.to_owned(),
            samples: seconds.iter().map(|seconds| Sample::from([("seconds", *seconds)])).collect(),
            failures: Vec::new(),
        };
        let report = CaseReport {
            name: "single",
            title: String::new(),
            columns: vec![SECONDS, CPU],
            reference: Some("baseline"),
            rounds: 3,
            contests: vec![
                contest("baseline", &[0.4, 0.5, 0.6]),
                contest("ours", &[1.0]),
                contest("theirs", &[]),
            ],
        };
        assert_eq!(
            markdown(&report.table()),
            "|          |      s | x baseline | CPU s |\n\
             | -------- | -----: | ---------: | ----: |\n\
             | baseline |   0.50 |       1.00 |       |\n\
             | ours     |   1.00 |       2.00 |       |\n\
             | theirs   | failed |            |       |\n"
        );
    }
}
