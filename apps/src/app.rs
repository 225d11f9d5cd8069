//! A program with its plug-ins, command line and exit code.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use enjambre_core::{Place, Role, Storage, Transport};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::output;
use crate::cli::{self, Cli};
use crate::logging;
use crate::registry::{InvalidLimit, PluginError, Registry, Security, TransportParts};
use crate::shutdown;

/// The version of Enjambre.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Time for which blocking threads can continue after the end of a command.
const BLOCKING_GRACE: Duration = Duration::from_millis(200);

/// The program `enjambre` with a selection of plug-ins.
///
/// # Examples
///
/// A program with an additional storage backend:
///
/// ```
/// use std::ffi::OsString;
/// use std::process::ExitCode;
/// use std::sync::Arc;
///
/// use enjambre::App;
/// use enjambre::registry::NoSettings;
/// use enjambre_core::storage::Role;
/// use enjambre_core::storage::location::Place;
/// use enjambre_core::storage::memory::Memory;
///
/// let mut app = App::named("my-enjambre", "1.0.0");
/// app.register_storage("mine", |NoSettings {}, _place: Place, _role: Role| async {
///     Ok(Arc::new(Memory::new()) as _)
/// });
/// // A `main` function calls `app.main()` instead.
/// let arguments = ["my-enjambre", "config", "check", "--set", "storage.backend=mine"];
/// let exit_code = app.run(arguments.map(OsString::from));
/// assert_eq!(format!("{exit_code:?}"), format!("{:?}", ExitCode::SUCCESS));
/// ```
#[derive(Debug)]
pub struct App {
    name: String,
    version: String,
    registry: Registry,
}

impl Default for App {
    fn default() -> Self {
        Self::new()
    }
}

impl App {
    /// Creates the program `enjambre` with its built-in plug-ins.
    pub fn new() -> Self {
        Self { name: "enjambre".to_owned(), version: VERSION.to_owned(), registry: Registry::with_builtins() }
    }

    /// Creates a program with another name and version, which appear in its help, and with the built-in plug-ins.
    ///
    /// Name and version are usually `env!("CARGO_PKG_NAME")` and `env!("CARGO_PKG_VERSION")` of the crate with the
    /// `main` function.
    pub fn named(name: &str, version: &str) -> Self {
        let version = format!("{version} (enjambre {VERSION})");
        Self { name: name.to_owned(), version, ..Self::new() }
    }

    /// Registers a storage backend. Replaces a backend with the same name.
    ///
    /// `open` receives the table `[storage.NAME]` of the configuration, and the place and the role of the storage. `S` is
    /// deserialized from the table and should reject unknown fields. `config show` prints its values, with the defaults if
    /// TOML can represent all of them. A name consists of letters, digits, `_` and `-`.
    ///
    /// # Panics
    /// If the name is `backend` or `layers`, which are keys of the section `[storage]`.
    pub fn register_storage<S, F, Fut>(&mut self, name: impl Into<String>, open: F) -> &mut Self
    where
        S: DeserializeOwned + Serialize,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Storage>, PluginError>> + Send + 'static,
    {
        self.registry.register_storage(name, open);
        self
    }

    /// Registers a function that removes a scratch place of a backend.
    ///
    /// Only backends that store data outside of the paths of [`Place::database`] and the data directory need it, for
    /// example on a server.
    ///
    /// # Panics
    /// If no backend with this name is registered.
    pub fn remove_scratch_with<S, F, Fut>(&mut self, name: &str, remove: F) -> &mut Self
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        self.registry.remove_scratch_with(name, remove);
        self
    }

    /// Registers the transport of a scheme. Replaces a transport with the same scheme.
    ///
    /// If a remote node listens with several transports, the one that was registered first is dialed. `create` receives
    /// the section `[transport.limits]` and the key of the node.
    ///
    /// ```
    /// use enjambre::App;
    /// use enjambre::registry::Security;
    /// use enjambre_core::transport::memory::MemoryNetwork;
    ///
    /// let mut app = App::new();
    /// // Nodes of this process can listen on memory://127.0.0.1:1.
    /// let network = MemoryNetwork::new();
    /// app.register_transport("memory", Security::Authenticated, move |parts| {
    ///     Ok(network.transport_of(parts.key.peer_id()))
    /// });
    /// ```
    pub fn register_transport<F>(
        &mut self,
        scheme: impl Into<String>,
        security: Security,
        create: F,
    ) -> &mut Self
    where
        F: Fn(TransportParts<'_>) -> Result<Arc<dyn Transport>, InvalidLimit> + Send + Sync + 'static,
    {
        self.registry.register_transport(scheme, security, create);
        self
    }

    fn command(&self) -> clap::Command {
        let plugins = format!(
            "Storage backends: {}\nTransports: {}",
            self.registry.backends().join(", "),
            self.registry.schemes().join(", ")
        );
        Cli::command().name(self.name.clone()).version(self.version.clone()).after_help(plugins)
    }

    /// Runs the command line of the process. This is the whole body of a `main` function.
    pub fn main(self) -> ExitCode {
        logging::silence_engine_panics();
        self.run(std::env::args_os())
    }

    /// Runs a command line. The first argument is the name of the program.
    pub fn run(self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        let cli = match Cli::parse_arguments(self.command(), arguments) {
            Ok(cli) => cli,
            Err(error) => {
                // Includes `--help` and `--version`.
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        };
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                output::notice(&format!("error: cannot start: {error}"));
                return ExitCode::FAILURE;
            }
        };
        let result = runtime.block_on(async {
            let stop = shutdown::on_signal()?;
            cli::run(&self.registry, cli, stop).await
        });
        runtime.shutdown_timeout(BLOCKING_GRACE);
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                output::notice(&format!("error: {failure}"));
                failure.exit_code()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_contains_name_version_and_plugins() {
        let mut command = App::named("mine", "7.1.2").command();
        let version = format!("mine 7.1.2 (enjambre {VERSION})\n");
        assert_eq!(command.render_version().to_string(), version);
        let help = command.render_help().to_string();
        assert!(help.contains("Usage: mine "), "{help}");
        assert!(help.contains("memory") && help.contains("zmq"), "{help}");
        assert_eq!(App::new().command().render_version().to_string(), format!("enjambre {VERSION}\n"));
    }
}
