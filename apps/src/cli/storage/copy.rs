//! `enjambre storage copy`: everything of a tracker or peer goes from one configured storage to another.
//!
//! What is copied is what the databases mean, so the backends may be any two. The target has a mark as long as the copy
//! is under way, and nothing else opens it. A copy that was cut off goes on when it is started again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use enjambre_core::library::carry::{self, Carry, Pieces};
use enjambre_core::library::content::{self, ContentStore};
use enjambre_core::library::error::LibraryError;
use enjambre_core::library::stamp;
use enjambre_core::storage::copy::{self, Copy, Count, Cursor, Mark};
use enjambre_core::storage::error::StorageError;
use enjambre_core::storage::value::{Key, Space};
use enjambre_core::storage::{Role, Storage};
use enjambre_core::{catalogue, library};
use serde_bytes::ByteBuf;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::databases::{self, Database, Databases, Meaning};
use crate::cli::output::{Stdout, note, size};
use crate::cli::progress::Bar;
use crate::config::load::{Loaded, Sources};
use crate::data_dir::DataDir;
use crate::failure::{Failure, Status};
use crate::node_key;
use crate::registry::Registry;

/// After how many bytes of content it is noted how far the copy is.
const CHECKPOINT: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The configuration of the tracker or peer whose storage is copied
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The configuration of the same kind of node with the storage to copy to
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Read back and compare every record and piece instead of counting them
    #[arg(long)]
    verify: bool,
    /// Empty the target first, whatever it holds
    #[arg(long)]
    force: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    registry: &Registry,
    sources: &Sources,
    arguments: &Arguments,
    stop: CancellationToken,
) -> Result<(), Failure> {
    if sources.file.is_some() || !sources.set.is_empty() {
        let text =
            "--config and --set do not go with `storage copy`; --from and --to name the configurations";
        return Err(Failure::usage(text));
    }
    let load = |file: &Path| -> Result<Loaded, Failure> {
        let sources = Sources { file: Some(file.to_owned()), set: Vec::new() };
        let loaded = sources.load(None, &registry.backends())?;
        registry.check(&loaded)?;
        Ok(loaded)
    };
    let (from, to) = (load(&arguments.from)?, load(&arguments.to)?);
    if from.kind != to.kind {
        return Err(Failure::usage(
            "one of the configurations has a section [tracker] and the other one has not",
        ));
    }
    let mut meter = Meter::new(arguments.json);
    let copied = stop.run_until_cancelled(copy_all(registry, &from, &to, arguments, &mut meter)).await;
    meter.bar.clear();
    let interrupted = match meter.resumable {
        true => "interrupted; start it again and it goes on",
        false => "interrupted",
    };
    let copied = copied.unwrap_or_else(|| Err(Failure::failed(interrupted)));
    if let (Err(failure), true) = (&copied, arguments.json) {
        meter.stdout.json(&json!({ "event": "error", "message": failure.message }));
    }
    copied?;
    meter.stdout.end()
}

/// Shows how far it is.
struct Meter {
    json: bool,
    bar: Bar,
    stdout: Stdout,
    /// What was there before the part that is under way.
    before: u64,
    total: u64,
    /// Whether the target has the mark by which the same command goes on.
    resumable: bool,
}

impl Meter {
    fn new(json: bool) -> Self {
        let bar = if json { Bar::hidden() } else { Bar::new() };
        Self { json, bar, stdout: Stdout::default(), before: 0, total: 0, resumable: false }
    }

    fn show(&mut self, what: &str, bytes: u64) {
        let done = (self.before + bytes).min(self.total);
        if self.json {
            let event = json!({ "event": "progress", "what": what, "done": done, "total": self.total });
            self.stdout.json(&event);
        } else {
            self.bar.show(what, done, self.total, None);
        }
    }

    fn end_part(&mut self, bytes: u64) {
        self.before += bytes;
    }

