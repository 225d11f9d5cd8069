//! Further copies of what is here, and the check of every piece.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::create::whole_file;
use super::entry::{LibraryEvent, VerifyReport};
use super::error::LibraryError;
use super::file::LibraryFile;
use super::layout::{self, LinkState, Place};
use super::linked::open_regular;
use super::output::{Destination, OutputDir, Target};
use super::publications::held;
use super::shared::Shared;
use super::small::{MAX_SMALL, SmallOutput, ToCopy};
use crate::model::collection::{Collection, Member};
use crate::model::id::FileId;
use crate::model::layout::PieceIndex;
use crate::model::record::FileKind;
use crate::storage::value::Durability;

/// How many bytes of pieces are read before they are written on.
const COPY_BYTES: usize = 4 << 20;

impl Shared {
    pub(super) async fn open_file(
        self: &Arc<Self>,
        id: &FileId,
    ) -> Result<Option<Arc<LibraryFile>>, LibraryError> {
        let _guard = self.lock(id).await;
        self.open_locked(id).await
    }

    async fn open_whole(self: &Arc<Self>, id: &FileId) -> Result<Arc<LibraryFile>, LibraryError> {
        let withdrawn = self.state.lock().slots.get(id).is_some_and(|slot| slot.record.withdrawn);
        let Some(file) = self.open_file(id).await? else {
            let path = self.state.lock().slots.get(id).and_then(|slot| slot.record.place.path());
            return match path {
                Some(path) if withdrawn => Err(LibraryError::Changed { id: *id, path }),
                _ => Err(LibraryError::not_found(id)),
            };
        };
        if !file.is_complete() {
            let (have, pieces) = (file.have_count(), file.layout().count());
            return Err(LibraryError::Incomplete { id: *id, have, pieces });
        }
        Ok(file)
    }

    pub(super) async fn collection(self: &Arc<Self>, id: &FileId) -> Result<Collection, LibraryError> {
        let file = self.open_whole(id).await?;
        if file.kind() != FileKind::Collection {
            return Err(LibraryError::NotACollection { id: *id });
        }
        if file.layout().size() > crate::model::collection::MAX_ENCODED as u64 {
            return Err(crate::model::collection::CollectionError::TooLarge.into());
        }
        let mut encoded = Vec::with_capacity(file.layout().size() as usize);
        for piece in file.layout().pieces() {
            encoded.extend_from_slice(&file.read_piece(piece).await?);
        }
        layout::blocking(move || Ok(Collection::decode(&encoded)?)).await
    }

    pub(super) async fn export(
        self: &Arc<Self>,
        id: &FileId,
        path: &Path,
        force: bool,
    ) -> Result<(), LibraryError> {
        let kind = self.state.lock().slots.get(id).map(|slot| slot.record.kind);
        if kind != Some(FileKind::Collection) {
            let path = path.to_owned();
            return self.export_to(id, Destination::Path { path, force }, true).await;
        }
        let collection = self.collection(id).await?;
        let dir = OutputDir::create(path).await?;
        dir.check(&collection)?;
        let mut small: BTreeMap<FileId, ToCopy> = BTreeMap::new();
        for member in collection.members().iter().filter(|member| member.size <= MAX_SMALL) {
            let copy = small.entry(member.id).or_insert_with(|| (member.id, member.size, Vec::new()));
            copy.2.push((member.path.clone(), member.executable));
        }
        let output = SmallOutput { dir: Arc::clone(&dir), force };
        let left: HashSet<FileId> =
            self.export_small(small.into_values().collect(), &output).await?.into_iter().collect();
        let one_by_one = |member: &&Member| member.size > MAX_SMALL || left.contains(&member.id);
        for member in collection.members().iter().filter(one_by_one) {
            let destination = Destination::Member {
                dir: Arc::clone(&dir),
                path: member.path.clone(),
                executable: member.executable,
                force,
            };
            self.export_to(&member.id, destination, false).await?;
        }
        dir.sync().await
    }

