//! Plug-ins independent of the types of their settings.

use std::sync::Arc;

use enjambre_core::{KeyPair, Place, Role, Storage, Transport};
use enjambre_transport::settings::InvalidSetting;
use futures::future::{BoxFuture, FutureExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;
use toml::de::Error as TableError;

use crate::config::sections::TransportLimits;

/// An error of a plug-in.
pub type PluginError = Box<dyn std::error::Error + Send + Sync>;

/// A pending call of a backend, or the error of its table.
type Pending<T> = Result<BoxFuture<'static, Result<T, PluginError>>, TableError>;
type Call<T> = dyn Fn(Table, Place, Role) -> Pending<T> + Send + Sync;

pub(super) type Transports = Vec<Arc<dyn Transport>>;
pub(super) type CreateTransports =
    dyn Fn(TransportParts<'_>) -> Result<Transports, InvalidLimit> + Send + Sync;

pub(super) struct Backend {
    /// Starts to open a storage.
    pub(super) open: Box<Call<Arc<dyn Storage>>>,
    /// Checks a table and returns it, with the defaults of the settings that it does not contain if TOML can represent them.
    pub(super) complete: fn(Table) -> Result<Table, TableError>,
    /// Whether the data is lost when the process ends.
    pub(super) is_volatile: bool,
    /// Starts to check the files that the settings name, without opening the storage.
    pub(super) check_files: Option<Box<Call<()>>>,
    /// Starts to remove a scratch place. `None` if the backend has nothing to remove.
    pub(super) remove_scratch: Option<Box<Call<()>>>,
    /// Returns unused space to the file system, and the number of its bytes.
    pub(super) compact: Option<Box<Call<u64>>>,
}

/// Deserializes a table to the settings of a backend and returns all settings, or the table if TOML cannot represent them,
/// such as an integer above `i64::MAX`.
pub(super) fn complete<S: DeserializeOwned + Serialize>(table: Table) -> Result<Table, TableError> {
    let settings = S::deserialize(table.clone())?;
    Ok(Table::try_from(settings).unwrap_or(table))
}

pub(super) fn erase<S, T, F, Fut>(call: F) -> Box<Call<T>>
where
    S: DeserializeOwned,
    T: 'static,
    F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, PluginError>> + Send + 'static,
{
    Box::new(move |table, place, role| Ok(call(S::deserialize(table)?, place, role).boxed()))
}

/// The arguments for the creation of a transport.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct TransportParts<'a> {
    /// The section `[transport.limits]`.
    pub limits: &'a TransportLimits,
    /// The key of the node, which identifies it to remotes.
    pub key: &'a KeyPair,
}

/// An invalid setting in `[transport.limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidLimit {
    /// The key in `[transport.limits]`.
    pub key: String,
    /// The problem with its value.
    pub problem: String,
}

impl From<InvalidSetting> for InvalidLimit {
    fn from(error: InvalidSetting) -> Self {
        Self { key: error.key.to_owned(), problem: error.problem }
    }
}

/// The security of a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Neither encrypted nor authenticated. Beyond loopback it requires `transport.allow_plaintext`.
    Plaintext,
    /// Encrypted and authenticated.
    Authenticated,
}

pub(super) struct Scheme {
    pub(super) security: Security,
    /// Shared by all transports that are created together.
    pub(super) create: Arc<CreateTransports>,
}
