//! The conformance kit: checks that a backend keeps the obligations of [`Storage`].
//!
//! A backend's test implements [`Builder`] and calls [`run_all`]; one case alone is [`case`] and [`run`]. A failure names
//! the obligation that is broken, says what was seen instead, and lists the operations that led there. The kit calls
//! nothing but [`Storage`], and sees a power cut nowhere: what [`crash`] adds is a process that is killed. The same
//! cases are run by `enjambre storage check`, against a configured backend.
//!
//! ```no_run
//! use std::sync::Arc;
//! use enjambre_core::storage::Storage;
//! use enjambre_core::storage::conformance::{Builder, run_all};
//! use enjambre_core::storage::error::StorageError;
//! use enjambre_core::storage::memory::Disk;
//!
//! struct Memory;
//!
//! impl Builder for Memory {
//!     type Place = Disk;
//!     fn place(&self) -> Disk {
//!         Disk::new()
//!     }
//!     async fn open(&self, place: &Disk) -> Result<Arc<dyn Storage>, StorageError> {
//!         Ok(Arc::new(place.open()))
//!     }
//! }
//!
//! # async fn test() {
//! run_all(&Memory).await;
//! # }
//! ```

mod bench;
mod case;
mod commits;
pub mod crash;
mod large;
mod lifetime;
pub mod load;
mod model;
mod records;
mod scans;
#[cfg(test)]
mod tests;
mod watchdog;

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::Storage;
use super::error::StorageError;
use bench::{Bench, Broken, Operations};
pub use case::{Case, Failure, Group, Outcome};
use watchdog::Watchdog;

/// Which obligations are checked, and how strictly. It grows whenever a backend that passed may fail.
pub const KIT_VERSION: u32 = 3;

/// How long a case may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the runtime may stand still in a case.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How long the storage of a case that failed may take to close.
const FAREWELL: Duration = Duration::from_secs(5);

/// Makes storages for the kit.
pub trait Builder: Sync {
    /// Where the data of one storage lies, for example a temporary folder. Dropping it removes the data.
    type Place: Send + Sync;

    /// A place without data.
    fn place(&self) -> Self::Place;

    /// Opens the storage at a place, where the data of an earlier opening may lie.
    fn open(
        &self,
        place: &Self::Place,
    ) -> impl Future<Output = Result<Arc<dyn Storage>, StorageError>> + Send;

    /// Hears of a call that blocks the threads of the runtime for a minute. Nothing can end such a call, so this ends the
    /// process; it runs on a thread of its own.
    fn blocked(failure: &Failure) -> ! {
        // Past the harness of a test, which would keep it.
        let _ =
            writeln!(std::io::stderr(), "{failure}\nthe process ends, because nothing else ends such a call");
        std::process::exit(101)
    }
}

macro_rules! cases {
    ($($group:ident { $($module:ident::$case:ident: $obligation:literal,)* })*) => {
        /// All cases but those of [`crash`].
        pub const CASES: &[Case] = &[$($(
            Case { name: stringify!($case), group: Group::$group, obligation: $obligation },
        )*)*];

        async fn body<B: Builder>(case: &Case, bench: &mut Bench<'_, B>) -> Result<(), Broken> {
            match case.name {
                $($(stringify!($case) => $module::$case(bench).await,)*)*
                name => Err(Broken(format!("{name} is no case of this level"))),
            }
        }
    };
}

