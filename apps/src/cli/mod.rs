//! The command line, with one file per command.

mod config;
mod context;
mod demo;
mod downloads;
mod export;
mod get;
mod invite;
mod join;
mod library;
mod list;
mod log;
mod number;
pub(crate) mod output;
mod peer;
mod peers;
mod pins;
mod progress;
mod publish;
mod remove;
mod reserve;
mod revoke;
mod runner;
mod status;
mod storage;
mod streams;
mod tracker;
mod unpin;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Args, FromArgMatches, Parser, Subcommand};
use enjambre_control::Failure;
use tokio_util::sync::CancellationToken;

use crate::config::load::Sources;
use crate::config::sections::{LogSection, NodeKind};
use crate::logging;
use crate::registry::Registry;
use context::Context;
use output::Json;

/// Self-hosted peer-to-peer file distribution
#[derive(Debug, Parser)]
#[command(name = "enjambre", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Parses the arguments of the process.
    ///
    /// `clap` discards the values of a global list option before the subcommand if the option also occurs after it.
    /// Values of `--set` before the subcommand are therefore extracted first.
    pub(crate) fn parse_arguments(
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

const GLOBAL: &str = "Global options";

/// The options of all commands.
#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: $ENJAMBRE_CONFIG, or ~/.config/enjambre/enjambre.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    config: Option<PathBuf>,
    /// Override a configuration value: section.key=VALUE, with a TOML value or a bare word; can be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", action = ArgAction::Append, help_heading = GLOBAL)]
    set: Vec<String>,
    /// Log more; repeat for even more detail
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet", help_heading = GLOBAL)]
    verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    quiet: bool,
}

/// The option of the daemons.
#[derive(Debug, Clone, Copy, Args)]
struct Init {
    /// Accept a database that is empty, outdated or without its content: begin with an empty one, return to the outdated one,
    /// or keep only the index of the library. Accept a missing key, and only that: continue as another node, with a new key
    #[arg(long)]
    init: bool,
}

const AT_TRACKER: &str = "Run this command on the tracker's machine, with the tracker's configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a tracker, which stores the catalogue of files and providers
    Tracker(Init),
    /// Run a peer, which publishes, downloads and seeds files
    Peer(Init),
    /// Publish files or directories in the catalogue
    Publish(publish::Arguments),
    /// List files in the catalogue
    List(list::Arguments),
    /// Download a file or directory
    Get(get::Arguments),
    /// List or change the downloads of the running peer; with -v also their providers
    Downloads(downloads::Arguments),
    /// List files in the library of this peer
    Library(Json),
    /// Export a file or directory from the library to a path
    Export(export::Arguments),
    /// Remove a file or directory from the library; linked files are not deleted
    Remove(remove::Arguments),
    /// Verify the hashes of files in the library
    Verify(verify::Arguments),
    /// Show the status of the peer and its trackers
    Status(Json),
    /// Show or change the log level of the running node, until it is restarted
    Log(log::Arguments),
    /// List the replicas that trackers store for this peer, or with a tracker's configuration all replicas of the tracker
    Pins(Json),
    /// Remove a replica from a tracker; with a tracker's configuration a replica of any peer
    Unpin(unpin::Arguments),
    /// Join an invite-only swarm
    Join(join::Arguments),
    /// Create, list or cancel invitations to the swarm
    #[command(after_help = AT_TRACKER)]
    Invite(invite::Arguments),
    /// List members of the swarm
    #[command(after_help = AT_TRACKER)]
    Peers(Json),
    /// Revoke a peer's membership
    #[command(after_help = AT_TRACKER)]
    Revoke(revoke::Arguments),
    /// Reserve a name for one peer
    #[command(after_help = AT_TRACKER)]
    Reserve(reserve::Arguments),
    /// Inspect, copy, check and benchmark databases
    Storage(storage::Arguments),
    /// Show or check the configuration
    Config(config::Arguments),
    /// Run a demonstration on this machine: a tracker, three peers, one of which fails
    Demo(demo::Arguments),
}

