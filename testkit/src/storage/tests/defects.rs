//! Defects of incorrect backends, and the cases that detect them.

/// A defect of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Defect {
    /// Other batches can be committed between the check of conditions and the writes.
    ChecksTooEarly,
    /// A batch is applied one write at a time.
    TearsBatches,
    /// The first write of a refused batch is applied.
    AppliesRefused,
    /// Conditions observe the writes of their own batch.
    ChecksTooLate,
    /// The conditions of a batch without writes are ignored.
    SkipsEmptyBatches,
    /// The commit after a conflict fails as well.
    ConflictsSpread,
    /// A commit is acknowledged before it is applied.
    AcknowledgesEarly,
    /// Keys are sorted by signed bytes.
    SignedOrder,
    /// The first write to a key wins.
    FirstWriteCounts,
    /// `Buffered` commits are lost without a sync.
    ForgetsBuffered,
    /// All spaces share their keys.
    OneSpace,
    /// Reads succeed after the close.
    NeverCloses,
    /// A commit during the close never returns.
    HangsAtClose,
    /// A commit after the close returns `Ok`.
    AcknowledgesAfterClose,
    /// A page contains one entry too many.
    LongPages,
    /// The size of a page is unlimited.
    HeavyPages,
    /// An included end is excluded.
    ExcludesEnds,
    /// A scan of an inverted range panics, as with some engines.
    PanicsOnInverted,
    /// A value above the limit is truncated.
    NoLimits,
    /// The other values of a batch with a value above the limit are applied. The size of batches is unlimited.
    AppliesTooLarge,
    /// The size of batches is unlimited, contrary to the limit.
    NoBatchLimit,
    /// A batch is applied in parts of 5000 writes.
    SplitsBatches,
    /// A get returns no values after 1 MiB.
    CutsAnswers,
    /// The lock is released some time after the close.
    LetsGoLate,
    /// The limit of values is too small.
    Narrow,
    /// The limit of writes is too small.
    FewWrites,
    /// The number of writes is unlimited, contrary to the limit.
    AppliesManyWrites,
    /// The limit of pages is too small.
    NarrowPages,
    /// A commit with a condition blocks the thread forever.
    Blocks,
    /// An empty value is treated as absent.
    EmptyIsAbsent,
    /// An absent key has an empty value.
    AbsentIsEmpty,
    /// A get returns values in the order of the keys.
    SortsAnswers,
    /// Keys are truncated.
    ShortKeys,
    /// The first 8 bytes of the names of spaces are compared.
    ShortSpaces,
    /// A condition compares the first 64 bytes.
    ComparesPrefixes,
    /// A batch is applied one space at a time.
    TearsSpaces,
    /// A second opening has data of its own.
    OpensTwice,
}

/// The cases that detect each defect.
pub(super) const DETECTED_BY: &[(Defect, &str)] = &[
    (Defect::Narrow, "limits_meet_minimum"),
    (Defect::NarrowPages, "limits_meet_minimum"),
    (Defect::FewWrites, "limits_meet_minimum"),
    (Defect::AppliesManyWrites, "oversized_batch_is_refused"),
    (Defect::AbsentIsEmpty, "get_of_absent_key_returns_none"),
    (Defect::SortsAnswers, "get_returns_values_in_requested_order"),
    (Defect::ShortKeys, "keys_of_any_bytes_and_length_round_trip"),
    (Defect::EmptyIsAbsent, "values_up_to_limit_round_trip"),
    (Defect::NoLimits, "oversized_batch_is_refused"),
    (Defect::AppliesTooLarge, "oversized_batch_is_refused"),
    (Defect::NoBatchLimit, "oversized_batch_is_refused"),
    (Defect::CutsAnswers, "get_of_many_large_values_is_complete"),
    (Defect::SplitsBatches, "large_batch_is_atomic"),
    (Defect::LetsGoLate, "close_releases_lock"),
    (Defect::OneSpace, "spaces_are_independent"),
    (Defect::ShortSpaces, "spaces_are_independent"),
    (Defect::ComparesPrefixes, "condition_compares_every_byte"),
    (Defect::TearsSpaces, "batch_is_observed_in_all_spaces_at_once"),
    (Defect::OpensTwice, "second_opening_is_refused"),
    (Defect::SignedOrder, "scan_returns_keys_in_unsigned_byte_order"),
    (Defect::LongPages, "scan_limits_entries_per_page"),
    (Defect::HeavyPages, "scan_limits_bytes_per_page"),
    (Defect::ExcludesEnds, "scan_respects_range_bounds"),
    (Defect::PanicsOnInverted, "scan_respects_range_bounds"),
    (Defect::PanicsOnInverted, "scan_of_inverted_range_is_empty"),
    (Defect::SkipsEmptyBatches, "empty_batch_checks_its_conditions"),
    (Defect::AppliesRefused, "batch_is_applied_only_if_conditions_hold"),
    (Defect::EmptyIsAbsent, "batch_is_applied_only_if_conditions_hold"),
    (Defect::AppliesRefused, "batch_is_atomic_across_spaces"),
    (Defect::ChecksTooLate, "conditions_see_state_before_batch"),
    (Defect::FirstWriteCounts, "last_write_to_key_wins"),
    (Defect::ChecksTooEarly, "one_of_concurrent_conditional_writers_wins"),
    (Defect::ChecksTooEarly, "concurrent_updates_are_not_lost"),
    (Defect::ConflictsSpread, "conflict_does_not_fail_other_batches"),
    (Defect::AcknowledgesEarly, "read_sees_acknowledged_commits"),
    (Defect::TearsBatches, "scan_page_is_a_snapshot"),
    (Defect::TearsBatches, "dropped_commit_is_atomic"),
    (Defect::HangsAtClose, "close_completes_calls_in_progress"),
    (Defect::AcknowledgesAfterClose, "close_completes_calls_in_progress"),
    (Defect::ForgetsBuffered, "committed_data_survives_reopen"),
    (Defect::ForgetsBuffered, "committed_data_survives_drop_without_close"),
    (Defect::NeverCloses, "closed_storage_returns_closed"),
    (Defect::AcknowledgesAfterClose, "closed_storage_returns_closed"),
    (Defect::EmptyIsAbsent, "random_operations_match_memory_storage"),
    (Defect::AppliesRefused, "random_operations_match_memory_storage"),
    (Defect::ExcludesEnds, "random_operations_match_memory_storage"),
];
