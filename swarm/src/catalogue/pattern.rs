//! The pattern of a `list` request: a part of the name, or a glob over the whole name.
//!
//! `*` matches any text and `?` one character; they cannot be escaped. Matching is case-sensitive.

/// A pattern over names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Names that contain the text.
    Contains(String),
    /// Names that match as a whole.
    Glob(String),
}

impl Pattern {
    /// Parses a pattern: a glob if it contains `*` or `?`.
    pub fn new(text: &str) -> Self {
        if text.contains(['*', '?']) { Self::Glob(text.to_owned()) } else { Self::Contains(text.to_owned()) }
    }

    /// The prefix of every matching name.
    pub fn prefix(&self) -> &str {
        match self {
            Self::Contains(_) => "",
            Self::Glob(glob) => glob.split(['*', '?']).next().unwrap_or(""),
        }
    }

    /// Whether the name matches.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Contains(part) => name.contains(part),
            Self::Glob(glob) => glob_matches(glob, name),
        }
    }
}

/// Greedy matching that backtracks to the last `*` only, so the time is at most the product of the lengths.
fn glob_matches(glob: &str, name: &str) -> bool {
    let (mut glob, mut name) = (glob, name);
    let mut star: Option<(&str, &str)> = None;
    loop {
        let mut rest = glob.chars();
        let wanted = rest.next();
        if wanted == Some('*') {
            glob = rest.as_str();
            star = Some((glob, name));
            continue;
        }
        let mut name_rest = name.chars();
        match (wanted, name_rest.next()) {
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                glob = rest.as_str();
                name = name_rest.as_str();
            }
            _ => {
                // Extend the match of the last star by one character.
                let Some((after_star, from)) = star else { return false };
                let mut from = from.chars();
                if from.next().is_none() {
                    return false;
                }
                glob = after_star;
                name = from.as_str();
                star = Some((after_star, name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            prop_assert_eq!(glob_matches(&glob, &name), model(&chars(&glob), &chars(&name)));
            let pattern = Pattern::Glob(glob);
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
}
