//! `enjambre peer`

use super::context::Context;
use super::output::Stdout;
use super::runner;
use crate::config::sections::NodeKind;
use crate::failure::Failure;
use crate::peer::{PeerNode, Reach};

pub(super) async fn run(context: Context<'_>) -> Result<(), Failure> {
    let path = context.loaded.data_dir(NodeKind::Peer);
    let start = async {
        let data_dir = runner::lock_for_daemon(&path).await?;
        PeerNode::start(context.registry, &context.loaded, data_dir, Reach::Daemon).await
    };
    let Some(node) = context.stop.run_until_cancelled(start).await else { return Ok(()) };
    let node = node?;
    let mut stdout = Stdout::default();
    for endpoint in node.endpoints() {
        stdout.line(&format!("peer listening on {endpoint}"));
    }
    if node.endpoints().is_empty() {
        stdout.line("peer running without listening; set transport.listen to seed files");
    }
    context.stop.cancelled().await;
    node.stop().await;
    Ok(())
}
