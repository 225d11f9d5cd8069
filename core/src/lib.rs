//! Plug-in traits and shared values of Enjambre, a self-hosted peer-to-peer file distribution service.
//!
//! A storage plug-in implements [`Engine`] for an embedded database, which [`Embedded`] adapts to [`Storage`], or
//! [`Remote`] for a database server, which [`Queued`] adapts. A transport
//! plug-in implements [`Transport`]. The crate `enjambre-testkit` contains conformance tests for both. This crate also
//! contains ids and records ([`model`]), the wire protocol ([`protocol`]) and sources of nondeterminism ([`runtime`]). It depends
//! on no database and no socket library.
//!
//! # Stability
//!
//! The versions are 0.x. The traits and values at the root of this crate are the API for plug-ins: they change only with a
//! minor version (0.x to 0.y), and the change is announced in the change log. All other items, including the public items of
//! the modules, may change in any release. Errors and settings marked `#[non_exhaustive]` may gain variants and fields in any
//! release.

#[cfg(test)]
mod fuzz;
pub mod metrics;
pub mod model;
pub mod protocol;
pub mod runtime;
pub mod storage;
pub mod transport;

pub use model::bitmap::Bitmap;
pub use model::collection::{Collection, CollectionError, Member, MemberPath};
pub use model::endpoint::Endpoint;
pub use model::gap::Gap;
pub use model::id::{FileId, PeerId};
pub use model::identity::KeyPair;
pub use model::layout::{PieceIndex, PieceLayout};
pub use model::manifest::Manifest;
pub use model::name::Name;
pub use model::record::{FileKind, FileRecord, Offer, Provider, Publication};
pub use model::session::{CatalogueId, SessionId};
pub use model::time::UnixMillis;
pub use storage::Storage;
pub use storage::embedded::{Embedded, EmbeddedSettings};
pub use storage::engine::{ApplyError, Engine, ReadError, Reader};
pub use storage::error::StorageError;
pub use storage::location::{Place, Scratch, Tenancy};
pub use storage::memory::Memory;
pub use storage::pages::StorageExt;
pub use storage::queued::{Queued, QueuedSettings, Remote, TransactError, Transacted, Transaction};
pub use storage::value::{Batch, Condition, Durability, Key, KeyRange, Limits, Role, Space, Write};
pub use transport::calls::Activity;
pub use transport::dialer::Dialer;
pub use transport::envelope::{EncodedRequest, RequestId};
pub use transport::error::TransportError;
pub use transport::{
    Connection, ConnectionHandle, ConnectionId, Deadline, Incoming, Listener, Message, MessageLimits,
    PeerInfo, ReplySink, Transport,
};
