//! `enjambre join`: joins an invite-only swarm and writes the configuration of this peer.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use enjambre_control::{Failure, ResultContext};
use enjambre_core::model::membership::{Rights, SKEW};
use enjambre_core::protocol::error::ErrorCode;
use enjambre_core::runtime::clock::{Clock, SystemClock};
use enjambre_core::storage::database_file::create_private_file;
use enjambre_core::{Endpoint, KeyPair};
use enjambre_swarm::membership::credentials::invitation::Invitation;
use enjambre_swarm::tracker_client::client::TrackerClient;
use enjambre_swarm::tracker_client::error::TrackerError;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output::Stdout;
use super::runner;
use crate::config::load::{Loaded, Sources, new_file, user_data_dir, user_file};
use crate::config::sections::NodeKind;
use crate::data_dir::{DataDir, missing_dirs};
use crate::node_key;
use crate::registry::Registry;

/// The default listen endpoint.
const LISTEN: &str = "tcps://[::]:7711";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Invitation printed by `enjambre invite`; `-` reads it from stdin, which keeps it out of the process list
    invitation: String,
    /// Endpoint that this peer listens on; can be repeated [default: tcps://[::]:7711]
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
        "-" => {
            let line = stop.run_until_cancelled(crate::blocking(line_from_stdin)).await;
            line.unwrap_or_else(|| Err(Failure::interrupted("interrupted")))?
        }
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
    // The configuration directory of the user is not a place for content.
    let data_dir = if user_file().as_ref() == Some(&path) { user_data_dir() } else { None };
    let mut text = configuration(&invitation, &listen, data_dir)?;
    let sources = Sources { file: Some(path.clone()), ..sources };
    let loaded = sources.load_text(&text, &registry.table_names())?;
    if loaded.is_above_file("peer.data_dir") {
        // The peer must be started with the directory that contains its key.
        let data_dir = std::path::absolute(loaded.data_dir(NodeKind::Peer))?;
        text = configuration(&invitation, &listen, Some(data_dir))?;
    }
    registry.check(&loaded)?;
    let joined = async {
        let mut created = missing_dirs(&loaded.data_dir(NodeKind::Peer));
        let data_dir = runner::lock(&loaded, NodeKind::Peer).await?;
        let (key, is_known) = load_key(&data_dir, &mut created).await?;
        let mut may_be_member = false;
        let joined = join(registry, &loaded, &invitation, &key, &mut may_be_member).await;
        if joined.is_err() && !may_be_member && !created.is_empty() {
            data_dir.remove(created).await;
        }
        let rights = joined?;
        let file = path.clone();
        // Completes even if the command is interrupted.
        crate::blocking(move || write_new(&file, &text)).await?;
        Ok::<_, Failure>((key.peer_id(), rights, is_known))
    };
    let Some(joined) = stop.run_until_cancelled(joined).await else {
        return Err(Failure::interrupted("interrupted; run the command again with the same invitation"));
    };
    let (peer, rights, is_known) = joined?;
    let mut stdout = Stdout::default();
    if *json {
        stdout.json(&json!({ "peer": peer, "rights": rights, "config": path }));
    } else {
        let path = path.display();
        stdout.line(&format!("joined as {peer} (rights: {rights}); configuration written to {path}"));
        if is_known {
            let folder = loaded.data_dir(NodeKind::Peer);
            stdout.line(&format!("this peer keeps its identity: {} already had a key", folder.display()));
        }
        stdout.line(&format!("start the peer with: enjambre peer --config {path}"));
    }
    stdout.finish()
}

/// Reads or creates the key. Returns it, and whether there was one already. If so, clears `created`: another process has
/// created the directories since, and the key may be that of a member.
async fn load_key(data_dir: &DataDir, created: &mut Vec<PathBuf>) -> Result<(KeyPair, bool), Failure> {
    if let Some(key) = node_key::load(data_dir.path()).await? {
        created.clear();
        return Ok((key, true));
    }
    Ok((node_key::load_or_create(data_dir.path()).await?, false))
}

