//! The pattern of a `list` request: a part of the name, a glob over the whole name, or `/` and the name itself.
//!
//! In a glob, `*` matches any text and `?` one character; they cannot be escaped. Matching is case-sensitive. The time is
//! linear in the length of the name, for any pattern.

use std::collections::BTreeMap;

use enjambre_core::Name;

/// A pattern over names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Names that contain the text.
    Contains(String),
    /// Names that match as a whole.
    Glob(Glob),
    /// Only this name.
    Name(Name),
}

impl Pattern {
    /// Parses a pattern: a name if it begins with `/`, which no name contains; a glob if it contains `*` or `?`.
    pub fn new(text: &str) -> Self {
        match text.strip_prefix('/').map(str::parse) {
            Some(Ok(name)) => Self::Name(name),
            _ if text.contains(['*', '?']) => Self::glob(text),
            _ => Self::Contains(text.to_owned()),
        }
    }

    /// Parses a glob.
    pub fn glob(text: &str) -> Self {
        Self::Glob(Glob::new(text))
    }

    /// Returns the text of the pattern that matches only this name, even if it contains `*` or `?`.
    pub fn exactly(name: &Name) -> String {
        format!("/{name}")
    }

    /// The prefix of every matching name.
    pub fn prefix(&self) -> &str {
        match self {
            Self::Contains(_) => "",
            Self::Glob(glob) => &glob.prefix,
            Self::Name(name) => name.as_str(),
        }
    }

    /// Whether the name matches.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Contains(part) => name.contains(part),
            Self::Glob(glob) => glob.matches(name, || ()),
            Self::Name(only) => only.as_str() == name,
        }
    }
}

/// A glob, compiled to a bit-parallel automaton (R. Baeza-Yates and G. Gonnet, "A new approach to text searching", 1992).
///
/// State `n` means that the text read so far matches the first `n` characters of the glob, not counting stars. Backtracking
/// would take the product of the lengths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    prefix: String,
    /// The number of characters without stars: the accepting state.
    length: usize,
    /// The states before which the glob has a star. They accept any text.
    stars: Box<[u64]>,
    /// The states that a character leaves for the next one, sorted by the character. `any` is for characters that the glob
    /// does not contain.
    steps: Vec<(char, Box<[u64]>)>,
    any: Box<[u64]>,
}

impl Glob {
    fn new(text: &str) -> Self {
        let length = text.chars().filter(|c| *c != '*').count();
        let none = vec![0; length / 64 + 1].into_boxed_slice();
        let set = |states: &mut [u64], state: usize| states[state / 64] |= 1 << (state % 64);
        let (mut stars, mut any, mut state) = (none.clone(), none.clone(), 0);
        for c in text.chars() {
            match c {
                '*' => {
                    set(&mut stars, state);
                    continue;
                }
                '?' => set(&mut any, state),
                _ => {}
            }
            state += 1;
        }
        let mut steps = BTreeMap::new();
        for (state, c) in text.chars().filter(|c| *c != '*').enumerate() {
            if c != '?' {
                set(steps.entry(c).or_insert_with(|| any.clone()), state);
            }
        }
        let steps = steps.into_iter().collect();
        let prefix = text.split(['*', '?']).next().unwrap_or("").to_owned();
        Self { prefix, length, stars, steps, any }
    }

    /// Whether the whole name matches. Calls `step` for each operation on 64 states: the number of calls is the time.
    fn matches(&self, name: &str, mut step: impl FnMut()) -> bool {
        if !name.starts_with(&self.prefix) {
            return false;
        }
        let mut states = vec![0; self.stars.len()];
        states[0] = 1_u64;
        for c in name.chars() {
            let at = self.steps.binary_search_by_key(&c, |(c, _)| *c);
            let steps = at.map_or(&self.any, |at| &self.steps[at].1);
            let mut carry = 0;
            for ((states, stars), steps) in states.iter_mut().zip(&self.stars).zip(steps) {
                step();
                let stepped = *states & steps;
                *states = (stepped << 1) | carry | (*states & stars);
                carry = stepped >> 63;
            }
        }
        states[self.length / 64] >> (self.length % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enjambre_core::model::name::MAX_NAME;
    use enjambre_core::protocol::message::MAX_QUERY;
    use proptest::prelude::*;

    /// The definition, exponential in time.
    fn model(glob: &[char], name: &[char]) -> bool {
        match glob.split_first() {
            None => name.is_empty(),
            Some(('*', rest)) => (0..=name.len()).any(|skip| model(rest, &name[skip..])),
            Some((wanted, rest)) => match name.split_first() {
                Some((found, left)) => (*wanted == '?' || wanted == found) && model(rest, left),
                None => false,
            },
        }
    }

    proptest! {
        #[test]
        fn glob_matches_as_defined(glob in "[ab日*?]{0,7}", name in "[ab日]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let pattern = Pattern::glob(&glob);
            prop_assert_eq!(pattern.matches(&name), model(&chars(&glob), &chars(&name)));
            prop_assert!(!pattern.matches(&name) || name.starts_with(pattern.prefix()));
        }
    }

    #[test]
    fn pattern_without_wildcards_is_a_substring() {
        assert!(Pattern::new("ørre").matches("Smørrebrød"));
        assert!(!Pattern::new("orre").matches("Smørrebrød"));
        assert!(Pattern::new("").matches("x"));
        assert_eq!(Pattern::new("foo*bar?").prefix(), "foo");
    }

    #[test]
    fn exact_pattern_matches_only_its_name() {
        for name in ["a", "a*", "?*", "*"] {
            let pattern = Pattern::new(&Pattern::exactly(&name.parse().unwrap()));
            assert!(pattern.matches(name) && pattern.prefix() == name);
            for other in ["ab", "ba", "a?", "A", "/a"] {
                assert!(!pattern.matches(other), "{name} {other}");
            }
        }
        for not_a_name in ["/", "/a/b", "/..", "/deadbeef"] {
            assert!(!["a", "deadbeef.iso"].iter().any(|name| Pattern::new(not_a_name).matches(name)));
        }
    }

    #[test]
    fn glob_takes_linear_time_in_the_length_of_the_name() {
        let name = "a".repeat(MAX_NAME);
        // With backtracking, the time would be the product of the lengths.
        for glob in [format!("*{}b", "a".repeat(MAX_NAME / 2)), "*a".repeat(100) + "*b", "*?".repeat(150)] {
            let mut steps = 0;
            Glob::new(&glob).matches(&name, || steps += 1);
            assert!((1..=name.len() * (MAX_QUERY / 64 + 1)).contains(&steps), "{steps}: {glob}");
        }
    }

    #[test]
    fn glob_of_any_length_matches() {
        for length in [62, 63, 64, 65, 127, 128, 129, 250] {
            let (a, b) = ("a".repeat(length), "b".repeat(length));
            for (glob, name, expected) in [
                (format!("*{a}"), format!("bab{a}"), true),
                (format!("*{a}"), format!("bab{a}b"), false),
                (format!("{a}?*"), format!("{a}b"), true),
                (format!("{a}?*"), a.clone(), false),
                (format!("?{}*{b}", &a[1..]), format!("b{}b{b}", &a[1..]), true),
                (format!("?{}*{b}", &a[1..]), format!("b{}{}", &a[1..], &b[1..]), false),
                ("*?".repeat(length), a.clone(), true),
                ("*?".repeat(length + 1), a.clone(), false),
            ] {
                assert_eq!(Pattern::new(&glob).matches(&name), expected, "{glob} {name}");
            }
        }
    }
}