pub(crate) async fn run(registry: &Registry, cli: Cli, stop: CancellationToken) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let sources = Sources { file: global.config, set: global.set };
    let start_logging = |section: &LogSection| {
        let level = filter(&section.level, global.verbose, global.quiet);
        logging::start(&LogSection { level, ..section.clone() })
    };
    // Other commands than the daemons log warnings only, because their user reads their output.
    let quiet = LogSection { level: "warn".to_owned(), ..LogSection::default() };
    let kind = match &command {
        Command::Config(arguments) => {
            start_logging(&quiet);
            return config::run(registry, sources, arguments).await;
        }
        Command::Storage(storage::Arguments { command: storage::Command::Copy(arguments) }) => {
            start_logging(&quiet);
            return storage::copy::run(registry, &sources, arguments, stop).await;
        }
        Command::Demo(_) if sources.file.is_some() || !sources.set.is_empty() => {
            return Err(Failure::usage("--config and --set cannot be used with `demo`"));
        }
        Command::Demo(arguments) => {
            start_logging(&quiet);
            return demo::run(arguments, stop).await;
        }
        Command::Join(arguments) => {
            start_logging(&quiet);
            registry.prepare_process();
            return join::run(registry, sources, arguments, stop).await;
        }
        Command::Tracker(_)
        | Command::Invite(_)
        | Command::Peers(_)
        | Command::Revoke(_)
        | Command::Reserve(_) => Some(NodeKind::Tracker),
        Command::List(_)
        | Command::Status(_)
        | Command::Storage(_)
        | Command::Pins(_)
        | Command::Unpin(_)
        | Command::Log(_) => None,
        _ => Some(NodeKind::Peer),
    };
    let loaded = registry.load(&sources, kind)?;
    let is_daemon = matches!(command, Command::Tracker(_) | Command::Peer(_));
    let applies = |key| is_daemon || loaded.is_above_file(key);
    let LogSection { level, format, otlp_endpoint } = loaded.config.log.clone();
    let log = start_logging(&LogSection {
        level: if applies("log.level") { level } else { quiet.level },
        format: if applies("log.format") { format } else { quiet.format },
        otlp_endpoint: if applies("log.otlp_endpoint") { otlp_endpoint } else { quiet.otlp_endpoint },
    });
    registry.prepare_process();
    let context = Context { registry, loaded, sources, log: Arc::clone(&log), stop };
    let result = match command {
        Command::Tracker(init) => tracker::run(context, init).await,
        Command::Peer(init) => peer::run(context, init).await,
        Command::Publish(arguments) => publish::run(context, arguments).await,
        Command::List(arguments) => list::run(context, arguments).await,
        Command::Get(arguments) => get::run(context, arguments).await,
        Command::Downloads(arguments) => downloads::run(context, arguments, global.verbose > 0).await,
        Command::Library(Json { json }) => library::run(context, json).await,
        Command::Export(arguments) => export::run(context, arguments).await,
        Command::Remove(arguments) => remove::run(context, arguments).await,
        Command::Verify(arguments) => verify::run(context, arguments).await,
        Command::Status(Json { json }) => status::run(context, json).await,
        Command::Log(arguments) => log::run(context, arguments).await,
        Command::Pins(Json { json }) => pins::run(context, json).await,
        Command::Unpin(arguments) => unpin::run(context, arguments).await,
        Command::Storage(arguments) => storage::run(context, arguments).await,
        Command::Invite(arguments) => invite::run(context, arguments).await,
        Command::Peers(Json { json }) => peers::run(context, json).await,
        Command::Revoke(arguments) => revoke::run(context, arguments).await,
        Command::Reserve(arguments) => reserve::run(context, arguments).await,
        Command::Config(_) | Command::Demo(_) | Command::Join(_) => Ok(()),
    };
    log.stop().await;
    result
}

fn filter(default_level: &str, verbose: u8, quiet: bool) -> String {
    match (quiet, verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => default_level.to_owned(),
        (false, 1) => {
            "info,enjambre=debug,enjambre_core=debug,enjambre_swarm=debug,enjambre_transport=debug".to_owned()
        }
        (false, 2) => "debug".to_owned(),
        (false, _) => "trace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn set_is_accepted_before_and_after_the_command() {
        let parse =
            |arguments: &[&str]| Cli::parse_arguments(Cli::command(), arguments.iter().map(OsString::from));
        let arguments =
            ["x", "--set", "a=1", "-v", "--set=b=2", "--config", "f", "get", "--set", "c=3", "name"];
        let cli = parse(&arguments).unwrap();
        assert_eq!(cli.global.set, ["a=1", "b=2", "c=3"]);
        assert_eq!((cli.global.verbose, cli.global.config), (1, Some("f".into())));
        assert!(parse(&["x", "get", "--", "--set"]).is_ok(), "arguments after `--` are not options");
        assert!(parse(&["x", "--set"]).is_err());
    }
}