/// Sends the invitation to the trackers, one after the other, until one responds. Sets `may_be_member` if a tracker may have
/// admitted the key.
async fn join(
    registry: &Registry,
    loaded: &Loaded,
    invitation: &Invitation,
    key: &KeyPair,
    may_be_member: &mut bool,
) -> Result<Rights, Failure> {
    let dialer = registry.dialer(loaded, key)?;
    let mut reasons = Vec::new();
    for tracker in &invitation.trackers {
        let client = TrackerClient::new(Arc::clone(&dialer), tracker.clone());
        // Only a tracker that replies receives the invitation, so an unreachable one has certainly not used it.
        if let Err(TrackerError::Unreachable { reasons: new }) = client.query_catalogue().await {
            reasons.extend(new);
            continue;
        }
        match client.join(invitation.secret).await {
            Ok(membership) => {
                *may_be_member = true;
                let verified = membership.verify(&invitation.authority, SystemClock.now());
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
            Err(TrackerError::Unreachable { reasons: new }) => {
                *may_be_member = true;
                reasons.extend(new);
            }
            Err(error) => {
                *may_be_member |= !is_refusal(&error);
                let expired = SystemClock.now() > invitation.until + SKEW;
                let hint =
                    if expired { "the invitation has expired; request a new one" } else { "cannot join" };
                return Err(Failure::from(error).context(hint));
            }
        }
    }
    Err(TrackerError::Unreachable { reasons }.into())
}

/// Returns whether the tracker has certainly not admitted the key. After another error, such as one of its database, it may
/// have.
const fn is_refusal(error: &TrackerError) -> bool {
    use ErrorCode::{Forbidden, Malformed, NotFound, Unauthorized, Unsupported};
    matches!(error.code(), Some(Forbidden | Malformed | NotFound | Unauthorized | Unsupported))
}

fn configuration(
    invitation: &Invitation,
    listen: &[Endpoint],
    data_dir: Option<PathBuf>,
) -> Result<String, Failure> {
    let list = |endpoints: &[Endpoint]| {
        endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect::<Vec<_>>().join(", ")
    };
    let data_dir = match data_dir {
        Some(path) => {
            let path = path.into_os_string().into_string();
            let path = path.map_err(|path| Failure::usage(format!("{} is not UTF-8", path.display())))?;
            format!("data_dir = {}\n", toml::Value::String(path))
        }
        None => String::new(),
    };
    Ok(format!(
        "# Peer of an invite-only swarm, written by `enjambre join`.\n\n[swarm]\nauthority = \"{}\"\n\n\
         [peer]\n{data_dir}trackers = [{}]\n\n[transport]\nlisten = [{}]\n",
        invitation.authority,
        list(&invitation.trackers),
        list(listen)
    ))
}

fn already_exists(path: &Path) -> Failure {
    Failure::usage(format!(
        "configuration {} already exists and is not overwritten; specify another path with --config",
        path.display()
    ))
}

/// Writes a new file. Never overwrites an existing one.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let action = format!(
        "cannot write configuration {} after joining; run the command again with the same invitation",
        path.display()
    );
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).context(&action)?;
    }
    let mut file = match create_private_file(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(already_exists(path)),
        opened => opened.context(&action)?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).context(action)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use enjambre_core::model::secret::Secret;
    use enjambre_core::protocol::error::ErrorReply;
    use enjambre_core::protocol::message::{Nonce, Reply, Request};
    use enjambre_core::protocol::server::{Handler, serve};
    use enjambre_core::transport::memory::MemoryNetwork;
    use enjambre_core::{CatalogueId, PeerInfo, ReplySink, RequestId};

    use super::*;
    use crate::registry::Security;

    /// A tracker that replies to an invitation with an error.
    struct FailingTracker(ErrorCode);

    #[async_trait]
    impl Handler for FailingTracker {
        async fn handle(
            &self,
            _: RequestId,
            request: Request,
            _: &PeerInfo,
            _: &mut dyn ReplySink,
        ) -> Result<(Reply, Bytes), ErrorReply> {
            if let Request::Join { .. } = request {
                return Err(ErrorReply::new(self.0, "not now"));
            }
            let (catalogue, nonce) = (CatalogueId([1; 16]), Nonce([1; 32]));
            Ok((Reply::OpenSession { catalogue, nonce, grant: None }, Bytes::new()))
        }
    }

    /// Joins with an invitation of this tracker. Returns the error, and whether the key was kept.
    async fn failed_join(tracker: FailingTracker) -> (Failure, bool) {
        let folder = tempfile::tempdir().unwrap();
        let network = MemoryNetwork::new();
        let transport = network.transport_of(KeyPair::generate().peer_id());
        let listener = transport.bind(&"memory://tracker:1".parse().unwrap()).await.unwrap();
        let invitation = Invitation {
            authority: KeyPair::generate().public(),
            secret: Secret::generate(),
            until: SystemClock.now() + SKEW,
            trackers: vec![listener.local_endpoint().clone()],
        };
        tokio::spawn(serve(listener, Arc::new(tracker)));
        let mut registry = Registry::with_builtins();
        registry.register_transport("memory", Security::Authenticated, move |parts| {
            Ok(network.transport_of(parts.key.peer_id()))
        });
        let arguments = Arguments {
            invitation: invitation.to_string(),
            listen: vec!["memory://127.0.0.1:1".parse().unwrap()],
            json: false,
        };
        let set = ["storage.backend=memory", "peer.data_dir=data"].map(str::to_owned).to_vec();
        let sources = Sources { file: Some(folder.path().join("enjambre.toml")), set };
        let failure = run(&registry, sources, &arguments, CancellationToken::new()).await.unwrap_err();
        (failure, folder.path().join("data").join(node_key::NAME).exists())
    }

    #[tokio::test]
    async fn key_is_removed_only_after_a_refusal() {
        for (code, is_kept) in [
            (ErrorCode::Storage, true),
            (ErrorCode::Internal, true),
            (ErrorCode::Busy, true),
            (ErrorCode::Unauthorized, false),
        ] {
            let (failure, kept) = failed_join(FailingTracker(code)).await;
            assert_eq!((failure.code, kept), (Some(code), is_kept), "{failure}");
        }
    }

    #[tokio::test]
    async fn key_of_another_process_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::try_lock(folder.path(), false).await.unwrap().unwrap();
        let created = vec![folder.path().to_owned()];
        let (mut first, mut second) = (created.clone(), created.clone());
        let (key, is_known) = load_key(&data_dir, &mut first).await.unwrap();
        assert_eq!((first, is_known), (created, false));
        let (same, is_known) = load_key(&data_dir, &mut second).await.unwrap();
        assert_eq!((same.peer_id(), second, is_known), (key.peer_id(), Vec::new(), true));
    }
}
