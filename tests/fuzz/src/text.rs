//! Changes to text, word by word.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::{LONGEST, below};

/// What means something in one notation or another.
const TELLING: [&str; 40] = [
    "\0", "\n", "\r\n", "\t", "\u{1b}", "\"", "'", "\"\"\"", "\\", "/", "//", ".", "..", ":", "::", "@", "#",
    "=", ",", "[", "]", "[[", "{", "}", "*", "?", "**", "-", "+", "_", "%", " ", "é", "İ", "ß", "🎼",
    "\u{202e}", "\u{301}", "\\u0000", "\\ud800",
];
/// Numbers at which something begins or ends.
const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "00",
    "0x10",
    "1e400",
    "1.5",
    "65535",
    "65536",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
];

/// Runs of letters and digits, and what is between them character by character.
pub(crate) fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let word = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (token, behind) = rest.split_at(if word == 0 { first.len_utf8() } else { word });
        rest = behind;
        Some(token)
    })
}

/// One change.
pub(crate) fn change(text: &mut String, others: &[String], random: &mut SmallRng) {
    let mut words: Vec<&str> = tokens(text).collect();
    let (one, other) = (below(random, words.len()), below(random, words.len()));
    let known = others.choose(random).map_or("", String::as_str);
    let telling = *TELLING.choose(random).unwrap_or(&"");
    let numbers: Vec<usize> =
        (0..words.len()).filter(|at| words[*at].starts_with(|c: char| c.is_ascii_digit())).collect();
    match random.random_range(0..11) {
        0 if !words.is_empty() => words[one] = known,
        1 if !words.is_empty() => words[one] = telling,
        2 if !words.is_empty() => drop(words.remove(one)),
        3 if !words.is_empty() => words.swap(one, other),
        4 if !words.is_empty() => {
            let (from, to) = (one.min(other), one.max(other));
            let part = words[from..=to].to_vec();
            words.splice(to..to, part);
        }
        5 if !words.is_empty() => {
            let many = vec![words[one]; random.random_range(2..300)];
            words.splice(one..one, many);
        }
        6 if !words.is_empty() => words.truncate(one),
        7 | 8 if !numbers.is_empty() => {
            let at = numbers[below(random, numbers.len())];
            words[at] = NUMBERS.choose(random).unwrap_or(&"0");
        }
        9 => words.insert(one, known),
        _ => words.insert(one, telling),
    }
    // A few changes one after the other would make it thousands of times as long.
    let mut length = 0;
    let kept = words.into_iter().take_while(|word| {
        length += word.len();
        length <= LONGEST
    });
    *text = kept.collect();
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn no_text_grows_without_end() {
        let random = &mut SmallRng::seed_from_u64(7);
        let mut text = "a word and another".to_owned();
        let mut longest = 0;
        for _ in 0..10_000 {
            change(&mut text, &["one more, known".to_owned()], random);
            longest = longest.max(text.len());
        }
        assert!((LONGEST / 2..=LONGEST).contains(&longest), "{longest}");
    }

    #[test]
    fn words_are_the_whole_text() {
        let text = "tcp://[::1]:77 größer = \"x\"\n";
        let words: Vec<_> = tokens(text).collect();
        assert_eq!(words.concat(), text);
        assert!(words.contains(&"größer") && words.contains(&"77") && words.contains(&"["));
    }
}
