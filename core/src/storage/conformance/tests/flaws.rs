//! What can be wrong with a backend, and which case finds it out.

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Flaw {
    /// Conditions are checked, then others may commit, then the writes are applied.
    ChecksTooEarly,
    /// A batch is applied write by write.
    TearsBatches,
    /// A refused batch is applied up to its second write.
    AppliesRefused,
    /// Conditions see the writes of their own batch.
    ChecksTooLate,
    /// A batch without writes is taken for nothing at all.
    SkipsEmptyBatches,
    /// After a conflict the next commit fails as well.
    ConflictsSpread,
    /// Acknowledges a commit before it is applied.
    AcknowledgesEarly,
    /// Keys are ordered as signed bytes.
    SignedOrder,
    /// The first write to a key counts.
    FirstWriteCounts,
    /// `Buffered` is lost without a sync.
    ForgetsBuffered,
    /// Every space is the same.
    OneSpace,
    /// Works on after the close.
    NeverCloses,
    /// A commit that meets the close never ends.
    HangsAtClose,
    /// Says that a commit after the close went well.
    AcknowledgesAfterClose,
    /// A page has one entry too many.
    LongPages,
    /// A page has any number of bytes.
    HeavyPages,
    /// An end that is included is left out.
    ExcludesEnds,
    /// Panics where an end is before a start, as some engines do.
    PanicsOnInverted,
    /// Says nothing about a value that is too large.
    NoLimits,
    /// Of a batch with a value that is too large the others are applied. Its batches have no bound that is tried.
    AppliesTooLarge,
    /// Takes batches of any size, beyond the limit that it tells.
    NoBatchLimit,
    /// A batch is applied 128 writes at a time.
    SplitsBatches,
    /// An answer has 1 MiB at most, and no values beyond.
    CutsAnswers,
    /// Lets go of the lock some time after the close.
    LetsGoLate,
    /// Holds less than a backend must.
    Narrow,
    /// Pages have less than they must.
    NarrowPages,
    /// A commit with a condition blocks the thread for ever.
    Blocks,
    /// The empty value is the same as none.
    EmptyIsAbsent,
    /// What is absent has an empty value.
    AbsentIsEmpty,
    /// Answers in the order of the keys, not in the one asked for.
    SortsAnswers,
    /// Keys are cut.
    ShortKeys,
}

/// Which case finds out which flaw.
pub(super) const FOUND: &[(Flaw, &str)] = &[
    (Flaw::Narrow, "limits_are_wide_enough"),
    (Flaw::NarrowPages, "limits_are_wide_enough"),
    (Flaw::AbsentIsEmpty, "absent_keys_have_no_value"),
    (Flaw::SortsAnswers, "values_come_in_the_order_asked_for"),
    (Flaw::ShortKeys, "keys_of_any_bytes_and_length_are_kept"),
    (Flaw::EmptyIsAbsent, "values_up_to_the_limit_are_kept"),
    (Flaw::NoLimits, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::AppliesTooLarge, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::NoBatchLimit, "what_exceeds_a_limit_is_refused_whole"),
    (Flaw::CutsAnswers, "a_get_of_many_large_values_has_all_of_them"),
    (Flaw::SplitsBatches, "a_batch_of_thousands_of_writes_is_one_step"),
    (Flaw::LetsGoLate, "a_close_lets_go_of_everything"),
    (Flaw::OneSpace, "spaces_are_apart"),
    (Flaw::SignedOrder, "keys_are_ordered_by_unsigned_bytes"),
    (Flaw::LongPages, "pages_are_cut_by_entries"),
    (Flaw::HeavyPages, "pages_are_cut_by_bytes"),
    (Flaw::ExcludesEnds, "ranges_hold_what_their_bounds_say"),
    (Flaw::PanicsOnInverted, "ranges_hold_what_their_bounds_say"),
    (Flaw::PanicsOnInverted, "inverted_ranges_are_empty"),
    (Flaw::SkipsEmptyBatches, "an_empty_batch_is_applied"),
    (Flaw::AppliesRefused, "conditions_decide"),
    (Flaw::EmptyIsAbsent, "conditions_decide"),
    (Flaw::AppliesRefused, "a_refused_batch_changes_nothing_in_any_space"),
    (Flaw::ChecksTooLate, "conditions_see_the_state_before_the_batch"),
    (Flaw::FirstWriteCounts, "the_last_write_to_a_key_counts"),
    (Flaw::ChecksTooEarly, "one_of_many_writers_wins"),
    (Flaw::ChecksTooEarly, "no_update_is_lost"),
    (Flaw::ConflictsSpread, "a_conflict_fails_alone"),
    (Flaw::AcknowledgesEarly, "a_read_sees_what_was_acknowledged"),
    (Flaw::TearsBatches, "a_page_is_consistent"),
    (Flaw::TearsBatches, "a_dropped_commit_is_whole_or_nothing"),
    (Flaw::HangsAtClose, "a_close_leaves_nobody_waiting"),
    (Flaw::AcknowledgesAfterClose, "a_close_leaves_nobody_waiting"),
    (Flaw::ForgetsBuffered, "what_was_committed_is_there_after_a_reopen"),
    (Flaw::ForgetsBuffered, "a_drop_without_close_loses_nothing"),
    (Flaw::NeverCloses, "a_closed_storage_says_so"),
    (Flaw::AcknowledgesAfterClose, "a_closed_storage_says_so"),
    (Flaw::EmptyIsAbsent, "random_operations_give_what_the_reference_gives"),
    (Flaw::AppliesRefused, "random_operations_give_what_the_reference_gives"),
    (Flaw::ExcludesEnds, "random_operations_give_what_the_reference_gives"),
];
