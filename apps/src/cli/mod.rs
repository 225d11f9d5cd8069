//! The command line: one file per command.

mod config;
mod demo;
mod drive;
mod export;
mod get;
mod invite;
mod join;
mod library;
mod list;
mod output;
mod peer;
mod peers;
mod program;
mod progress;
mod publish;
mod remove;
mod reserve;
mod revoke;
mod status;
mod storage;
mod tracker;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use output::note as complain;
pub(crate) use program::Program;

use clap::{ArgAction, Args, FromArgMatches, Parser, Subcommand};
use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::tracker::trackers::Trackers;
use tokio_util::sync::CancellationToken;

use crate::config::load::{Loaded, Sources};
use crate::config::sections::NodeKind;
use crate::failure::Failure;
use crate::logging;
use crate::node_key;
use crate::registry::Registry;
use crate::tracker::noted_endpoints;

/// Share files with other machines of yours, directly and verified.
#[derive(Debug, Parser)]
#[command(name = "enjambre", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Reads the arguments of the process. `clap` forgets the values of a list in front of the command when there are
    /// some behind it, so those in front are moved behind.
    pub(crate) fn read(
        command: clap::Command,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let mut arguments = arguments.into_iter();
        let mut kept: Vec<OsString> = arguments.next().into_iter().collect();
        let mut moved = Vec::new();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--set") => moved.extend(arguments.next().and_then(|value| value.into_string().ok())),
                Some("--config") => {
                    kept.push(argument);
                    kept.extend(arguments.next());
                }
                Some(text) if text.starts_with("--set=") => moved.push(text["--set=".len()..].to_owned()),
                Some(text) if text.starts_with('-') => kept.push(argument),
                _ => {
                    kept.push(argument);
                    break;
                }
            }
        }
        let matches = command.try_get_matches_from(kept.into_iter().chain(arguments))?;
        let mut cli = Self::from_arg_matches(&matches)?;
        moved.append(&mut cli.global.set);
        cli.global.set = moved;
        Ok(cli)
    }
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// The configuration file [default: $ENJAMBRE_CONFIG, ./enjambre.toml, the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a value of the configuration: section.key=VALUE, where VALUE is TOML or a bare word
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append)]
    set: Vec<String>,
    /// Log more; twice for even more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep the catalogue of files and of who offers them
    Tracker,
    /// Publish, download and offer files until stopped
    Peer,
    /// Put files or folders into the catalogue
    Publish(publish::Arguments),
    /// List the catalogue
    List(list::Arguments),
    /// Download a file or folder
    Get(get::Arguments),
    /// List what this peer has
    Library(library::Arguments),
    /// Write a file or folder of the library to a path
    Export(export::Arguments),
    /// Take a file or folder out of the library; a linked file stays where it is
    Remove(remove::Arguments),
    /// Hash what this peer has again
    Verify(verify::Arguments),
    /// How the peer and its trackers do
    Status(status::Arguments),
    /// Come into a swarm by invitation
    Join(join::Arguments),
    /// Let somebody into the swarm of a tracker: prints one line for them
    Invite(invite::Arguments),
    /// List who is in the swarm of a tracker
    Peers(peers::Arguments),
    /// Throw a peer out of the swarm of a tracker
    Revoke(revoke::Arguments),
    /// Let only one peer publish a name at a tracker
    Reserve(reserve::Arguments),
    /// Look after the databases of a tracker or peer, check a storage backend and measure it
    Storage(storage::Arguments),
    /// Show or check the configuration
    Config(config::Arguments),
    /// Show it all on this machine: a tracker, three peers, and a source that dies
    Demo(demo::Arguments),
}

/// What a command works with.
struct Context<'a> {
    registry: &'a Registry,
    loaded: Loaded,
    /// Where the configuration came from, for a process that is to have the same.
    sources: Sources,
    /// Cancelled by a signal.
    stop: CancellationToken,
}

impl Context<'_> {
    /// The trackers to ask. With the configuration of a tracker that is this tracker itself.
    async fn trackers(&self) -> Result<Arc<Trackers>, Failure> {
        let config = &self.loaded.config;
        let folder = self.loaded.data_dir(self.loaded.kind);
        // A node that was never started asks as somebody whom nobody knows.
        let key = crate::blocking(move || node_key::load(&folder)).await?.unwrap_or_else(KeyPair::generate);
        let dialer = self.registry.dialer(&self.loaded, &key)?;
        let own: Vec<Endpoint> = match self.loaded.kind {
            NodeKind::Peer => config.peer.trackers.clone(),
            NodeKind::Tracker => {
                // With port 0 only the tracker itself knows where it listens.
                let noted = noted_endpoints(&self.loaded.data_dir(NodeKind::Tracker));
                let listen = &config.transport.listen;
                let fixed = listen.iter().all(|endpoint| endpoint.port() != 0);
                let listening = if fixed || noted.is_empty() { listen } else { &noted };
                let dialled: Vec<Endpoint> = listening.iter().map(dialled).collect();
                dialer.preferred(key.peer_id(), &dialled)
            }
        };
        Ok(Arc::new(Trackers::new(&dialer, own)))
    }
}