    pub(super) async fn export_to(
        self: &Arc<Self>,
        id: &FileId,
        destination: Destination,
        sync: bool,
    ) -> Result<(), LibraryError> {
        let file = self.open_whole(id).await?;
        let manifest = Arc::clone(file.manifest());
        let begun = layout::blocking(move || {
            let Some(target) = Target::resolve(destination)? else { return Ok(None) };
            if let Some((there, metadata)) = target.open_existing()? {
                if whole_file(&manifest, &there, &metadata).is_some() {
                    return Ok(None);
                }
                if !target.force {
                    return Err(LibraryError::Exists { path: target.path() });
                }
            }
            let (part, inode) = target.create_part()?;
            Ok(Some((target, Arc::new(part), inode)))
        })
        .await?;
        let Some((target, part, inode)) = begun else { return Ok(()) };
        let layout = file.layout();
        let copy = async {
            let pieces: Vec<PieceIndex> = layout.pieces().collect();
            for some in pieces.chunks((COPY_BYTES / layout.piece_size() as usize).max(1)) {
                let read = some.iter().map(|piece| file.read_piece(*piece));
                let content: Vec<Bytes> = futures::future::try_join_all(read).await?;
                let (part, manifest) = (Arc::clone(&part), Arc::clone(file.manifest()));
                let pieces: Vec<(PieceIndex, Bytes)> = some.iter().copied().zip(content).collect();
                let bad = layout::blocking(move || {
                    let bad = pieces.iter().find(|(piece, content)| !manifest.piece_is(*piece, content));
                    match bad {
                        Some((piece, _)) => Ok(Some(*piece)),
                        None => {
                            for (piece, content) in &pieces {
                                part.write(manifest.layout(), *piece, content)?;
                            }
                            Ok(None)
                        }
                    }
                })
                .await?;
                if let Some(piece) = bad {
                    file.drop_pieces(&[piece]).await?;
                    return Err(LibraryError::Damaged { id: file.id(), piece: piece.get() });
                }
            }
            Ok(())
        };
        let copied = copy.await;
        layout::blocking(move || {
            if copied.is_err() {
                // What is there of it is of no use to anybody.
                let _ = target.remove_part(inode);
                return copied;
            }
            if sync {
                part.file().sync_all().map_err(|error| LibraryError::io("sync", part.path(), error))?;
            }
            target.finish(&part).map(|_| ())
        })
        .await
    }

    pub(super) async fn verify(self: &Arc<Self>, id: &FileId) -> Result<VerifyReport, LibraryError> {
        let Some(slot) = self.state.lock().slots.get(id).map(|slot| slot.record.clone()) else {
            return Err(LibraryError::not_found(id));
        };
        if slot.withdrawn && slot.complete {
            self.verify_withdrawn(id).await?;
        }
        let Some(file) = self.open_file(id).await? else {
            let path = slot.place.path().unwrap_or_default();
            return Err(LibraryError::Changed { id: *id, path });
        };
        let layout = file.layout();
        let here = held(&file.have(), layout);
        let missing = layout.count() - here.len() as u32;
        let mut bad = Vec::new();
        for piece in &here {
            match file.check_piece(*piece).await {
                Ok(true) => {}
                Ok(false) => bad.push(*piece),
                Err(error @ LibraryError::Changed { .. }) => {
                    file.withdraw().await?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        if !bad.is_empty() {
            if matches!(slot.place, Place::Linked { state: LinkState::Whole(_), .. }) {
                file.withdraw().await?;
                return Err(LibraryError::Changed { id: *id, path: slot.place.path().unwrap_or_default() });
            }
            file.drop_pieces(&bad).await?;
        }
        let good = (here.len() - bad.len()) as u32;
        Ok(VerifyReport { id: *id, good, bad: bad.iter().map(|piece| piece.get()).collect(), missing })
    }

    /// Offers a withdrawn file again if the user's file has the right content.
    async fn verify_withdrawn(self: &Arc<Self>, id: &FileId) -> Result<(), LibraryError> {
        let Some(record) = self.state.lock().slots.get(id).map(|slot| slot.record.clone()) else {
            return Err(LibraryError::not_found(id));
        };
        let (Some(path), Some((root, rel))) = (record.place.path(), record.place.root_and_rel()) else {
            return Ok(());
        };
        let manifest = self.load_manifest(id, record.layout()?).await?;
        let looked_at = path.clone();
        let mark = layout::blocking(move || match open_regular(&looked_at) {
            Ok((file, metadata)) => Ok(whole_file(&manifest, &file, &metadata)),
            Err(_) => Ok(None),
        })
        .await?;
        let Some(mark) = mark else { return Err(LibraryError::Changed { id: *id, path }) };
        let place = Place::linked(root, rel, LinkState::Whole(mark));
        let _guard = self.lock(id).await;
        if let Some(slot) = self.state.lock().slots.get_mut(id) {
            if slot.record.place != record.place {
                // Begun anew meanwhile.
                return Ok(());
            }
            slot.record.place = place;
            slot.record.withdrawn = false;
            slot.stored = false;
            slot.have = record.layout()?.count();
        }
        self.store_record(id, Durability::Durable).await?;
        self.tell(LibraryEvent::Added(*id));
        self.tell(LibraryEvent::Completed(*id));
        Ok(())
    }
}
