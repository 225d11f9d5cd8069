//! Name, version and plug-ins of the program, as shown by its help.

use clap::CommandFactory;

use super::Cli;
use crate::registry::Registry;

/// The version of Enjambre.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A name and a version.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    name: String,
    version: String,
}

impl Program {
    /// The program `enjambre`.
    pub(crate) fn enjambre() -> Self {
        Self { name: "enjambre".to_owned(), version: VERSION.to_owned() }
    }

    /// A program that is built on this version of Enjambre.
    pub(crate) fn named(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: format!("{version} (enjambre {VERSION})") }
    }

    /// Returns the command line with this name and version.
    pub(crate) fn command(&self, registry: &Registry) -> clap::Command {
        let plugins = format!(
            "Storage backends: {}\nTransports: {}",
            registry.backends().join(", "),
            registry.schemes().join(", ")
        );
        Cli::command().name(self.name.clone()).version(self.version.clone()).after_help(plugins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_contains_name_version_and_plugins() {
        let mut command = Program::named("mine", "7.1.2").command(&Registry::with_builtins());
        let version = format!("mine 7.1.2 (enjambre {VERSION})\n");
        assert_eq!(command.render_version().to_string(), version);
        let help = command.render_help().to_string();
        assert!(help.contains("Usage: mine "), "{help}");
        assert!(help.contains("memory") && help.contains("zmq"), "{help}");
        let enjambre = Program::enjambre().command(&Registry::with_builtins());
        assert_eq!(enjambre.render_version().to_string(), format!("enjambre {VERSION}\n"));
    }
}
