//! The admission of peers to an invite-only swarm.

use std::sync::Arc;

use enjambre_core::PeerId;
use enjambre_core::runtime::clock::SystemClock;
use enjambre_swarm::catalogue::Catalogue;
use enjambre_swarm::tracker::admission::Admission;

use crate::config::load::Loaded;
use crate::failure::{Failure, Status};

/// Opens the admission of an invite-only swarm. Returns `None` if the swarm is open.
pub(super) async fn open(
    loaded: &Loaded,
    catalogue: &Arc<Catalogue>,
    tracker: PeerId,
) -> Result<Option<Arc<Admission>>, Failure> {
    let unreadable =
        |error| Failure::from_error(Status::Failed, &error).context("cannot read the authority of the swarm");
    if !loaded.is_invite_only() {
        // A single tracker in open mode would open the whole swarm.
        if catalogue.is_invite_only().await.map_err(unreadable)? {
            let problem =
                "the swarm of this database is invite-only; set it to \"invite\", or use another database";
            return Err(loaded.invalid("swarm.admission", problem).into());
        }
        return Ok(None);
    }
    let opened = Admission::open(Arc::clone(catalogue), tracker, Arc::new(SystemClock)).await;
    opened.map(|admission| Some(Arc::new(admission))).map_err(unreadable)
}
