//! Connection to a provider, and the proof of a file's size and hashes.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::event::Connected;
use crate::download::context::DownloadContext;
use crate::download::provider::{self, ConnectedProvider, ProviderError};
use crate::download::schedule::PieceRequest;
use enjambre_core::runtime;
use enjambre_core::{Deadline, FileId, Provider};

/// Maximum length of a bitmap of pieces in bytes.
const MAX_BITMAP: u64 = 128 * 1024;

/// Connects to a provider. With `prove` also fetches the manifest and the last piece, which proves the size.
pub(super) async fn connect(
    context: &DownloadContext,
    provider: &Provider,
    id: FileId,
    accepted_sizes: RangeInclusive<u64>,
    prove: bool,
) -> Result<Box<Connected>, ProviderError> {
    let deadline = Deadline::Silence(context.settings.silence_timeout);
    let connecting = provider::connect(&context.dialer, provider, id, deadline);
    let provider = context.limit_time(MAX_BITMAP, connecting).await?;
    let ConnectedProvider { connection, layout, have, .. } = &provider;
    let layout = *layout;
    if accepted_sizes.start() == accepted_sizes.end() && layout.size() != *accepted_sizes.end() {
        return Err(ProviderError::InvalidData("the file has another size"));
    }
    let mut proof = None;
    if prove {
        let manifest = provider::manifest(&**connection, id, layout, deadline);
        let manifest = context.limit_time(u64::from(layout.count()) * 32, manifest).await?;
        match layout.last() {
            None => proof = Some((manifest, None)),
            // Only the last piece proves the size.
            Some(last) if have.contains(last) => {
                let units = DownloadContext::piece_units(layout);
                let permit = Arc::clone(&context.proof_budget).acquire_many_owned(units).await;
                let permit = permit.map_err(|_| ProviderError::Refused("downloads are closed".to_owned()))?;
                context.limit.take(layout.len(last)).await;
                let request = PieceRequest { piece: last, super_seed: false };
                let reply = provider::piece(&**connection, connection.next_id(), id, request, deadline);
                let content = context
                    .limit_time(layout.len(last) as u64, reply)
                    .await
                    .inspect_err(|_| context.limit.refund(layout.len(last)))?;
                let (manifest, content, valid) = runtime::spawn_blocking(move || {
                    let valid = manifest.piece_is(last, &content);
                    (manifest, content, valid)
                })
                .await
                .map_err(|_| ProviderError::Refused("hashing was interrupted".to_owned()))?;
                if !valid {
                    return Err(ProviderError::InvalidData("last piece does not match the size"));
                }
                proof = Some((manifest, Some((content, permit))));
            }
            Some(_) => {}
        }
    }
    Ok(Box::new(Connected { provider, proof }))
}
