//! What the program says of itself: its name, its version, and which plug-ins it has.

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
    /// The program that Enjambre brings along.
    pub(crate) fn stock() -> Self {
        Self { name: "enjambre".to_owned(), version: VERSION.to_owned() }
    }

    /// A program of somebody else, on top of this Enjambre.
    pub(crate) fn named(name: &str, version: &str) -> Self {
        Self { name: name.to_owned(), version: format!("{version} (enjambre {VERSION})") }
    }

    /// The command line under this name.
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
    fn help_and_version_tell_the_name_of_the_program_and_its_plug_ins() {
        let mut command = Program::named("mine", "7.1.2").command(&Registry::stock());
        let version = format!("mine 7.1.2 (enjambre {VERSION})\n");
        assert_eq!(command.render_version().to_string(), version);
        let help = command.render_help().to_string();
        assert!(help.contains("Usage: mine "), "{help}");
        assert!(help.contains("sqlite") && help.contains("zmq"), "{help}");
        let stock = Program::stock().command(&Registry::stock());
        assert_eq!(stock.render_version().to_string(), format!("enjambre {VERSION}\n"));
    }
}
