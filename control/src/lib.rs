//! Commands for a running peer or tracker.
//!
//! A [`Command`] is executed by an [`Execute`], which sends [`Event`]s and returns when the command succeeded or failed.
//! The control socket and the HTTP API are two ways to the same commands.

mod catalogue;
mod command;
mod download;
mod event;
mod execute;
mod failure;
mod node;
mod schema;

pub use catalogue::{
    CatalogueLine, CataloguePage, FileDetail, MAX_VERSIONS, OnlinePeer, PeerPage, ProviderLine,
};
pub use command::{Command, Output};
pub use download::{Download, DownloadDetail, DownloadList, DownloadOrigin, DownloadSource, PieceCells};
pub use event::{
    Event, Exported, InvitationLine, LibraryLine, MemberLine, NewInvitation, PinLine, Published, Removed,
    Replica, Reserved, Revoked, Verified,
};
pub use execute::{CONTENT_BYTES, Events, Execute, Input, next_part, no_input, run_locally};
pub use failure::{Failure, ResultContext, Status};
pub use node::{
    Limits, LogLine, LogTail, NodeStatus, Settings, StorageLatency, StoreUsage, TrackerLine,
    TrackerNodeStatus, WithdrawnLine,
};
