//! Exporting copies of complete files and collections.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::LibraryEvent;
use super::error::{LibraryError, Result};
use super::file::LibraryFile;
use super::file_state::FileStore;
use super::layout::{ContentPlace, LinkState};
use super::library::Library;
use super::output::{Destination, Found, OutputDir, Target};
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
        let kind = self.inner.state.lock().slots.get(id).map(|slot| slot.record.kind);
        if kind != Some(FileKind::Collection) {
            return Err(LibraryError::NotACollection(*id));
        }
        read_collection(&file).await
    }

    /// Returns the collections that contain the file.
    pub fn collections_of(&self, id: &FileId) -> Vec<FileId> {
        self.inner.state.lock().collections_of(id).collect()
    }

    /// Whether all members of a collection are complete. `true` for a file that is no collection.
    pub async fn has_all_members(&self, id: &FileId) -> bool {
        if self.entry(id).is_none_or(|entry| entry.kind != FileKind::Collection) {
            return true;
        }
        let is_complete = |member: &Member| self.entry(&member.id).is_some_and(|entry| entry.is_complete());
        self.collection(id).await.is_ok_and(|collection| collection.members().iter().all(is_complete))
    }

    /// Reports that all members of a collection are stored. Members that are stored in a batch cause no events.
    pub fn notify_members_stored(&self, id: &FileId) {
        self.inner.notify(LibraryEvent::Completed(*id));
    }

    /// Determines from the content whether a complete file is a collection, and records and returns its kind. The kind in a
    /// catalogue is an unverified claim. A file that this peer published keeps its kind.
    pub async fn verify_kind(&self, id: &FileId) -> Result<FileKind> {
        let file = self.files.open_complete(id).await?;
        let (claimed, published) = match self.inner.state.lock().slots.get(id) {
            Some(slot) => (slot.record.kind, slot.record.published),
            None => return Err(LibraryError::not_found(id)),
        };
        if published {
            return Ok(claimed);
        }
        let is_encoded = match file.layout().pieces().next() {
            Some(first) if file.layout().size() <= MAX_ENCODED as u64 => {
                Collection::is_encoded(&file.read_piece(first).await?)
            }
            _ => false,
        };
        let kind = match claimed {
            FileKind::Collection if !is_encoded => FileKind::File,
            FileKind::File | FileKind::Executable if is_encoded && read_collection(&file).await.is_ok() => {
                FileKind::Collection
            }
            claimed => return Ok(claimed),
        };
        tracing::warn!(%id, is_directory = kind == FileKind::Collection, "kind in the catalogue contradicts the content");
        self.files.set_kind(id, kind).await?;
        Ok(kind)
    }

    /// Copies a complete file to a path, durably. Verifies every piece. An existing file with the same content is kept.
    pub async fn export_file(&self, id: &FileId, path: &Path, executable: bool, force: bool) -> Result<()> {
        let destination = Destination::Path { path: path.to_owned(), executable, force };
        self.export_to(id, destination, true).await.map(drop)
    }

    /// As [`Self::export_file`], for a file of any kind: a collection becomes a directory.
    pub async fn export(&self, id: &FileId, path: &Path, force: bool) -> Result<()> {
        let kind = self.inner.state.lock().slots.get(id).map(|slot| slot.record.kind);
        if kind != Some(FileKind::Collection) {
            return self.export_file(id, path, kind == Some(FileKind::Executable), force).await;
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
        dir.create_directories(&collection).await?;
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
        match self.export_to(id, destination, false).await? {
            Some(place) => self.inner.add_copy(id, place).await,
            None => Ok(()),
        }
    }

    /// Copies a file to a destination. Returns the place of a new file.
    async fn export_to(
        &self,
        id: &FileId,
        destination: Destination,
        sync: bool,
    ) -> Result<Option<ContentPlace>> {
        let file = self.files.open_complete(id).await?;
        let manifest = Arc::clone(file.manifest());
        let created = blocking(move || {
            let target = Target::resolve(&destination)?;
            let Found::Free(target, _) = Found::at(target, &manifest)? else { return Ok(None) };
            let (part, inode) = target.create_part()?;
            Ok(Some((target, Arc::new(part), inode)))
        })
        .await?;
        let Some((target, part, inode)) = created else { return Ok(None) };
        let layout = file.layout();
        let copy = async {
            let cloned = {
                let (part, file) = (Arc::clone(&part), Arc::clone(&file));
                let size = file.layout().size();
                blocking(move || Ok(file.source().is_some_and(|source| part.reflink(&source, size)))).await?
            };
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
                    // A clone is a snapshot, and the file may have changed between the clone and the read.
                    for (piece, content) in &pieces {
                        if !cloned || !part.contains(manifest.layout(), *piece, content) {
                            part.write(manifest.layout(), *piece, content)?;
                        }
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
            let finished = copied.and_then(|()| target.finish(&part, sync));
            if finished.is_err() {
                let _ = target.remove_part(inode);
            }
            Ok(Some(target.place(LinkState::Whole(finished?))))
        })
        .await
    }
}

impl LibraryFile {
    /// The plain file with the content, if there is one. Blocks.
    fn source(&self) -> Option<Arc<File>> {
        match &self.state.lock().store {
            FileStore::Database(_) => None,
            FileStore::File(file) => Some(Arc::clone(&file.file)),
            FileStore::Part(part) => Some(Arc::clone(&part.file.file)),
            FileStore::Linked(linked) => linked.opened().ok(),
        }
    }
}

async fn read_collection(file: &Arc<LibraryFile>) -> Result<Collection> {
    if file.layout().size() > MAX_ENCODED as u64 {
        return Err(CollectionError::TooLarge.into());
    }
    let mut encoded = Vec::with_capacity(file.layout().size() as usize);
    for piece in file.layout().pieces() {
        encoded.extend_from_slice(&file.read_piece(piece).await?);
    }
    blocking(move || Ok(Collection::decode(&encoded)?)).await
}
