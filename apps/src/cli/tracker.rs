//! `enjambre tracker`

use super::output::Stdout;
use super::{Context, drive};
use crate::config::sections::NodeKind;
use crate::failure::Failure;
use crate::tracker::TrackerNode;

pub(super) async fn run(context: Context<'_>) -> Result<(), Failure> {
    if context.loaded.config.transport.listen.is_empty() {
        return Err(context
            .loaded
            .refuse("transport.listen", "a tracker listens at one endpoint at least")
            .into());
    }
    let path = context.loaded.data_dir(NodeKind::Tracker);
    let start = async {
        let data_dir = drive::own(&path).await?;
        TrackerNode::start(context.registry, &context.loaded, data_dir).await
    };
    let Some(node) = context.stop.run_until_cancelled(start).await else { return Ok(()) };
    let node = node?;
    let mut stdout = Stdout::default();
    for endpoint in node.endpoints() {
        stdout.line(&format!("tracker listening on {endpoint}"));
    }
    context.stop.cancelled().await;
    node.stop().await;
    Ok(())
}
