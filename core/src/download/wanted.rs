//! What is to be downloaded and where to, how downloads behave, and what they share.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::source::{Fault, ProviderSource};
use super::window::WindowSettings;
use crate::library::library::Library;
use crate::library::output::Destination;
use crate::model::id::{FileId, PeerId};
use crate::model::layout::PieceLayout;
use crate::model::name::Name;
use crate::model::record::FileKind;
use crate::rate::RateLimit;
use crate::transport::dialer::Dialer;

/// How downloads behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownloadSettings {
    /// How long a download goes on without any provider before it gives up; what it has is kept.
    pub patience: Duration,
    /// How long a provider may be silent while it owes a reply.
    pub silence: Duration,
    /// Providers per download at once.
    pub max_providers: usize,
    /// Bytes between the request and the written piece, of all downloads together. It is also what a `kill -9` can
    /// cost at most: what is written survives it.
    pub budget: usize,
    /// How far the requests to one provider run ahead.
    pub window: WindowSettings,
}

impl Default for DownloadSettings {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(60),
            silence: Duration::from_secs(10),
            max_providers: 16,
            budget: 8 * 1024 * 1024,
            window: WindowSettings::default(),
        }
    }
}

/// How many times as long as a provider may be silent a question may take.
const SILENCES: u32 = 6;

/// What is to be downloaded, and where to.
#[derive(Clone)]
pub struct Wanted {
    /// The file.
    pub id: FileId,
    /// The name that it is kept under; none for a member of a collection.
    pub name: Option<Name>,
    /// What it is.
    pub kind: FileKind,
    /// The collection that it is wanted for.
    pub member_of: Option<FileId>,
    /// The size that its publisher claims, for the progress shown until it is proven.
    pub claimed_size: Option<u64>,
    /// The size, where it is part of something that was verified (the entry of a collection), or no other is
    /// wanted. Nothing is fetched from who claims another.
    pub proven_size: Option<u64>,
    /// Where it goes.
    pub destination: Destination,
    /// Whose providers have it: its own id, or that of the collection.
    pub announced_as: FileId,
    /// Who knows them.
    pub providers: Arc<dyn ProviderSource>,
}

/// What all transfers of a peer share.
pub(super) struct Parts {
    pub(super) library: Arc<Library>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) settings: DownloadSettings,
    pub(super) limit: Arc<RateLimit>,
    /// In units of 1 KiB.
    pub(super) budget: Arc<Semaphore>,
    pub(super) me: Option<PeerId>,
    /// When a download last had to wait for the library.
    pub(super) held: Mutex<Option<Instant>>,
}

impl Parts {
    /// The answer to a question, unless it takes far too long: what else comes over the connection does not make up for
    /// what does not.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let answered = timeout(self.settings.silence * SILENCES, answer).await;
        answered.unwrap_or_else(|_| Err(Fault::Refused("it left a question open for too long".to_owned())))
    }

    /// What a piece of this layout takes of the budget.
    pub(super) fn units(layout: PieceLayout) -> u32 {
        layout.piece_size() / 1024
    }
}
