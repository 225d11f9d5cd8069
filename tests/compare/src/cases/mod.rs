//! What is measured. A case is a list of contenders that take turns, each giving a sample a round.

mod resume;
mod tracker;
mod transfer;

use std::rc::Rc;

use anyhow::Result;

use crate::report::{Column, Sample};
use crate::stage::Stage;
use crate::tools::Tool;
use crate::udp_tracker::Kind;

/// One thing to measure.
pub(crate) struct Case<'a> {
    /// The short name, as on the command line.
    pub(crate) name: &'static str,
    /// What is done, in a sentence.
    pub(crate) title: String,
    /// The columns of its table.
    pub(crate) columns: Vec<Column>,
    /// The contender whose time is 1 in the column of ratios.
    pub(crate) reference: Option<&'static str>,
    /// More rounds than these tell nothing new.
    pub(crate) most_rounds: usize,
    /// Whether it needs much room or time.
    pub(crate) is_large: bool,
    /// Who takes turns.
    pub(crate) contenders: Vec<Contender<'a>>,
}

/// Somebody who takes part in a case.
pub(crate) struct Contender<'a> {
    /// As the table has it.
    pub(crate) name: String,
    /// One round.
    pub(crate) run: Box<dyn Fn() -> Result<Sample> + 'a>,
}

/// Builds what these cases need beside this program, before anything is measured.
pub(crate) fn build_for(cases: &[Case<'_>]) {
    let loads = |case: &Case<'_>| case.name == "tracker" && case.contenders.iter().any(is_enjambre);
    if cases.iter().any(loads) {
        tracker::generator();
    }
    if cases.iter().flat_map(|case| &case.contenders).any(is_enjambre) {
        enjambre_tests::binary::enjambre();
    }
}

fn is_enjambre(contender: &Contender<'_>) -> bool {
    contender.name.starts_with("enjambre")
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
        resume::resume(stage),
        tracker::start(stage, trackers),
        tracker::load(stage, trackers),
        transfer::large(stage),
    ]
}
