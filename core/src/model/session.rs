//! Random ids that trackers generate: of sessions and of catalogues.

use serde::{Deserialize, Serialize};

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(#[serde(with = "super::bytes")] pub [u8; $len]);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({}..)", stringify!($name), hex::encode(&self.0[..4]))
            }
        }
    };
}

token! {
    /// The session of a peer with a catalogue, opened by the request `open_session`.
    SessionId, 16
}
token! {
    /// The id of a tracker database, shared by all trackers that use it.
    CatalogueId, 16
}
