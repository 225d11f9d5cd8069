//! Reads a file of the library while its missing pieces are downloaded.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;

use super::downloader::{Download, Downloader};
use super::error::DownloadError;
use super::request::DownloadRequest;
use super::wanted::WantedPart;
use crate::library::entry::LibraryEvent;
use crate::library::error::LibraryError;
use crate::library::file::LibraryFile;

/// The bytes behind the position of a reader that are requested before others.
const READ_AHEAD: u64 = 8 * 1024 * 1024;

/// Reads verified content of one file at any position. Missing pieces are downloaded, those at the position first.
///
/// Dropping the reader stops the download unless it is shared with another caller. Verified pieces are kept.
pub struct FileReader {
    downloader: Arc<Downloader>,
    request: DownloadRequest,
    file: Arc<LibraryFile>,
    running: Option<Running>,
}

struct Running {
    // Dropped before the download, which may end with it.
    part: WantedPart,
    download: Download,
}

impl Running {
    fn start(downloader: &Downloader, request: &DownloadRequest, offset: u64) -> Self {
        let download = downloader.get(request.clone());
        let part = download.want(offset..offset.saturating_add(READ_AHEAD));
        Self { part, download }
    }
}

impl FileReader {
    /// Opens a file at a position. If the library does not contain it, starts the download and waits until the size is
    /// proven.
    pub async fn open(
        downloader: &Arc<Downloader>,
        request: DownloadRequest,
        offset: u64,
    ) -> Result<Self, Arc<DownloadError>> {
        let library = downloader.library();
        let mut events = library.events();
        let mut running = None;
        loop {
            if let Some(file) = library.open_cached(&request.id).await? {
                return Ok(Self { downloader: Arc::clone(downloader), request, file, running });
            }
            let Running { download, .. } =
                running.get_or_insert_with(|| Running::start(downloader, &request, offset));
            let is_added = async {
                loop {
                    match events.recv().await {
                        Ok(LibraryEvent::Added(id)) if id == request.id => return,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_) | RecvError::Closed) => return,
                    }
                }
            };
            let result = tokio::select! {
                biased;
                result = download.wait() => Some(result),
                () = is_added => None,
            };
            if let Some(result) = result {
                result?;
                running = None;
            }
        }
    }

    /// The proven size in bytes.
    pub fn size(&self) -> u64 {
        self.file.layout().size()
    }

    /// Returns the content from `offset` to the end of its piece, as soon as the piece is stored. Empty at the end of the
    /// file.
    pub async fn read(&mut self, offset: u64) -> Result<Bytes, Arc<DownloadError>> {
        let layout = self.file.layout();
        let Some(piece) = layout.piece_at(offset) else { return Ok(Bytes::new()) };
        if let Some(running) = &self.running {
            running.part.set(offset..offset.saturating_add(READ_AHEAD));
        }
        loop {
            if self.file.is_retired() {
                // Removed, or at another place.
                let reopened = self.downloader.library().open_cached(&self.request.id).await?;
                self.file = reopened.ok_or_else(|| LibraryError::not_found(self.request.id))?;
            }
            if self.file.has(piece) {
                match self.file.read_piece(piece).await {
                    Ok(content) => return Ok(content.slice((offset - layout.offset(piece)) as usize..)),
                    // Dropped, and downloaded again below.
                    Err(LibraryError::Damaged { .. } | LibraryError::MissingPiece { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let is_new = self.running.is_none();
            let start = || Running::start(&self.downloader, &self.request, offset);
            let running = self.running.get_or_insert_with(start);
            let result = tokio::select! {
                biased;
                () = self.file.stored(piece) => continue,
                result = running.download.wait() => result,
            };
            self.running = None;
            // An earlier download may have failed while nobody was reading.
            if is_new {
                result?;
            }
        }
    }
}
