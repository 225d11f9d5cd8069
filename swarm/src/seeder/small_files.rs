//! Replies with several whole small files.

use std::sync::Arc;

use bytes::Bytes;

use crate::library::library::Library;
use crate::rate_limit::bandwidth::BandwidthLimit;
use enjambre_core::protocol::error::{ErrorCode, ErrorReply};
use enjambre_core::protocol::message::{MAX_FILES, Reply};
use enjambre_core::{FileId, ReplySink};

/// Maximum bytes of content in a reply.
const MAX_REPLY_BYTES: u64 = 1024 * 1024;

/// Fails if a request contains too many ids.
pub(super) fn check_count(ids: &[FileId]) -> Result<(), ErrorReply> {
    if ids.len() > MAX_FILES {
        let message = format!("request contains {} files; the limit is {MAX_FILES}", ids.len());
        return Err(ErrorReply::new(ErrorCode::TooLarge, message));
    }
    Ok(())
}

/// Reads the files, from the first one up to the size limit of a reply.
pub(super) async fn read(
    library: &Arc<Library>,
    upload: &BandwidthLimit,
    ids: Vec<FileId>,
    sink: &mut dyn ReplySink,
) -> Result<(Reply, Bytes), ErrorReply> {
    let sizes = library.small_sizes(&ids);
    let mut bytes = 0;
    let fit = sizes.iter().take_while(|size| {
        bytes += size.unwrap_or(0);
        bytes <= MAX_REPLY_BYTES
    });
    let mut sizes = sizes[..fit.count()].to_vec();
    let bytes = sizes.iter().flatten().sum::<u64>() as usize;
    // A closed connection does not use the upload limit, however many requests are pending.
    sink.reserve(0).await?;
    upload.take(bytes).await;
    sink.reserve(bytes).await?;
    // Files that were added meanwhile exceed the reserved bytes.
    let known: Vec<FileId> =
        ids.iter().zip(&sizes).filter(|(_, size)| size.is_some()).map(|(id, _)| *id).collect();
    let read = library.read_small(&known).await?;
    for (size, now) in sizes.iter_mut().filter(|size| size.is_some()).zip(read.sizes) {
        *size = now;
    }
    Ok((Reply::Files { sizes }, read.content))
}
