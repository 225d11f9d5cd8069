//! The benchmark cases. A case is a list of contenders that run in turn, each with one sample per round.

mod resume;
mod tracker;
mod transfer;

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use enjambre_tests::binary::with_program;

use crate::report::{Column, Sample};
use crate::stage::Stage;
use crate::tools::Tool;
use crate::udp_tracker::Kind;

/// A benchmark case.
pub(crate) struct Case<'a> {
    /// The short name, as on the command line.
    pub(crate) name: &'static str,
    /// A description of the measured operation.
    pub(crate) title: String,
    /// The columns of its table.
    pub(crate) columns: Vec<Column>,
    /// The contender whose time is 1 in the column of ratios.
    pub(crate) reference: Option<&'static str>,
    /// The maximum number of rounds.
    pub(crate) most_rounds: usize,
    /// Whether the case needs much disk space or time.
    pub(crate) is_large: bool,
    /// The contenders, in the order of their turns.
    pub(crate) contenders: Vec<Contender<'a>>,
}

/// A tool that takes part in a case.
pub(crate) struct Contender<'a> {
    /// The name in the table.
    pub(crate) name: String,
    /// Runs one round.
    pub(crate) run: Box<dyn Fn() -> Result<Sample> + 'a>,
}

/// Runs Enjambre's contenders on `program`, and each of them also on `baseline` if there is one.
pub(crate) fn select_programs<'a>(cases: &mut [Case<'a>], program: &'a Path, baseline: Option<&'a Path>) {
    for case in cases {
        let mut contenders = Vec::new();
        for Contender { name, run } in case.contenders.drain(..) {
            if !name.starts_with("enjambre") {
                contenders.push(Contender { name, run });
                continue;
            }
            let run: Rc<dyn Fn() -> Result<Sample> + 'a> = run.into();
            if let Some(baseline) = baseline {
                let (name, run) = (name.replacen("enjambre", "baseline", 1), Rc::clone(&run));
                let run = Box::new(move || with_program(baseline, || run()));
                contenders.push(Contender { name, run });
            }
            contenders.push(Contender { name, run: Box::new(move || with_program(program, || run())) });
        }
        case.contenders = contenders;
    }
}

/// All cases with those tools that are there.
pub(crate) fn all<'a>(stage: &'a Stage, tools: &[Rc<dyn Tool>], trackers: &[Kind]) -> Vec<Case<'a>> {
    vec![
        transfer::single(stage, tools),
        transfer::durable(stage),
        transfer::publish(stage, tools),
        transfer::swarm(stage, tools, "1-to-4", 4, None),
        transfer::swarm(stage, tools, "1-to-8", 8, None),
        transfer::swarm(stage, tools, "1-to-4-limited", 4, Some(50_000_000)),
        transfer::small_files(stage, tools),
        transfer::http(stage, tools),
        resume::resume(stage),
        tracker::start(stage, trackers),
        tracker::load(stage, trackers),
        transfer::large(stage),
    ]
}
