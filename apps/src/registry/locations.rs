//! The places of the databases of a node.

use std::path::Path;

use enjambre_core::{Place, Scratch, Tenancy};

use crate::config::sections::NodeKind;

/// The place of the main databases of a node.
pub(crate) fn node_place(kind: NodeKind, data_dir: &Path) -> Place {
    Place::new(data_dir, tenancy(kind))
}

/// The place of the databases for the replicas of a tracker.
pub(crate) fn replica_place(data_dir: &Path) -> Place {
    Place::new(data_dir.join("store"), Tenancy::PerFolder)
}

/// A temporary place with the tenancy of the main databases.
pub(crate) fn scratch_place(kind: NodeKind, scratch: Scratch) -> Place {
    Place::temporary(scratch, tenancy(kind))
}

const fn tenancy(kind: NodeKind) -> Tenancy {
    match kind {
        NodeKind::Tracker => Tenancy::Shared,
        NodeKind::Peer => Tenancy::Single,
    }
}