cases! {
    Core {
        records::absent_keys_have_no_value:
            "What was never written, or was deleted, has no value and is in no scan.",
        records::values_come_in_the_order_asked_for:
            "A get answers every key it was asked for, in that order, also the same key twice.",
        records::spaces_are_apart:
            "The same key in two spaces is two entries, whatever the spaces are called.",
        scans::keys_are_ordered_by_unsigned_bytes:
            "A scan is ascending by the unsigned bytes of the keys; a key comes before those that go on after it.",
        scans::pages_are_cut_by_entries:
            "A page has at most as many entries as asked for, and all pages together hold every key once.",
        scans::ranges_hold_what_their_bounds_say:
            "A range holds exactly the keys between its bounds, whether they are included, excluded or open.",
        scans::inverted_ranges_are_empty:
            "A range whose end is not behind its start is empty, and no error.",
        commits::an_empty_batch_is_applied:
            "A batch without writes succeeds, and its conditions are checked as in any other.",
        commits::conditions_decide:
            "A batch is applied if all its conditions hold, and else refused with Conflict; an empty value is a value.",
        commits::a_refused_batch_changes_nothing_in_any_space:
            "Of a batch that is refused nothing is applied, of any other everything, in all of its spaces.",
        commits::conditions_see_the_state_before_the_batch:
            "The conditions of a batch do not see its own writes.",
        large::a_batch_of_thousands_of_writes_is_one_step:
            "A batch of thousands of writes is applied and seen whole or not at all, like a small one.",
        commits::the_last_write_to_a_key_counts:
            "Of several writes to one key in a batch the last one counts.",
        model::random_operations_give_what_the_reference_gives:
            "Whatever the order of operations, closes and drops, the answers are those of the storage in memory.",
    }
    Concurrency {
        commits::one_of_many_writers_wins:
            "Of many batches at once that require the same key to be absent exactly one is applied.",
        commits::no_update_is_lost:
            "Conditions are checked and writes applied as one step, so that no update is lost.",
        commits::a_conflict_fails_alone:
            "A batch that is refused fails alone, whatever it was committed together with.",
        commits::a_read_sees_what_was_acknowledged:
            "A get or scan that begins after a commit returned sees what it wrote.",
        commits::a_page_is_consistent:
            "A page shows every batch whole or not at all.",
        lifetime::a_dropped_commit_is_whole_or_nothing:
            "A commit whose future is dropped is applied whole or not at all, and the storage goes on.",
        lifetime::a_close_leaves_nobody_waiting:
            "At a close every call under way ends, or gives Closed, and what was acknowledged is kept.",
    }
    Reopen {
        lifetime::what_was_committed_is_there_after_a_reopen:
            "After a close and an open everything is there that was committed, Buffered as well, and nothing else.",
        lifetime::a_drop_without_close_loses_nothing:
            "A storage that is dropped without a close loses nothing that was acknowledged.",
        lifetime::a_close_lets_go_of_everything:
            "When a close has returned, the storage can be opened again at once, also after many reads.",
        lifetime::a_closed_storage_says_so:
            "After a close every call gives Closed and changes nothing, and a second close succeeds.",
    }
    Limits {
        records::limits_are_wide_enough:
            "A value may have 32 KiB, a batch 8 MiB and a page 64 KiB at least, and the limits never change.",
        records::keys_of_any_bytes_and_length_are_kept:
            "Keys have 1 to 1024 bytes of any kind.",
        records::values_up_to_the_limit_are_kept:
            "Values from none to max_value bytes are kept as they were.",
        large::a_get_of_many_large_values_has_all_of_them:
            "One get of 4 MiB in many values answers each key with its value.",
        records::what_exceeds_a_limit_is_refused_whole:
            "A value or batch beyond the limits is refused whole with TooLarge, and one within them is applied.",
        scans::pages_are_cut_by_bytes:
            "A page ends soon after max_page_bytes, but never before its first entry.",
    }
}

/// The case of this name, those of [`crash`] among them.
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().chain(crash::CASES).find(|case| case.name == name)
}

/// Runs one of [`CASES`] on a storage of its own.
pub async fn run<B: Builder>(builder: &B, case: &'static Case) -> Outcome {
    guard(builder, case, STANDSTILL, async |bench| body(case, bench).await).await
}

/// Runs every one of [`CASES`].
///
/// # Panics
/// If a case fails; the message holds all failures.
pub async fn run_all<B: Builder>(builder: &B) {
    let mut outcomes = Vec::new();
    for case in CASES {
        outcomes.push(run(builder, case).await);
    }
    case::expect_all(&outcomes);
}

/// Runs a case on a fresh storage. A hang or a panic is a failure like others, and so is a call that blocks, but after that
/// one there is nothing else.
async fn guard<B: Builder>(
    builder: &B,
    case: &'static Case,
    standstill: Duration,
    body: impl AsyncFnOnce(&mut Bench<'_, B>) -> Result<(), Broken>,
) -> Outcome {
    let began = Instant::now();
    let operations = Operations::default();
    let told = |broken| (broken, operations.last());
    let watchdog = {
        let operations = operations.clone();
        Watchdog::start(standstill, move || {
            let broken = format!(
                "no call blocks the thread it is polled on, but nothing has moved for {standstill:?}; the one without \
                 an answer may be the one"
            );
            B::blocked(&Failure { case, broken, operations: operations.last() })
        })
    };
    let work = async {
        let mut bench = Bench::new(builder, operations.clone()).await.map_err(told)?;
        let outcome = match AssertUnwindSafe(body(&mut bench)).catch_unwind().await {
            Ok(outcome) => outcome,
            Err(panic) => Err(Broken::by_panic(&*panic)),
        };
        match outcome {
            Ok(()) => bench.finish().await.map_err(told),
            Err(broken) => {
                let failed = told(broken);
                // Whatever comes of it, so that the place can be removed.
                let close = AssertUnwindSafe(bench.finish()).catch_unwind();
                let _ = tokio::time::timeout(FAREWELL, close).await;
                Err(failed)
            }
        }
    };
    let work = watchdog.over(AssertUnwindSafe(work).catch_unwind());
    let outcome = match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome.unwrap_or_else(|panic| Err(told(Broken::by_panic(&*panic)))),
        Err(_) => Err(told(Broken(format!("no call hangs, but the case took {PATIENCE:?}")))),
    };
    let result = outcome.map_err(|(Broken(broken), operations)| Failure { case, broken, operations });
    Outcome { case, operations: operations.count(), took: began.elapsed(), result }
}
