//! Everything that is printed for people: on standard error what happens, on standard output what came of it.
//!
//! Nobody reading it is no reason to stop: writing to standard error never fails, and nothing here panics. Names of files,
//! tensors and keys, prompts and captions come from outside: what would steer the terminal is written as an escape.
use crate::system::error::{Error, Result};
use clap::Parser;
use console::Term;
use indicatif::TermLike;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

/// `text` without what a terminal obeys or reorders text by: control characters but the newline, line separators, and
/// Unicode's bidirectional overrides and isolates become escapes such as `\x1b`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_steering(c) && c != '\n')
}

/// The same for what must stay on one line, such as a name.
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

/// Writes a command's result, a line or several, to standard output.
///
/// # Errors
/// It cannot be written; not where the reader has gone away, as `head` does: it has had what it wanted.
pub fn say(text: &str) -> Result<()> {
    was_written(writeln!(io::stdout(), "{}", printable(text)))
}

/// The same for what is in files, too: that it cannot be written is no reason to stop.
pub fn mention(text: &str) {
    let _ = writeln!(io::stdout(), "{}", printable(text));
}

/// Writes a line, or several, to standard error, or nowhere.
pub fn complain(text: &str) {
    let _ = writeln!(Stderr, "{}", printable(text));
}

/// What came of writing to standard output.
fn was_written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(problem) if problem.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write to standard output: {problem}")))
        }
        _ => Ok(()),
    }
}

/// The program's arguments.
///
/// # Errors
/// They are wrong, or ask for help: it is said, and the program's exit status returned.
pub fn arguments<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|problem| {
        // What is said quotes arguments: those that are quoted are printable.
        let arguments = std::env::args_os().map(|argument| printable_line(&argument.to_string_lossy()).into_owned());
        let problem = T::try_parse_from(arguments).err().unwrap_or(problem);
        match was_written(problem.print()) {
            Err(unwritten) if !problem.use_stderr() => {
                complain(&format!("error: {unwritten}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::from(problem.exit_code() as u8),
        }
    })
}

/// Standard error, where what cannot be written is lost.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether standard error is a terminal that shows colours; where Windows' console has to be asked to, it is.
pub fn shows_colours() -> bool {
    Term::stderr().features().colors_supported()
}

/// The terminal on standard error for progress bars, if there is one. `indicatif` panics where drawing fails.
#[derive(Debug)]
pub struct BarTerminal(Term);

impl BarTerminal {
    /// The terminal on standard error, where that is one.
    pub fn open() -> Option<Self> {
        io::stderr().is_terminal().then(|| Self(Term::stderr()))
    }
}

/// Passes a call on to the terminal, whatever comes of it.
macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty)?);)*) => {
        $(fn $name(&self $(, $argument: $kind)?) -> io::Result<()> {
            let _ = self.0.$name($($argument)?);
            Ok(())
        })*
    };
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    pass_on! {
        move_cursor_up(n: usize);
        move_cursor_down(n: usize);
        move_cursor_right(n: usize);
        move_cursor_left(n: usize);
        write_line(text: &str);
        write_str(text: &str);
        clear_line();
        flush();
    }
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