    fn line(&mut self, text: &str) {
        if !self.json {
            let Self { bar, stdout, .. } = self;
            bar.suspend(|| stdout.line(text));
        }
    }
}

async fn copy_all(
    registry: &Registry,
    from: &Loaded,
    to: &Loaded,
    arguments: &Arguments,
    meter: &mut Meter,
) -> Result<(), Failure> {
    let source_dir = databases::own(from).await?;
    let target_dir = match is_same_folder(source_dir.path(), &to.data_dir(to.kind)) {
        true => None,
        false => Some(databases::own_or_make(to).await?),
    };
    let target_path = target_dir.as_ref().map_or(source_dir.path(), DataDir::path);
    if target_dir.is_none() && from.config.storage == to.config.storage {
        return Err(same_database());
    }
    let key = load_key(source_dir.path()).await?.ok_or_else(|| nothing_in(from))?;
    let theirs = load_key(target_path).await?;
    if theirs.as_ref().is_some_and(|theirs| theirs.peer_id() != key.peer_id()) {
        return Err(Failure::failed(format!(
            "{} belongs to a node with another key; choose another data_dir, or delete the file `key` in it if that \
             node is not needed any more",
            target_path.display()
        )));
    }
    let source = Databases::open(registry, from, source_dir.path(), false).await?;
    check_formats(from, &source).await?;
    let target = Databases::open(registry, to, target_path, true).await?;
    let name = blake3::Hasher::new()
        .update(key.peer_id().as_bytes())
        .update(from.config.storage.backend.as_bytes())
        .finalize();
    let mut copying = Copying { source: &source, target: &target, mark: Mark::new(name.as_bytes()), meter };
    copying.begin(arguments.force).await?;
    copying.meter.resumable = true;
    // Only now is it sure that the folder is the target's.
    if theirs.is_none() {
        let (folder, key) = (target_path.to_owned(), key.clone());
        crate::blocking(move || node_key::write(&folder, &key)).await?;
    }
    let copied = copying.copy().await?;
    copying.compare(&copied, arguments.verify).await?;
    if let Some((_, to)) = copying.stores() {
        stamp::remove(&to).await.map_err(|error| target_failed("the copy cannot be finished", &error))?;
    }
    copying.meter.resumable = false;
    copy::finish(copying.main()?).await.map_err(|error| failed("the copy cannot be finished", &error))?;
    source.close().await?;
    target.close().await?;

    // Whether the target keeps what it is given shows when it is opened again.
    let again = Databases::open(registry, to, target_path, false).await?;
    let kept = check_formats(to, &again).await;
    again.close().await?;
    if kept.is_err() {
        let backend = &to.config.storage.backend;
        return Err(Failure::failed(format!(
            "the {backend} storage forgot everything when it was closed, so nothing is copied"
        )));
    }
    copied.tell(meter, arguments);
    if target_dir.is_some() && !meter.json {
        let folder = target_path.display();
        note(&format!("the key came along: {folder} is the same node now, so start only one of the two"));
    }
    Ok(())
}

fn is_same_folder(one: &Path, other: &Path) -> bool {
    other.canonicalize().is_ok_and(|other| other == one)
}

fn same_database() -> Failure {
    Failure::usage("both configurations have the same database")
}

fn nothing_in(loaded: &Loaded) -> Failure {
    let folder = loaded.data_dir(loaded.kind);
    let backend = &loaded.config.storage.backend;
    Failure::not_found(format!("there is nothing in the {backend} storage of {}", folder.display()))
}

fn failed(what: impl std::fmt::Display, error: &StorageError) -> Failure {
    Failure::from_error(Status::Failed, error).context(what)
}

/// Content that is not what the index claims has to be mended where it is.
fn content_failed(what: impl std::fmt::Display, error: &LibraryError) -> Failure {
    let failure = match error {
        LibraryError::Damaged { id, piece } | LibraryError::MissingPiece { id, piece } => {
            Failure::failed(format!(
                "piece {piece} of {id} is missing or damaged; run `enjambre verify` with that configuration, and then \
                 the copy again"
            ))
        }
        error => Failure::from_error(Status::Failed, error),
    };
    failure.context(what)
}

