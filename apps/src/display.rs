//! Text for people: counts, and names from remotes, files and databases on a terminal.

use std::fmt::Write;

/// Letters that look like ASCII letters in common fonts: Greek, Cyrillic and Armenian. Unicode lists many more
/// (<https://www.unicode.org/reports/tr39/>); these suffice to write most words.
const LOOKALIKES: &str = "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυγϲϳЅІЈАВЕКМНОРСТУХԌԚԜаеорсухѕіјһԁԍԛԝӏҮүѵգհոսցօքՍՏՕԼ";

/// Returns whether a character changes a terminal, the order of the text, or is not visible.
const fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f'
            | '\x7f'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Returns one line in which each hidden character is replaced by its number, such as `\u{202e}`.
pub(crate) fn visible(text: &str) -> String {
    visible_except(text, &[])
}

/// The same, but retains the characters `kept`.
pub(crate) fn visible_except(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !kept.contains(&c) {
            let _ = write!(shown, "{}", c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Formats a number of things, such as `1 file`, `2 files` or `2 entries`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    match thing.strip_suffix('y') {
        _ if number == 1 => format!("1 {thing}"),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        _ => format!("{number} {thing}s"),
    }
}

/// Returns whether a name may be confused with another name, because a word mixes ASCII letters with letters that look like
/// them, or because all letters of the name look like ASCII letters.
pub(crate) fn is_confusable(name: &str) -> bool {
    let is_lookalike = |c: char| {
        // Full-width and mathematical letters.
        matches!(c, '\u{ff21}'..='\u{ff5a}' | '\u{1d400}'..='\u{1d7ff}') || LOOKALIKES.contains(c)
    };
    let is_mixed =
        |word: &str| word.contains(is_lookalike) && word.contains(|c: char| c.is_ascii_alphabetic());
    name.contains(is_lookalike)
        && (name.split(|c: char| !c.is_alphanumeric()).any(is_mixed)
            || name.chars().filter(|c| c.is_alphabetic()).all(|c| c.is_ascii() || is_lookalike(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_shown_as_numbers() {
        assert_eq!(visible("1.0\u{1b}]0;x\u{7}\n\u{9b}2J"), r"1.0\u{1b}]0;x\u{7}\u{a}\u{9b}2J");
        assert_eq!(visible("a\u{202e}gpj.exe\u{200b}"), r"a\u{202e}gpj.exe\u{200b}");
        for ordinary in ["größe 日本 ñ.txt", "e\u{301}", "файл", "-> 🙂"] {
            assert_eq!(visible(ordinary), ordinary);
        }
    }

    #[test]
    fn one_thing_is_singular() {
        let counts =
            [0, 1, 2].map(|number| ["entry", "file", "key"].map(|thing| count(number, thing)).join(", "));
        let expected = ["0 entries, 0 files, 0 keys", "1 entry, 1 file, 1 key", "2 entries, 2 files, 2 keys"];
        assert_eq!(counts, expected);
    }

    #[test]
    fn names_with_lookalike_letters_are_confusable() {
        for name in ["p\u{430}ypal", "\u{441}\u{43e}\u{440}.iso", "\u{ff21}.txt", "\u{3a1}DF 1"] {
            assert!(is_confusable(name), "{name}");
        }
        for name in ["paypal.iso", "отчёт.pdf", "книга о море.pdf", "10 μm.csv", "größe", "資料Ａ.txt"]
        {
            assert!(!is_confusable(name), "{name}");
        }
    }
}
