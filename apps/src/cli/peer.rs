//! `enjambre peer`

use enjambre_control::Failure;

use super::Init;
use super::context::Context;
use super::output::Stdout;
use super::runner;
use crate::peer::{PeerNode, Reach};

pub(super) async fn run(context: Context<'_>, Init { init }: Init) -> Result<(), Failure> {
    let start = async {
        let data_dir = runner::lock_for_daemon(&context.loaded).await?;
        PeerNode::start(context.registry, &context.loaded, data_dir, init, Reach::Daemon, &context.log).await
    };
    let Some(node) = context.stop.run_until_cancelled(start).await else { return Ok(()) };
    let node = node?;
    let mut stdout = Stdout::default();
    for endpoint in node.endpoints() {
        stdout.line(&format!("peer listening on {endpoint}"));
    }
    for url in node.urls() {
        stdout.line(&format!("HTTP at {url}"));
    }
    if node.endpoints().is_empty() {
        stdout.line("peer running without listening; set transport.listen to seed files");
    }
    context.stop.cancelled().await;
    node.stop().await;
    Ok(())
}
