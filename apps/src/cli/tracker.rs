//! `enjambre tracker`

use enjambre_control::Failure;

use super::Init;
use super::context::Context;
use super::output::Stdout;
use super::runner;
use crate::config::sections::NodeKind;
use crate::tracker::TrackerNode;

pub(super) async fn run(context: Context<'_>, Init { init }: Init) -> Result<(), Failure> {
    let start = async {
        let data_dir = runner::lock(&context.loaded, NodeKind::Tracker).await?;
        TrackerNode::start(context.registry, &context.loaded, data_dir, init, &context.log).await
    };
    let Some(node) = context.stop.run_until_cancelled(start).await else { return Ok(()) };
    let node = node?;
    let mut stdout = Stdout::default();
    for endpoint in node.endpoints() {
        stdout.line(&format!("tracker listening on {endpoint}"));
    }
    for url in node.urls() {
        stdout.line(&format!("HTTP at {url}"));
    }
    context.stop.cancelled().await;
    node.stop().await;
    Ok(())
}
