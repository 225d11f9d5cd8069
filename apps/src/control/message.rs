//! The first line of a client of the control socket, and its limits.

use std::collections::BTreeMap;
use std::time::Duration;

use enjambre_control::Command;
use serde::{Deserialize, Serialize};

/// The version of the control protocol. Client and server must have the same version.
pub(crate) const CONTROL_VERSION: u32 = 1;
/// Maximum length of a line, in bytes.
pub(crate) const MAX_LINE: usize = 4 << 20;
/// Maximum time between two events of a running command.
pub(crate) const ALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// The first line of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) version: u32,
    pub(crate) command: Command,
    /// The settings that the node must have, by key, as TOML values.
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, String>,
}
