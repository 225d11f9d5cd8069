//! `enjambre status`: the peer, if one runs, and the trackers.

use clap::Args;
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::protocol::message::TrackerStatus;
use enjambre_core::tracker::error::TrackerError;
use serde_json::{Value, json};

use super::Context;
use super::output::{Stdout, size};
use crate::config::sections::NodeKind;
use crate::control::client::{Outcome, attach};
use crate::control::message::{Command, Event, NodeStatus};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { json }: Arguments) -> Result<(), Failure> {
    let ask = async {
        let node = match context.loaded.kind {
            NodeKind::Peer => node(&context).await?,
            NodeKind::Tracker => None,
        };
        Ok::<_, Failure>((node, context.trackers().await?.status().await))
    };
    let Some(answer) = context.stop.run_until_cancelled(ask).await else {
        return Err(Failure::failed("interrupted"));
    };
    let (node, trackers) = answer?;
    let mut stdout = Stdout::default();
    if context.loaded.kind == NodeKind::Peer {
        match (&node, json) {
            (Some(node), true) => stdout.json(&with(json!({ "node": "peer", "running": true }), json!(node))),
            (None, true) => stdout.json(&json!({ "node": "peer", "running": false })),
            (Some(node), false) => peer_text(node, &mut stdout),
            (None, false) => stdout.line("no peer is running"),
        }
    }
    for (endpoint, status) in &trackers {
        match (status, json) {
            (Ok(status), true) => {
                let head = json!({ "node": "tracker", "endpoint": endpoint, "running": true });
                stdout.json(&with(head, json!(status)));
            }
            (Err(error), true) => stdout.json(
                &json!({ "node": "tracker", "endpoint": endpoint, "running": false, "message": error.to_string() }),
            ),
            (Ok(status), false) => tracker_text(endpoint, status, &mut stdout),
            (Err(error), false) => stdout.line(&format!("tracker {endpoint}: {error}")),
        }
    }
    stdout.end()?;
    let unreached =
        |(_, status): &(_, Result<_, TrackerError>)| matches!(status, Err(TrackerError::Unreachable { .. }));
    if node.is_none() && trackers.iter().all(unreached) {
        return Err(Failure::unreachable("neither a running peer nor a tracker can be reached"));
    }
    Ok(())
}

/// What the owner of the data folder says of itself, if there is one.
async fn node(context: &Context<'_>) -> Result<Option<NodeStatus>, Failure> {
    let Ok(attached) = attach(&context.loaded.data_dir(NodeKind::Peer)).await else { return Ok(None) };
    let mut found = None;
    let mut show = |event| {
        if let Event::Status(status) = event {
            found = Some(status);
        }
    };
    match attached.run(Command::Status, &mut show).await {
        Outcome::Ended(result) => result?,
        Outcome::OwnerGone => {}
    }
    Ok(found)
}

fn with(mut head: Value, rest: Value) -> Value {
    if let (Value::Object(head), Value::Object(rest)) = (&mut head, rest) {
        head.extend(rest);
    }
    head
}

fn peer_text(node: &NodeStatus, stdout: &mut Stdout) {
    let what = if node.daemon { "peer" } else { "a command that is part of the swarm" };
    stdout.line(&format!("{what} {}, process {}, up {:.0} s", node.peer, node.pid, node.uptime));
    for endpoint in &node.listen {
        stdout.line(&format!("  listens on {endpoint}"));
    }
    stdout.line(&format!(
        "  has {} files ({} published by itself), {}; sent {} since the start",
        node.files,
        node.published,
        size(node.bytes),
        size(node.sent)
    ));
    for tracker in &node.trackers {
        let state = if tracker.connected { "known to" } else { "not known to" };
        let problem = tracker.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
        stdout.line(&format!("  {state} {}{problem}", tracker.endpoint));
    }
}

fn tracker_text(endpoint: &Endpoint, status: &TrackerStatus, stdout: &mut Stdout) {
    let TrackerStatus { program, uptime_ms, files, peers, store, .. } = status;
    stdout.line(&format!(
        "tracker {endpoint}: {files} files, {peers} living peers, up {} s, version {program}",
        uptime_ms / 1000
    ));
    if let Some(store) = store {
        stdout.line(&format!(
            "  keeps {} copies, {} of {} reserved",
            store.pins,
            size(store.reserved),
            size(store.quota)
        ));
    }
}