/// Content of the target is copied again instead.
fn target_failed(what: impl std::fmt::Display, error: &LibraryError) -> Failure {
    let failure = match error {
        LibraryError::Damaged { id, piece } | LibraryError::MissingPiece { id, piece } => {
            differs(&format!("piece {piece} of {id}"))
        }
        error => Failure::from_error(Status::Failed, error),
    };
    failure.context(what)
}

fn differs(what: &str) -> Failure {
    let text =
        "is not in the target as it is in the source; start the copy again, and do not use either meanwhile";
    Failure::failed(format!("{what} {text}"))
}

async fn load_key(folder: &Path) -> Result<Option<enjambre_core::model::identity::KeyPair>, Failure> {
    let folder = folder.to_owned();
    crate::blocking(move || node_key::load(&folder)).await
}

/// Refuses a node of which the first database is empty, and formats other than this program's.
async fn check_formats(loaded: &Loaded, databases: &Databases) -> Result<(), Failure> {
    for (number, database) in databases.all.iter().enumerate() {
        let reading = |error| failed(format!("the {} cannot be read", database.name), &error);
        let newest = match database.meaning {
            Meaning::Catalogue => catalogue::layout::FORMAT,
            Meaning::Index => library::FORMAT,
            Meaning::Content => continue,
        };
        match database.format().await.map_err(reading)? {
            None if number == 0 => return Err(nothing_in(loaded)),
            Some(found) if found > newest => {
                return Err(Failure::failed(format!(
                    "the {} has format version {found}, but this program reads up to {newest}; use a newer program",
                    database.name
                )));
            }
            // What an older format looks like is known only to whoever brings it forward.
            Some(found) if found < newest => {
                return Err(Failure::failed(format!(
                    "the {} has the older format version {found}; start that node once with this program, which brings \
                     it to {newest}, and then copy",
                    database.name
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A copy under way.
struct Copying<'a> {
    source: &'a Databases,
    target: &'a Databases,
    mark: Mark,
    meter: &'a mut Meter,
}

/// What was copied.
struct Copied {
    /// By the name of the database and the space.
    records: Vec<(&'static str, Space, Count)>,
    content: Pieces,
}

impl Copied {
    fn tell(&self, meter: &mut Meter, arguments: &Arguments) {
        let (mut entries, mut bytes) = (0, 0);
        let mut names: Vec<&'static str> = self.records.iter().map(|(name, ..)| *name).collect();
        names.dedup();
        for name in names {
            let of_it = self.records.iter().filter(|(of, ..)| *of == name);
            let (some, their_bytes) =
                of_it.fold((0, 0), |sum, (.., count)| (sum.0 + count.entries, sum.1 + count.bytes));
            meter.line(&format!("{name}: {some} entries, {}", size(their_bytes)));
            (entries, bytes) = (entries + some, bytes + their_bytes);
        }
        let Pieces { count, bytes: content } = self.content;
        if count > 0 {
            meter.line(&format!("content: {count} pieces, {}", size(content)));
        }
        let how = if arguments.verify { "read back and compared" } else { "counted" };
        meter.line(&format!("everything was copied and {how}; the source is as it was"));
        if meter.json {
            meter.stdout.json(&json!({
                "event": "done", "entries": entries, "entry_bytes": bytes, "pieces": count,
                "piece_bytes": content, "verified": arguments.verify,
            }));
        }
    }
}

impl<'a> Copying<'a> {
    fn main(&self) -> Result<&'a dyn Storage, Failure> {
        let first = self.target.all.first();
        first.map(|database| &*database.storage).ok_or_else(|| Failure::failed("there is no database"))
    }

    /// Each database of records with the one that it goes to.
    fn pairs(&self) -> Result<Vec<(&'a Database, &'a Database)>, Failure> {
        let records = self.source.all.iter().filter(|database| database.meaning != Meaning::Content);
        let pair = |source: &'a Database| match self.target.with(source.meaning) {
            Some(target) => Ok((source, target)),
            None => Err(Failure::usage(format!(
                "the source has an {}, but tracker.store.enabled is false in the target's configuration",
                source.name
            ))),
        };
        records.map(pair).collect()
    }

    /// Where content goes from and to; none where it can stay where it is.
    fn stores(&self) -> Option<(ContentStore, ContentStore)> {
        let (from, to) = (self.source.content()?, self.target.content()?);
        match (&from, &to) {
            (ContentStore::Files(one), ContentStore::Files(other)) if one == other => None,
            (ContentStore::Files(one), ContentStore::Files(other))
                if one.canonicalize().is_ok_and(|one| is_same_folder(&one, other)) =>
            {
                None
            }
            _ => Some((from, to)),
        }
    }

    /// Makes sure that the target is another database and is empty, or has the first part of this very copy.
    async fn begin(&mut self, force: bool) -> Result<(), Failure> {
        let pairs = self.pairs()?;
        for (source, target) in &pairs {
            let same = copy::is_same(&*target.storage, &*source.storage).await;
            if same.map_err(|error| {
                failed(format!("the {} of the target cannot be used", target.name), &error)
            })? {
                return Err(same_database());
            }
        }
        match copy::mark(self.main()?).await {
            // Whatever it says, the target is emptied.
            Ok(_) | Err(StorageError::Corrupt { .. }) if force => {}
            Ok(None) => {}
            Ok(Some(Mark { v, .. })) if v != copy::VERSION => {
                return Err(Failure::failed(format!(
                    "the target holds a part of a copy by another program, whose mark has version {v}, but this program \
                     reads version {}; finish it with that program, or begin anew with --force, which empties the \
                     target first",
                    copy::VERSION
                )));
            }
            Ok(Some(mark)) if mark.source == self.mark.source => {
                self.mark = mark;
                return Ok(());
            }
            Ok(Some(_)) => {
                let text = "the target holds a part of a copy from another source; finish that one, or begin anew \
                            with --force, which empties the target first";
                return Err(Failure::failed(text));
            }
            Err(error @ StorageError::Corrupt { .. }) => {
                let what = "the target cannot be read; begin anew with --force, which empties it first";
                return Err(failed(what, &error));
            }
            Err(error) => return Err(failed("the target cannot be read", &error)),
        }
        let is_empty = self.is_target_empty().await?;
        if !is_empty && !force {
            let text = "the target is not empty; choose another one, or use --force, which empties it first";
            return Err(Failure::failed(text));
        }
        // From here on nobody else uses it.
        let main = self.main()?;
        self.mark.save(main).await.map_err(|error| failed("the target cannot be written", &error))?;
        if !is_empty {
            self.meter.line("emptying the target");
            let emptying = |error| failed("the target cannot be emptied", &error);
            for database in &self.target.all {
                copy::empty(&*database.storage, &spaces_of(database.place.role)).await.map_err(emptying)?;
            }
            if let Some((_, to)) = self.stores() {
                let emptying = |error| target_failed("the target cannot be emptied", &error);
                carry::empty(&to).await.map_err(emptying)?;
            }
        }
        Ok(())
    }

    async fn is_target_empty(&self) -> Result<bool, Failure> {
        for database in &self.target.all {
            let empty = copy::is_empty(&*database.storage, &spaces_of(database.place.role)).await;
            if !empty.map_err(|error| failed("the target cannot be read", &error))? {
                return Ok(false);
            }
        }
        match self.stores() {
            None => Ok(true),
            Some((_, to)) => {
                carry::is_empty(&to).await.map_err(|error| target_failed("the target cannot be read", &error))
            }
        }
    }

    async fn copy(&mut self) -> Result<Copied, Failure> {
        let mut total = 0;
        for (source, _) in self.pairs()? {
            for space in source.spaces() {
                let counted = copy::count(&*source.storage, *space).await;
                total += counted.map_err(|error| failed("the source cannot be read", &error))?.bytes;
            }
        }
        if let (Some((from, _)), Some(index)) = (self.stores(), self.source.with(Meaning::Index)) {
            let claimed = carry::claimed(&index.storage, &from).await;
            total += claimed.map_err(|error| content_failed("the source cannot be read", &error))?.bytes;
        }
        self.meter.total = total;
        let content = self.copy_content().await?;
        let records = self.copy_records().await?;
        Ok(Copied { records, content })
    }

    /// Content goes first, so that nothing is claimed that is not there.
    async fn copy_content(&mut self) -> Result<Pieces, Failure> {
        let (Some((from, to)), Some(index)) = (self.stores(), self.source.with(Meaning::Index)) else {
            return Ok(Pieces::default());
        };
        let index = index.storage.clone();
        let failing = |error: LibraryError| content_failed("the content cannot be copied", &error);
        let marking = |error: StorageError| failed("the target cannot be written", &error);
        let state =
            carry::state_of(&*index).await.map_err(|error| failed("the source cannot be read", &error))?;
        let target = |error: LibraryError| target_failed("the content cannot be copied", &error);
        let found = stamp::read(&to).await.map_err(target)?;
        let goes_on = |cursor: &Cursor| cursor.of[..] == state && Some(&cursor.stamp[..]) == found.as_deref();
        let cursor = self.mark.content.take().filter(goes_on);
        let stamp = match &cursor {
            Some(cursor) => cursor.stamp.clone(),
            None => {
                // Of what an earlier run left behind nothing is known, and what is removed is not to be counted on.
                self.mark.save(self.main()?).await.map_err(marking)?;
                carry::empty(&to).await.map_err(target)?;
                ByteBuf::from(stamp::renew(&to).await.map_err(target)?)
            }
        };
        let mut done = cursor
            .as_ref()
            .map_or_else(Pieces::default, |cursor| Pieces { count: cursor.pieces, bytes: cursor.bytes });
        let after = cursor.as_ref().map(|cursor| &cursor.after[..]);
        let mut carry = Carry::new(index, from, to, after).await.map_err(failing)?;
        self.meter.show("content", done.bytes);
        let mut unsynced = 0;
        loop {
            let step = carry.step().await.map_err(failing)?;
            if let Some(step) = step {
                done.count += step.count;
                done.bytes += step.bytes;
                unsynced += step.bytes;
                self.meter.show("content", done.bytes);
            }
            if unsynced >= CHECKPOINT || step.is_none() {
                unsynced = 0;
                let Some(after) = carry.sync().await.map_err(failing)? else { break };
                let Pieces { count: pieces, bytes } = done;
                let (of, stamp, after) = (ByteBuf::from(state), stamp.clone(), ByteBuf::from(after));
                self.mark.content = Some(Cursor { of, stamp, after, pieces, bytes });
                self.mark.save(self.main()?).await.map_err(marking)?;
            }
            if step.is_none() {
                break;
            }
        }
        self.meter.end_part(done.bytes);
        Ok(done)
    }

    async fn copy_records(&mut self) -> Result<Vec<(&'static str, Space, Count)>, Failure> {
        let store = self.target.content();
        let change = change_to(store.as_ref());
        let mut copied = Vec::new();
        for (source, target) in self.pairs()? {
            let failing = |error| failed(format!("the {} cannot be copied", source.name), &error);
            for space in source.spaces() {
                let copy =
                    Copy { from: &*source.storage, to: &*target.storage, space: *space, change: &change };
                let meter = &mut *self.meter;
                let count = copy.run(|count| meter.show(source.name, count.bytes)).await.map_err(failing)?;
                meter.end_part(count.bytes);
                copied.push((source.name, *space, count));
            }
            target.storage.sync().await.map_err(failing)?;
        }
        Ok(copied)
    }

    /// Whether the target has what was copied: by number and size, or everything.
    async fn compare(&mut self, copied: &Copied, verify: bool) -> Result<(), Failure> {
        let store = self.target.content();
        let change = change_to(store.as_ref());
        for (source, target) in self.pairs()? {
            let failing = |error| failed(format!("the {} cannot be compared", source.name), &error);
            for space in source.spaces() {
                let from = &*source.storage;
                let copy = Copy { from, to: &*target.storage, space: *space, change: &change };
                let wrong = if verify {
                    copy.first_difference().await.map_err(failing)?.map(|key| format!("the entry {key:?}"))
                } else {
                    let there = copy::count(&*target.storage, *space).await.map_err(failing)?;
                    let wanted =
                        copied.records.iter().find(|(name, of, _)| *name == source.name && of == space);
                    let wrong = wanted.is_none_or(|(.., count)| *count != there);
                    wrong.then(|| "every entry".to_owned())
                };
                if let Some(wrong) = wrong {
                    return Err(differs(&format!("{wrong} of {}", space.name())));
                }
            }
        }
        let Some(index) = self.target.with(Meaning::Index).map(|index| index.storage.clone()) else {
            return Ok(());
        };
        let Some((_, to)) = self.stores() else {
            return if verify { self.compare_what_stays(index).await } else { Ok(()) };
        };
        let same = match verify {
            true => self.prove(&index, to, copied.content.bytes).await.map(|found| found == copied.content),
            false => carry::is_held(&index, &to, copied.content).await,
        };
        let compared = match same {
            Ok(true) => return Ok(()),
            Ok(false) => differs("the content"),
            Err(error) => target_failed("the content of the target cannot be compared", &error),
        };
        // Started again it goes on with nothing of this content.
        self.mark.content = None;
        self.mark.save(self.main()?).await.map_err(|error| failed("the target cannot be written", &error))?;
        Err(compared)
    }

    /// Whether content that is not copied is what the target's index claims.
    async fn compare_what_stays(&mut self, index: Arc<dyn Storage>) -> Result<(), Failure> {
        let (Some(_), Some(store)) = (self.source.content(), self.target.content()) else { return Ok(()) };
        let failing =
            |error: LibraryError| content_failed("the content, which stays where it is, is wrong", &error);
        let claimed = carry::claimed(&index, &store).await.map_err(failing)?;
        self.prove(&index, store, claimed.bytes).await.map_err(failing)?;
        Ok(())
    }

    /// Reads all content of a store and proves it.
    async fn prove(
        &mut self,
        index: &Arc<dyn Storage>,
        store: ContentStore,
        total: u64,
    ) -> Result<Pieces, LibraryError> {
        let mut proof = Carry::proof(Arc::clone(index), store);
        let mut found = Pieces::default();
        (self.meter.before, self.meter.total) = (0, total);
        while let Some(step) = proof.step().await? {
            found.count += step.count;
            found.bytes += step.bytes;
            self.meter.show("comparing the content", found.bytes);
        }
        Ok(found)
    }
}

/// What becomes of records on their way to a node whose content is there.
fn change_to(
    store: Option<&ContentStore>,
) -> impl Fn(Space, &Key, bytes::Bytes) -> Result<bytes::Bytes, StorageError> + Send + Sync {
    move |space, key, value| match store {
        Some(store) => carry::placed(store, space, key, value),
        None => Ok(value),
    }
}

/// Everything that can be in a database of a role, whoever wrote it.
fn spaces_of(role: Role) -> Vec<Space> {
    match role {
        Role::Records => [catalogue::layout::SPACES, library::SPACES].concat(),
        Role::Content => content::SPACES.to_vec(),
    }
}
