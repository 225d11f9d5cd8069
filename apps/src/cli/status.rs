//! `enjambre status`: the status of the running peer and of the trackers.

use enjambre_control::{Command, Event, Failure, NodeStatus, TrackerLine};
use enjambre_core::Endpoint;
use enjambre_core::protocol::message::TrackerStatus;
use enjambre_swarm::tracker_client::error::TrackerError;
use serde_json::{Value, json};

use super::context::Context;
use super::output::{Stdout, size};
use super::runner::connect_to_running;
use crate::access::user_name;
use crate::config::sections::NodeKind;
use crate::data_dir::other_owner;
use crate::display::count;

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    let query = async {
        let node = match context.loaded.kind {
            NodeKind::Peer => running_peer(&context).await,
            NodeKind::Tracker => Ok(None),
        };
        let trackers = context.trackers().await?;
        Ok((node, context.wait_for_trackers(trackers.status(), || true).await))
    };
    let (node, trackers) = context.run(query).await?;
    let is_unreachable =
        |(_, status): &&(_, Result<_, TrackerError>)| matches!(status, Err(TrackerError::Unreachable { .. }));
    let unreachable: Vec<&Endpoint> =
        trackers.iter().filter(is_unreachable).map(|(endpoint, _)| endpoint).collect();
    let mut stdout = Stdout::default();
    if let (NodeKind::Peer, Ok(node)) = (context.loaded.kind, &node) {
        let user = other_owner(&context.loaded.data_dir(NodeKind::Peer)).map(user_name);
        match (node, json) {
            (Some(node), true) => {
                stdout.json(&with(json!({ "node": "peer", "running": true, "user": user }), json!(node)));
            }
            (None, true) => stdout.json(&json!({ "node": "peer", "running": false })),
            (Some(node), false) => peer_text(node, user.as_deref(), &unreachable, &mut stdout),
            (None, false) => stdout.line("peer: not running"),
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
            // The error names the endpoint.
            (Err(error), false) => stdout.line(&error.to_string()),
        }
    }
    stdout.finish()?;
    // The trackers are shown even if the peer does not respond.
    let node = node?;
    if node.is_none() && unreachable.len() == trackers.len() {
        return Err(Failure::unreachable("no peer is running and no tracker is reachable"));
    }
    Ok(())
}

/// Returns the status of the process that uses the data directory, if any.
async fn running_peer(context: &Context<'_>) -> Result<Option<NodeStatus>, Failure> {
    let connection = connect_to_running(&context.loaded, NodeKind::Peer).await?;
    let Some(connection) = connection else { return Ok(None) };
    let mut found = None;
    let mut show = |event| {
        if let Event::Status(status) = event {
            found = Some(status);
        }
    };
    connection.run(Command::Status, &mut show).await.transpose()?;
    Ok(found)
}

fn with(mut head: Value, rest: Value) -> Value {
    if let (Value::Object(head), Value::Object(rest)) = (&mut head, rest) {
        head.extend(rest);
    }
    head
}

/// `user` is the owner of the data directory if it is another user, `unreachable` the trackers that did not reply to this
/// command.
fn peer_text(node: &NodeStatus, user: Option<&str>, unreachable: &[&Endpoint], stdout: &mut Stdout) {
    let kind = if node.daemon { "peer" } else { "command" };
    let user = user.map_or_else(String::new, |user| format!(" of user {user}"));
    stdout
        .line(&format!("{kind} {}: process {}{user}, up {:.0} s", node.peer, node.pid, node.uptime_seconds));
    for endpoint in &node.listen {
        stdout.line(&format!("  listening on {endpoint}"));
    }
    stdout.line(&format!(
        "  {} ({} published by this peer), {}; sent {} since start",
        count(node.files, "file"),
        node.published,
        size(node.content_bytes),
        size(node.sent_bytes)
    ));
    if node.refused_names > 0 {
        let names = count(node.refused_names, "name");
        stdout.line(&format!("  {names} refused by trackers; published again at intervals"));
    }
    if node.withdrawn > 0 {
        stdout.line(&format!("  {} not offered until found again:", count(node.withdrawn, "linked file")));
        for file in &node.withdrawn_files {
            stdout.line(&format!("    {}: {}", file.reason, file.path.display()));
        }
        let more = node.withdrawn - node.withdrawn_files.len() as u64;
        if more > 0 {
            stdout.line(&format!("    and {more} more"));
        }
    }
    for tracker in &node.trackers {
        stdout.line(&session_text(tracker, unreachable.contains(&&tracker.endpoint)));
    }
}

/// The peer notices only at its next renewal that a tracker has become unreachable.
fn session_text(TrackerLine { endpoint, connected, problem }: &TrackerLine, is_unreachable: bool) -> String {
    let problem = problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
    match (connected, is_unreachable) {
        (true, true) => format!("  was connected to tracker {endpoint}, which does not reply now"),
        (true, false) => format!("  connected to tracker {endpoint}{problem}"),
        (false, _) => format!("  not connected to tracker {endpoint}{problem}"),
    }
}

fn tracker_text(endpoint: &Endpoint, status: &TrackerStatus, stdout: &mut Stdout) {
    let TrackerStatus { program, uptime_ms, files, peers, store, .. } = status;
    stdout.line(&format!(
        "tracker {endpoint}: {}, {} online, up {} s, version {program}",
        count(*files, "file"),
        count(*peers, "peer"),
        uptime_ms / 1000
    ));
    if let Some(store) = store {
        stdout.line(&format!(
            "  {}, {} of {} reserved",
            count(store.pins, "replica"),
            size(store.reserved),
            size(store.quota)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_tracker_is_not_shown_as_connected() {
        let mut line = TrackerLine {
            endpoint: "zmq://127.0.0.1:7700".parse().unwrap(),
            connected: true,
            problem: Some("only loopback addresses are advertised".to_owned()),
        };
        assert!(session_text(&line, false).ends_with(
            "  connected to tracker zmq://127.0.0.1:7700: only loopback addresses are advertised"
        ));
        assert_eq!(
            session_text(&line, true),
            "  was connected to tracker zmq://127.0.0.1:7700, which does not reply now"
        );
        (line.connected, line.problem) = (false, Some("connection refused".to_owned()));
        for is_unreachable in [false, true] {
            assert_eq!(
                session_text(&line, is_unreachable),
                "  not connected to tracker zmq://127.0.0.1:7700: connection refused"
            );
        }
    }
}
