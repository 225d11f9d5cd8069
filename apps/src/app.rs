//! A program with its plug-ins, command line and exit code.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::{Place, Role, Storage, Transport};
use serde::de::DeserializeOwned;

use crate::cli::output;
use crate::cli::program::Program;
use crate::cli::{self, Cli};
use crate::logging;
use crate::registry::{InvalidLimit, PluginError, Registry, Security, TransportParts};
use crate::shutdown;

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
    program: Program,
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
        Self { program: Program::enjambre(), registry: Registry::with_builtins() }
    }

    /// Creates a program with another name and version, which appear in its help, and with the built-in plug-ins.
    ///
    /// Name and version are usually `env!("CARGO_PKG_NAME")` and `env!("CARGO_PKG_VERSION")` of the crate with the
    /// `main` function.
    pub fn named(name: &str, version: &str) -> Self {
        Self { program: Program::named(name, version), registry: Registry::with_builtins() }
    }

    /// Registers a storage backend. See [`Registry::register_storage`].
    ///
    /// `open` receives the table `[storage.NAME]` of the configuration, and the place and the role of the storage.
    pub fn register_storage<S, F, Fut>(&mut self, name: impl Into<String>, open: F) -> &mut Self
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Storage>, PluginError>> + Send + 'static,
    {
        self.registry.register_storage(name, open);
        self
    }

    /// Registers a function that removes a scratch place of a backend. See [`Registry::remove_scratch_with`].
    pub fn remove_scratch_with<S, F, Fut>(&mut self, name: &str, remove: F) -> &mut Self
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        self.registry.remove_scratch_with(name, remove);
        self
    }

    /// Registers the transport of a scheme. See [`Registry::register_transport`].
    ///
    /// `create` receives the section `[transport.limits]` and the key of the node.
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

    /// Runs the command line of the process. This is the whole body of a `main` function.
    pub fn main(self) -> ExitCode {
        logging::silence_engine_panics();
        self.run(std::env::args_os())
    }

    /// Runs a command line. The first argument is the name of the program.
    pub fn run(self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        let cli = match Cli::parse_arguments(self.program.command(&self.registry), arguments) {
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
