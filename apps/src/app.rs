//! The program as a value: its name, its plug-ins, its command line, its exit code.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use enjambre_core::storage::Storage;
use enjambre_core::transport::Transport;
use serde::de::DeserializeOwned;

use crate::cli::{self, Cli, Program};
use crate::registry::{MakeError, Place, PluginError, Registry, Security, TransportParts};
use crate::shutdown;

/// How long threads that block may go on after the command has ended.
const LINGER: Duration = Duration::from_millis(200);

/// Enjambre with a choice of plug-ins.
#[derive(Debug)]
pub struct App {
    program: Program,
    registry: Registry,
}

impl App {
    /// The program `enjambre`, with everything that it brings along.
    pub fn stock() -> Self {
        Self { program: Program::stock(), registry: Registry::stock() }
    }

    /// The same as a program of another name, which its help and its version tell: usually the
    /// `env!("CARGO_PKG_NAME")` and the `env!("CARGO_PKG_VERSION")` of the crate with the `main` function.
    pub fn named(name: &str, version: &str) -> Self {
        Self { program: Program::named(name, version), registry: Registry::stock() }
    }

    /// Adds a storage backend under a name, see [`Registry::register_storage`]: `open` is given what stands in the table
    /// `[storage.NAME]`, and the place that the storage is for.
    pub fn register_storage<S, F, Fut>(&mut self, name: impl Into<String>, open: F) -> &mut Self
    where
        S: DeserializeOwned,
        F: Fn(S, Place) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Storage>, PluginError>> + Send + 'static,
    {
        self.registry.register_storage(name, open);
        self
    }

    /// Says how a storage backend removes a scratch, see [`Registry::remove_scratch_with`].
    pub fn remove_scratch_with<S, F, Fut>(&mut self, name: &str, remove: F) -> &mut Self
    where
        S: DeserializeOwned,
        F: Fn(S, Place) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        self.registry.remove_scratch_with(name, remove);
        self
    }

    /// Adds the transport of a scheme, see [`Registry::register_transport`]. `make` is given `[transport.limits]` and
    /// the key of the node.
    ///
    /// ```
    /// use enjambre::App;
    /// use enjambre::registry::Security;
    /// use enjambre_core::transport::memory::MemoryNetwork;
    ///
    /// let mut app = App::stock();
    /// // From now on nodes can listen at memory://127.0.0.1:1, which ends with the process.
    /// let network = MemoryNetwork::new();
    /// app.register_transport("memory", Security::Authenticated, move |parts| {
    ///     Ok(network.transport_of(parts.key.peer_id()))
    /// });
    /// ```
    pub fn register_transport<F>(
        &mut self,
        scheme: impl Into<String>,
        security: Security,
        make: F,
    ) -> &mut Self
    where
        F: Fn(TransportParts<'_>) -> Result<Arc<dyn Transport>, MakeError> + Send + Sync + 'static,
    {
        self.registry.register_transport(scheme, security, make);
        self
    }

    /// Does what the command line of the process says. The whole of a `main` function.
    pub fn main(self) -> ExitCode {
        self.run(std::env::args_os())
    }

    /// Does what these arguments say; the first is the name of the program.
    pub fn run(self, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
        let cli = match Cli::read(self.program.command(&self.registry), arguments) {
            Ok(cli) => cli,
            Err(error) => {
                // Help and version are such an "error" as well. Nobody is left to tell if this fails.
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
        };
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                cli::complain(&format!("error: cannot start: {error}"));
                return ExitCode::FAILURE;
            }
        };
        let result = runtime.block_on(async {
            let stop = shutdown::on_signal()?;
            cli::run(&self.registry, cli, stop).await
        });
        runtime.shutdown_timeout(LINGER);
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                cli::complain(&format!("error: {failure}"));
                failure.exit_code()
            }
        }
    }
}
