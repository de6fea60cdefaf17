//! Text that comes from outside, made safe to print: names of files, tensors and keys, prompts and captions.
use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

/// `text` without what a terminal obeys or reorders text by: control characters but the newline, line separators, and
/// Unicode's bidirectional overrides and isolates become escapes such as `\x1b`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_steering(c) && c != '\n')
}

/// [`printable`] for what must stay on one line, such as a name: newlines are escaped, too.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escape(text, is_steering)
}

/// A path on one line.
pub fn printable_path(path: &Path) -> String {
    printable_line(&path.to_string_lossy()).into_owned()
}

fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        // Writing to a string does not fail.
        let _ = match c {
            '\n' if is_escaped(c) => escaped.write_str("\\n"),
            c if !is_escaped(c) => escaped.write_char(c),
            c if c.is_ascii() => write!(escaped, "\\x{:02x}", u32::from(c)),
            c => write!(escaped, "\\u{{{:x}}}", u32::from(c)),
        };
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        for (text, expected) in [
            ("a\x1b[2Jb", "a\\x1b[2Jb"),
            ("\x07\x08\r\x7f\0", "\\x07\\x08\\x0d\\x7f\\x00"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("gpj.\u{202e}exe", "gpj.\\u{202e}exe"),
            ("\u{2066}x\u{2069}\u{2028}", "\\u{2066}x\\u{2069}\\u{2028}"),
            ("two\nlines", "two\nlines"),
        ] {
            assert_eq!(printable(text), expected);
        }
        assert_eq!(printable_line("two\nlines"), "two\\nlines");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        let text = "Kätzchen, 猫, قطة, 🐈‍⬛: \\x1b is text";
        assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        assert!(matches!(printable_line(text), Cow::Borrowed(_)));
    }
}