fn dialled(listen: &Endpoint) -> Endpoint {
    if listen.is_unspecified() { listen.with_address([127, 0, 0, 1].into()) } else { listen.clone() }
}

/// Runs a command to its end.
pub(crate) async fn run(registry: &Registry, cli: Cli, stop: CancellationToken) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let sources = Sources { file: global.config, set: global.set };
    if let Command::Storage(arguments) = &command
        && let Some(arguments) = arguments.copy()
    {
        logging::start(&level("warn", global.verbose, global.quiet));
        return storage::copy::run(registry, &sources, arguments, stop).await;
    }
    let kind = match &command {
        Command::Config(arguments) => return config::run(registry, sources, arguments),
        Command::Demo(arguments) => {
            logging::start(&level("warn", global.verbose, global.quiet));
            return demo::run(arguments, stop).await;
        }
        Command::Join(arguments) => {
            logging::start(&level("warn", global.verbose, global.quiet));
            registry.prepare_process();
            return join::run(registry, sources, arguments, stop).await;
        }
        Command::Tracker
        | Command::Invite(_)
        | Command::Peers(_)
        | Command::Revoke(_)
        | Command::Reserve(_) => Some(NodeKind::Tracker),
        Command::List(_) | Command::Status(_) | Command::Storage(_) => None,
        _ => Some(NodeKind::Peer),
    };
    let loaded = sources.load(kind, &registry.backends())?;
    registry.check(&loaded)?;
    // A command that is soon done only tells what goes wrong, unless somebody asked for more.
    let asked = loaded.values().get("log.level").is_some_and(|level| level.origin != "default");
    let is_daemon = matches!(command, Command::Tracker | Command::Peer);
    let usual = if asked || is_daemon { loaded.config.log.level.as_str() } else { "warn" };
    logging::start(&level(usual, global.verbose, global.quiet));
    registry.prepare_process();
    let context = Context { registry, loaded, sources, stop };
    match command {
        Command::Tracker => tracker::run(context).await,
        Command::Peer => peer::run(context).await,
        Command::Publish(arguments) => publish::run(context, arguments).await,
        Command::List(arguments) => list::run(context, arguments).await,
        Command::Get(arguments) => get::run(context, arguments).await,
        Command::Library(arguments) => library::run(context, arguments).await,
        Command::Export(arguments) => export::run(context, arguments).await,
        Command::Remove(arguments) => remove::run(context, arguments).await,
        Command::Verify(arguments) => verify::run(context, arguments).await,
        Command::Status(arguments) => status::run(context, arguments).await,
        Command::Storage(arguments) => storage::run(context, arguments).await,
        Command::Invite(arguments) => invite::run(context, arguments).await,
        Command::Peers(arguments) => peers::run(context, arguments).await,
        Command::Revoke(arguments) => revoke::run(context, arguments).await,
        Command::Reserve(arguments) => reserve::run(context, arguments).await,
        Command::Config(_) | Command::Demo(_) | Command::Join(_) => Ok(()),
    }
}

fn level(usual: &str, verbose: u8, quiet: bool) -> String {
    match (quiet, verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => usual.to_owned(),
        (false, 1) => "info,enjambre=debug,enjambre_core=debug,enjambre_transport=debug".to_owned(),
        (false, 2) => "debug".to_owned(),
        (false, _) => "trace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_in_front_of_the_command_and_behind_it() {
        let read = |arguments: &[&str]| {
            let command = Program::stock().command(&Registry::default());
            Cli::read(command, arguments.iter().map(OsString::from))
        };
        let arguments =
            ["x", "--set", "a=1", "-v", "--set=b=2", "--config", "f", "get", "--set", "c=3", "name"];
        let cli = read(&arguments).unwrap();
        assert_eq!(cli.global.set, ["a=1", "b=2", "c=3"]);
        assert_eq!((cli.global.verbose, cli.global.config), (1, Some("f".into())));
        assert!(read(&["x", "get", "--", "--set"]).is_ok(), "a name is no option");
        assert!(read(&["x", "--set"]).is_err());
    }
}
