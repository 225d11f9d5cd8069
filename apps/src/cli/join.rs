//! `enjambre join`: joins an invite-only swarm and writes the configuration of this peer.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use enjambre_core::Endpoint;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::model::membership::{Rights, SKEW_MS};
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_swarm::membership::credentials::invitation::Invitation;
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_swarm::tracker_client::error::TrackerError;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output::Stdout;
use super::runner;
use crate::config::load::{Loaded, Sources, new_file};
use crate::config::sections::NodeKind;
use crate::failure::Failure;
use crate::node_key;
use crate::registry::Registry;

/// The default listen endpoint.
const LISTEN: &str = "tcps://0.0.0.0:7711";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Invitation printed by `enjambre invite`; `-` reads it from stdin, which keeps it out of the process list
    invitation: String,
    /// Endpoint that this peer listens on; can be repeated [default: tcps://0.0.0.0:7711]
    #[arg(long = "listen", value_name = "ENDPOINT")]
    listen: Vec<Endpoint>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Maximum length of the line on stdin, in bytes.
const MAX_LINE: u64 = 16 * 1024;

fn line_from_stdin() -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_LINE).read_line(&mut line)?;
    Ok(line)
}

pub(super) async fn run(
    registry: &Registry,
    sources: Sources,
    arguments: &Arguments,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let Arguments { invitation, listen, json } = arguments;
    let mut listen = listen.clone();
    let given = match invitation.as_str() {
        "-" => crate::blocking(line_from_stdin).await?,
        given => given.to_owned(),
    };
    let invitation: Invitation = given.parse().map_err(Failure::usage)?;
    let path = new_file(&sources).ok_or_else(|| {
        Failure::usage("cannot find the configuration directory of the user; specify a file with --config")
    })?;
    if path.exists() {
        return Err(already_exists(&path));
    }
    if listen.is_empty() {
        listen.push(LISTEN.parse().map_err(Failure::usage)?);
    }
    let text = configuration(&invitation, &listen);
    let loaded = Sources { file: Some(path.clone()), ..sources }.load_text(&text, &registry.table_names())?;
    registry.check(&loaded)?;
    let joined = async {
        let data_dir = runner::lock(&loaded.data_dir(NodeKind::Peer)).await?;
        let folder = data_dir.path().to_owned();
        let key = crate::blocking(move || node_key::load_or_create(&folder)).await?;
        let rights = join(registry, &loaded, &invitation, &key).await?;
        let file = path.clone();
        crate::blocking(move || write_new(&file, &text)).await?;
        Ok::<_, Failure>((key.peer_id(), rights))
    };
    let Some(joined) = stop.run_until_cancelled(joined).await else {
        return Err(Failure::failed("interrupted; run the command again with the same invitation"));
    };
    let (peer, rights) = joined?;
    let mut stdout = Stdout::default();
    if *json {
        stdout.json(&json!({ "peer": peer, "rights": rights, "config": path }));
    } else {
        stdout.line(&format!("joined as {peer} ({rights}); configuration written to {}", path.display()));
    }
    stdout.finish()
}

/// Sends the invitation to the trackers, one after the other, until one responds.
async fn join(
    registry: &Registry,
    loaded: &Loaded,
    invitation: &Invitation,
    key: &KeyPair,
) -> Result<Rights, Failure> {
    let dialer = registry.dialer(loaded, key)?;
    let mut reasons = Vec::new();
    for tracker in &invitation.trackers {
        match TrackerClient::new(Arc::clone(&dialer), tracker.clone()).join(invitation.secret).await {
            Ok(membership) => {
                let verified = membership.verify(&invitation.authority, SystemClock.now_ms());
                let membership = verified.map_err(|error| {
                    Failure::failed(format!("tracker {tracker} issued an invalid membership: {error}"))
                })?;
                if membership.peer != key.peer_id() {
                    return Err(Failure::failed(format!(
                        "tracker {tracker} issued a membership for another peer"
                    )));
                }
                return Ok(membership.rights);
            }
            Err(TrackerError::Unreachable { reasons: new }) => reasons.extend(new),
            Err(error) => {
                let expired = SystemClock.now_ms() > invitation.until.saturating_add(SKEW_MS);
                let hint =
                    if expired { "the invitation has expired; request a new one" } else { "cannot join" };
                return Err(Failure::from(error).context(hint));
            }
        }
    }
    Err(TrackerError::Unreachable { reasons }.into())
}

fn configuration(invitation: &Invitation, listen: &[Endpoint]) -> String {
    let list = |endpoints: &[Endpoint]| {
        endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect::<Vec<_>>().join(", ")
    };
    let mut text = String::from("# Peer of an invite-only swarm, written by `enjambre join`.\n");
    let _ = write!(
        text,
        "\n[swarm]\nauthority = \"{}\"\n\n[peer]\ntrackers = [{}]\n\n[transport]\nlisten = [{}]\n",
        invitation.authority,
        list(&invitation.trackers),
        list(listen)
    );
    text
}

fn already_exists(path: &Path) -> Failure {
    Failure::usage(format!(
        "configuration {} already exists and is not overwritten; specify another path with --config",
        path.display()
    ))
}

/// Writes a new file. Never overwrites an existing one.
fn write_new(path: &PathBuf, text: &str) -> Result<(), Failure> {
    let context = |error: std::io::Error| {
        Failure::from(error).context(format!(
            "cannot write configuration {} after joining; run the command again with the same invitation",
            path.display()
        ))
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(context)?;
    }
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(already_exists(path)),
        opened => opened.map_err(context)?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(context)
}
