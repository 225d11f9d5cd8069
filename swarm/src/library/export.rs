//! Exporting copies of complete files and collections.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{LibraryError, Result};
use super::library::Library;
use super::output::{Destination, Found, OutputDir};
use super::small::{MAX_SMALL, SmallCopy, SmallOutput};
use super::task::blocking;
use enjambre_core::model::collection::MAX_ENCODED;
use enjambre_core::{Collection, CollectionError, FileId, FileKind, Member, MemberPath, PieceIndex};

/// The number of bytes of pieces that are read before they are written.
const COPY_BYTES: usize = 4 << 20;

impl Library {
    /// Reads a complete collection.
    pub async fn collection(&self, id: &FileId) -> Result<Collection> {
        let file = self.files.open_complete(id).await?;
        if file.kind() != FileKind::Collection {
            return Err(LibraryError::NotACollection(*id));
        }
        if file.layout().size() > MAX_ENCODED as u64 {
            return Err(CollectionError::TooLarge.into());
        }
        let mut encoded = Vec::with_capacity(file.layout().size() as usize);
        for piece in file.layout().pieces() {
            encoded.extend_from_slice(&file.read_piece(piece).await?);
        }
        blocking(move || Ok(Collection::decode(&encoded)?)).await
    }

    /// Copies a complete file, or the directory of a collection, to a path. Verifies every piece. An existing
    /// file with the same content is kept.
    pub async fn export(&self, id: &FileId, path: &Path, force: bool) -> Result<()> {
        let kind = self.inner.state.lock().slots.get(id).map(|slot| slot.record.kind);
        if kind != Some(FileKind::Collection) {
            let path = path.to_owned();
            return self.export_to(id, Destination::Path { path, force }, true).await;
        }
        let collection = self.collection(id).await?;
        let dir = OutputDir::create(path).await?;
        dir.check(&collection)?;
        let mut small: BTreeMap<FileId, SmallCopy> = BTreeMap::new();
        for member in collection.members().iter().filter(|member| member.size <= MAX_SMALL) {
            let new = || SmallCopy { id: member.id, size: member.size, paths: Vec::new() };
            let copy = small.entry(member.id).or_insert_with(new);
            copy.paths.push((member.path.clone(), member.executable));
        }
        let output = SmallOutput { dir: Arc::clone(&dir), force };
        let left = self.export_small(small.into_values().collect(), &output).await?;
        let left: HashSet<FileId> = left.into_iter().collect();
        let one_by_one = |member: &&Member| member.size > MAX_SMALL || left.contains(&member.id);
        for member in collection.members().iter().filter(one_by_one) {
            self.export_member(&member.id, &dir, &member.path, member.executable, force).await?;
        }
        dir.sync().await
    }

    /// Copies a complete file to an output directory, as [`Self::export`] does, but without a sync.
    pub async fn export_member(
        &self,
        id: &FileId,
        dir: &Arc<OutputDir>,
        path: &MemberPath,
        executable: bool,
        force: bool,
    ) -> Result<()> {
        let dir = Arc::clone(dir);
        let destination = Destination::Member { dir, path: path.clone(), executable, force };
        self.export_to(id, destination, false).await
    }

    async fn export_to(&self, id: &FileId, destination: Destination, sync: bool) -> Result<()> {
        let file = self.files.open_complete(id).await?;
        let manifest = Arc::clone(file.manifest());
        let created = blocking(move || {
            let Found::Free(target) = Found::at(destination, &manifest)? else { return Ok(None) };
            let (part, inode) = target.create_part()?;
            Ok(Some((target, Arc::new(part), inode)))
        })
        .await?;
        let Some((target, part, inode)) = created else { return Ok(()) };
        let layout = file.layout();
        let copy = async {
            let pieces: Vec<PieceIndex> = layout.pieces().collect();
            for some in pieces.chunks((COPY_BYTES / layout.piece_size() as usize).max(1)) {
                let read = some.iter().map(|piece| file.read_piece(*piece));
                let content: Vec<Bytes> = futures::future::try_join_all(read).await?;
                let (part, manifest) = (Arc::clone(&part), Arc::clone(file.manifest()));
                let pieces: Vec<(PieceIndex, Bytes)> = some.iter().copied().zip(content).collect();
                let invalid = blocking(move || {
                    let is_invalid =
                        |(piece, content): &&(PieceIndex, Bytes)| !manifest.piece_is(*piece, content);
                    if let Some((piece, _)) = pieces.iter().find(is_invalid) {
                        return Ok(Some(*piece));
                    }
                    for (piece, content) in &pieces {
                        part.write(manifest.layout(), *piece, content)?;
                    }
                    Ok(None)
                })
                .await?;
                if let Some(piece) = invalid {
                    file.drop_pieces(&[piece]).await?;
                    return Err(LibraryError::Damaged { id: file.id(), piece: piece.get() });
                }
            }
            Ok(())
        };
        let copied = copy.await;
        blocking(move || {
            if copied.is_err() {
                let _ = target.remove_part(inode);
                return copied;
            }
            if sync {
                part.file.sync_all().map_err(|error| LibraryError::io("sync", &part.path, error))?;
            }
            target.finish(&part).map(|_| ())
        })
        .await
    }
}
