//! Range requests, RFC 9110, section 14.

use std::num::NonZeroUsize;
use std::ops::{Range, RangeInclusive};

use axum::http::{HeaderMap, header};
use http_range_header::{RangeUnsatisfiableError, parse_range_header_with_max_ranges};

/// Maximum number of ranges in a request. More are not a range request but an attack.
const MAX_RANGES: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Requested {
    Whole,
    /// One or more ranges of bytes, none of them empty.
    Ranges(Vec<Range<u64>>),
    /// No requested byte exists.
    Unsatisfiable,
}

/// Returns what the headers ask for of a file of `size` bytes with this entity tag. A header that cannot be understood is
/// ignored, as the standard demands.
pub(super) fn requested(headers: &HeaderMap, etag: &str, size: u64) -> Requested {
    // A date never matches: there is no `Last-Modified`.
    let if_range = headers.get(header::IF_RANGE);
    let (Some(range), true) = (headers.get(header::RANGE), if_range.is_none_or(|tag| tag == etag)) else {
        return Requested::Whole;
    };
    let Some(parsed) = range.to_str().ok().map(|range| parse(range, size)) else { return Requested::Whole };
    match parsed {
        // The last bytes of an empty file.
        Ok(ranges) if ranges.is_empty() => Requested::Whole,
        Ok(ranges) => {
            Requested::Ranges(ranges.into_iter().map(|range| *range.start()..*range.end() + 1).collect())
        }
        Err(RangeUnsatisfiableError::Unsatisfiable | RangeUnsatisfiableError::Rejected(_)) => {
            Requested::Unsatisfiable
        }
        Err(_) => Requested::Whole,
    }
}

/// Returns the first byte that the headers ask for if the file has this size.
pub(super) fn likely_start(headers: &HeaderMap, size: u64) -> u64 {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    range.and_then(|range| Some(*parse(range, size).ok()?.first()?.start())).unwrap_or(0)
}

/// Parses the ranges of a file of `size` bytes.
fn parse(range: &str, size: u64) -> Result<Vec<RangeInclusive<u64>>, RangeUnsatisfiableError> {
    parse_range_header_with_max_ranges(range, MAX_RANGES)?.validate(size)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list with one range")]
mod tests {
    use super::*;

    fn of(range: &str, size: u64) -> Requested {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, range.parse().unwrap());
        requested(&headers, "\"tag\"", size)
    }

    #[test]
    fn ranges_are_cut_at_the_end_of_the_file() {
        assert_eq!(of("bytes=0-", 10), Requested::Ranges(vec![0..10]));
        assert_eq!(of("bytes=3-99", 10), Requested::Ranges(vec![3..10]));
        assert_eq!(of("bytes=-4", 10), Requested::Ranges(vec![6..10]));
        assert_eq!(of("bytes=-40", 10), Requested::Ranges(vec![0..10]));
        assert_eq!(of("bytes=0-1,5-6", 10), Requested::Ranges(vec![0..2, 5..7]));
    }

    #[test]
    fn range_without_bytes_is_unsatisfiable() {
        assert_eq!(of("bytes=10-", 10), Requested::Unsatisfiable);
        assert_eq!(of("bytes=-0", 10), Requested::Unsatisfiable);
        assert_eq!(of("bytes=0-0", 0), Requested::Unsatisfiable);
        assert_eq!(of("bytes=-5", 0), Requested::Whole);
    }

    #[test]
    fn unknown_unit_and_malformed_range_are_ignored() {
        for range in ["pages=1-2", "bytes=5-2", "bytes=a-b", "bytes"] {
            assert_eq!(of(range, 10), Requested::Whole, "{range}");
        }
    }

    #[test]
    fn other_entity_tag_voids_range() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, "bytes=0-1".parse().unwrap());
        headers.insert(header::IF_RANGE, "\"old\"".parse().unwrap());
        assert_eq!(requested(&headers, "\"new\"", 10), Requested::Whole);
        assert_eq!(requested(&headers, "\"old\"", 10), Requested::Ranges(vec![0..2]));
    }
}
